"""What the papers' tasks are made of: generated sequences, stored ones of unlike length, and the best constant answer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sequence_experiments import experiment, mixed

from lm1b.sequence_tasks.data.load import load_task
from lm1b.sequence_tasks.data.task import NO_LABEL, constant_answer_nats, stored


@pytest.mark.parametrize("kind", ["adding", "multiplication"])
@pytest.mark.parametrize("steps", [2, 3, 40])
def test_a_target_is_made_of_the_two_marked_values(tmp_path: Path, kind: str, steps: int) -> None:
    task = load_task(experiment(tmp_path, task__kind=kind, task__steps=steps).task)
    batch = task.train.batch(torch.arange(50))
    values_TB, marks_TB = batch.x_TBD.unbind(2)
    assert batch.x_TBD.shape == (steps, 50, 2)
    assert torch.equal(marks_TB.sum(0), torch.full((50,), 2.0))
    assert set(marks_TB.unique().tolist()) <= {0.0, 1.0}
    pairs = [values_TB[marks_TB[:, b] == 1, b] for b in range(50)]
    expected = torch.stack([pair.sum() if kind == "adding" else pair.prod() for pair in pairs])
    assert torch.allclose(batch.targets, expected)
    assert torch.equal(batch.lengths_B, torch.full((50,), steps))


def test_marks_and_values_are_uniform_and_the_baselines_are_those_of_the_papers(tmp_path: Path) -> None:
    for kind, baseline in (("adding", 1 / 6), ("multiplication", 7 / 144)):
        task = load_task(experiment(tmp_path, task__kind=kind, task__steps=5, task__train_size=40_000).task)
        batch = task.train.batch(torch.arange(40_000))
        assert batch.targets.double().var().item() == pytest.approx(baseline, rel=0.03)
        assert task.baseline_loss == pytest.approx(baseline)
        assert torch.allclose(batch.x_TBD[:, :, 1].mean(1), torch.full((5,), 0.4), atol=0.01)
        assert batch.x_TBD[:, :, 0].mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_sequence_depends_on_its_number_and_split_alone(tmp_path: Path) -> None:
    task = load_task(experiment(tmp_path).task)
    whole, some = task.train.batch(torch.arange(20)), task.train.batch(torch.tensor([17, 3]))
    assert torch.equal(whole.x_TBD[:, [17, 3]], some.x_TBD)
    assert torch.equal(whole.targets[[17, 3]], some.targets)
    firsts = [split.batch(torch.tensor([0])).x_TBD for split in (task.train, task.dev, task.test)]
    assert not any(torch.equal(firsts[i], firsts[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    other = load_task(experiment(tmp_path, task__seed=2).task).train.batch(torch.tensor([0]))
    assert not torch.equal(firsts[0], other.x_TBD)


def test_stored_sequences_come_padded_and_in_the_order_asked() -> None:
    sequences, labels = mixed()
    batch = stored(sequences, labels).batch(torch.tensor([2, 0, 1]))
    assert batch.lengths_B.tolist() == [7, 4, 1]
    for place, number in enumerate((2, 0, 1)):
        length = len(sequences[number])
        assert torch.equal(batch.x_TBD[:length, place], sequences[number])
        assert not batch.x_TBD[length:, place].any()
        assert torch.equal(batch.targets[:length, place], labels[number])
        assert (batch.targets[length:, place] == NO_LABEL).all()
    one_each = stored(sequences, torch.tensor([3, 1, 2])).batch(torch.tensor([1, 2]))
    assert one_each.targets.tolist() == [1, 2]


def test_the_best_constant_answer_is_the_labels_entropy() -> None:
    assert constant_answer_nats(torch.tensor([0, 0, 1, 1, NO_LABEL])) == pytest.approx(math.log(2))
    assert constant_answer_nats(torch.tensor([[4, 4], [NO_LABEL, 4]])) == 0.0
