"""Networks over sequences of any length: an answer does not depend on what else is in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sequence_experiments import CELLS, mixed
from torch import Tensor

from lm1b.sequence_tasks.config import NetworkConfig
from lm1b.sequence_tasks.data.task import Batch, stored
from lm1b.sequence_tasks.experiment.network import SequenceNetwork, loss_of, norm_stabilizer, turn_around


def test_turning_around_leaves_what_comes_after_the_end() -> None:
    x_TBD = torch.arange(8.0).view(4, 2, 1)
    turned = turn_around(x_TBD, torch.tensor([4, 2]))
    assert turned[:, 0, 0].tolist() == [6, 4, 2, 0]
    assert turned[:, 1, 0].tolist() == [3, 1, 5, 7]
    assert torch.equal(turn_around(turned, torch.tensor([4, 2])), x_TBD)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("asked", ["label", "label_per_step"])
def test_answers_do_not_depend_on_what_else_is_in_the_batch(cell: str, bidirectional: bool, asked: Any) -> None:
    config = NetworkConfig(cell=cell, hidden=6, layers=2, bidirectional=bidirectional, input_weight="glorot")  # type: ignore[arg-type]
    network = SequenceNetwork(config, 3, asked, 5, seed=4)
    sequences, labels = mixed()
    targets: Any = labels if asked == "label_per_step" else torch.tensor([3, 1, 2])
    split = stored(sequences, targets)
    together = network(split.batch(torch.tensor([0, 1, 2])))
    loss, errors, count = loss_of(together, split.batch(torch.tensor([0, 1, 2])), asked)
    sums = [0.0, 0.0, 0]
    for number, sequence in enumerate(sequences):
        batch = split.batch(torch.tensor([number]))
        alone = network(batch)
        expected = together.values[: len(sequence), number] if asked == "label_per_step" else together.values[number]
        assert torch.allclose(alone.values.squeeze(-2), expected, atol=1e-6)
        for place, part in enumerate(loss_of(alone, batch, asked)):
            sums[place] += part.item() if isinstance(part, Tensor) else part
    assert sums == [pytest.approx(loss.item(), rel=1e-5), errors.item(), count]


def test_a_bidirectional_layer_reads_the_future() -> None:
    config = NetworkConfig(cell="irnn", hidden=6, bidirectional=True)
    network = SequenceNetwork(config, 3, "label_per_step", 5, seed=4)
    x_TBD = torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(2))
    changed = x_TBD.clone()
    changed[4] += 1.0
    first, other = (network(Batch(x, torch.tensor([5]), torch.zeros(5, 1))).values for x in (x_TBD, changed))
    assert not torch.allclose(first[0], other[0])
    whole = SequenceNetwork(config, 3, "number", 1, seed=4)
    lengths_B = torch.tensor([4])
    ends = [whole(Batch(x, lengths_B, torch.zeros(1))) for x in (x_TBD, changed)]
    assert torch.equal(ends[0].values, ends[1].values)  # what comes after the end
    for step in (0, 3):  # the answer at the end has read the whole sequence in both directions
        changed = x_TBD.clone()
        changed[step] += 1.0
        answers = whole(Batch(changed, lengths_B, torch.zeros(1)))
        first_and_last = torch.cat([answers.y_TBW[3, :, :6], answers.y_TBW[0, :, 6:]], dim=1)
        assert torch.equal(answers.values, whole.readout(first_and_last))
        assert not torch.allclose(answers.y_TBW[0, :, 6:], ends[0].y_TBW[0, :, 6:])
    with torch.no_grad():  # forward and backward are two networks with weights of their own
        names = [name for name, _ in network.named_parameters()]
    assert sum("left_to_right" in name for name in names) == sum("right_to_left" in name for name in names) == 4


def test_the_norm_stabilizer_by_hand() -> None:
    y_TBW = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 1.0], [9.0, 9.0]], [[6.0, 8.0], [9.0, 9.0]]])
    total, count = norm_stabilizer(y_TBW, torch.tensor([3, 1]))
    assert (total.item(), count) == (pytest.approx((5 - 1) ** 2 + (1 - 10) ** 2), 2)
    total, count = norm_stabilizer(y_TBW[:1], torch.tensor([1, 1]))
    assert (total.item(), count) == (0.0, 0)
