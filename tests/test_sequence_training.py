"""A run of a task's trainer: it goes on bit for bit from its file, skips what is not finite, clips, and learns."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sequence_experiments import ALONE, experiment
from torch import Tensor

from lm1b.errors import UserError
from lm1b.sequence_tasks.data.load import load_task
from lm1b.sequence_tasks.data.task import Batch
from lm1b.sequence_tasks.experiment.network import norm_stabilizer
from lm1b.sequence_tasks.experiment.resumable_run import Job, train_run
from lm1b.sequence_tasks.experiment.trainer import SequenceRun


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "run.safetensors")


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adam"])
def test_a_run_goes_on_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = experiment(tmp_path, optimizer__kind=optimizer, optimizer__momentum=0.5 if optimizer != "adam" else 0.0)
    task = load_task(config.task)
    whole = train_run(config, task, Job(1, 0.01, 24, tmp_path / "whole", True), ALONE)
    train_run(config, task, Job(1, 0.01, 12, tmp_path / "parts"), ALONE)
    parts = train_run(config, task, Job(1, 0.01, 24, tmp_path / "parts", True), ALONE)
    assert {**whole, "cpu_seconds": 0} == {**parts, "cpu_seconds": 0}
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [point["updates"] for point in whole["curve"]] == [0, 6, 12, 18, 24]


def test_test_is_looked_at_with_the_weights_that_were_best_on_dev(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    run = SequenceRun(config, load_task(config.task), 1, 0.01, ALONE)
    run.look_at_dev()
    for _ in range(6):
        run.update()
    run.look_at_dev()
    at_best = run.evaluate(run.task.test)
    assert run.curve[1]["dev_error"] < run.curve[0]["dev_error"]
    with torch.no_grad():
        run.network.readout.bias.add_(10.0)
    run.look_at_dev()
    spoilt = run.evaluate(run.task.test)
    assert run.result()["best_updates"] == 6
    assert run.look_at_test() == dict(zip(("test_loss", "test_error"), at_best, strict=True))
    assert run.evaluate(run.task.test) == spoilt  # and training would go on from where it was


def test_every_sequence_is_seen_once_an_epoch_and_seeds_differ(tmp_path: Path) -> None:
    config = experiment(tmp_path, training__batch=20)
    task = load_task(config.task)
    orders = []
    for seed in (1, 2):
        run = SequenceRun(config, task, seed, 0.01, ALONE)
        seen = []
        for update in range(6):
            run.updates = update
            run.next_batch()
            seen.append(run._order_N[update % 3 * 20 : (update % 3 + 1) * 20])
        assert sorted(torch.cat(seen[:3]).tolist()) == sorted(torch.cat(seen[3:]).tolist()) == list(range(60))
        assert not torch.equal(torch.cat(seen[:3]), torch.cat(seen[3:]))
        orders.append(seen[0])
    assert not torch.equal(*orders)


def test_a_gradient_that_is_not_finite_is_skipped_and_too_many_end_the_run(tmp_path: Path) -> None:
    config = experiment(tmp_path, training__max_skipped=3, training__updates=40)
    task = load_task(config.task)
    run = SequenceRun(config, task, 1, 0.01, ALONE)
    run.update()
    before = [parameter.detach().clone() for parameter in run.parameters]
    batch = run.next_batch()
    run.next_batch = lambda: Batch(batch.x_TBD * math.nan, batch.lengths_B, batch.targets)  # type: ignore[method-assign]
    run.update()
    assert (run.skipped, run.skipped_in_a_row) == (1, 1)
    assert all(torch.equal(*pair) for pair in zip(before, run.parameters, strict=True))
    del run.next_batch
    run.update()
    assert (run.skipped, run.skipped_in_a_row) == (1, 0)
    assert not run.has_diverged
    far_above, just_below = ({"dev_loss": factor * task.baseline_loss} for factor in (2.01, 1.99))
    run.curve = [{"dev_loss": 1000.0}, far_above]  # however bad its start
    assert run.has_diverged
    run.curve.append(just_below)
    assert not run.has_diverged
    result = train_run(config, task, Job(1, 1e30, 40, tmp_path / "wild", True), ALONE)
    assert result["diverged"]
    assert result["skipped"] == 3
    assert result["updates"] < 40
    assert "test_error" not in result
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(("setting", "limit"), [("clip_norm", 0.01), ("clip_value", 0.001)])
def test_clipping_bounds_a_step_of_gradient_descent(tmp_path: Path, setting: str, limit: float) -> None:
    config = experiment(tmp_path, optimizer__kind="sgd", **{"optimizer__clip_norm": None, f"optimizer__{setting}": limit})
    run = SequenceRun(config, load_task(config.task), 1, 1.0, ALONE)
    before = [parameter.detach().clone() for parameter in run.parameters]
    run.update()
    moved = torch.cat([(new - old).flatten() for old, new in zip(before, run.parameters, strict=True)]).detach()
    size = moved.norm() if setting == "clip_norm" else moved.abs().max()
    assert size.item() == pytest.approx(limit, rel=1e-3)


def test_the_stabilizer_keeps_norms_closer_together(tmp_path: Path) -> None:
    spread = []
    for weight in (0.0, 50.0):
        config = experiment(tmp_path, training__norm_stabilizer=weight, training__updates=60, model__input_weight="glorot")
        run = SequenceRun(config, load_task(config.task), 1, 0.01, ALONE)
        for _ in range(60):
            run.update()
        batch = run.task.dev.batch(torch.arange(30))
        spread.append(norm_stabilizer(run.network(batch).y_TBW, batch.lengths_B)[0].item())
    assert spread[1] < 0.5 * spread[0]


def test_bf16_rounds_the_recurrent_layers_and_keeps_float32_weights(tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        config = experiment(tmp_path, training__precision=precision, model__hidden=16, model__input_weight="glorot")
        run = SequenceRun(config, load_task(config.task), 1, 0.01, ALONE)
        found[precision] = run.network(run.next_batch()).values
        run.update()
        assert all(parameter.dtype == torch.float32 for parameter in run.parameters)
    assert not torch.equal(found["fp32"], found["bf16"])
    assert torch.allclose(found["fp32"], found["bf16"], atol=0.05)


def test_an_lstm_learns_to_add_a_few_numbers(tmp_path: Path) -> None:
    config = experiment(tmp_path, task__train_size=5000, model__cell="lstm", model__hidden=32, training__batch=32)
    run = SequenceRun(config, load_task(config.task), 1, 0.01, ALONE)
    for _ in range(400):
        run.update()
    run.look_at_dev()
    assert run.curve[-1]["dev_error"] < 0.3 * run.task.baseline_loss


def test_a_run_that_was_cut_off_in_its_file_is_named(tmp_path: Path) -> None:
    config = experiment(tmp_path / "run")
    task = load_task(config.task)
    train_run(config, task, Job(1, 0.01, 12, tmp_path / "run"), ALONE)
    file = tmp_path / "run" / "run.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"run.safetensors: not a run that can be gone on with .* delete it"):
        train_run(config, task, Job(1, 0.01, 24, tmp_path / "run"), ALONE)


def test_a_run_of_another_network_or_version_is_named(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    task = load_task(config.task)
    train_run(config, task, Job(1, 0.01, 12, tmp_path), ALONE)
    other = experiment(tmp_path, model__hidden=9)
    with pytest.raises(UserError, match=r"run.safetensors: not a run that can be gone on with \(of another network"):
        train_run(other, task, Job(1, 0.01, 24, tmp_path), ALONE)
    file = tmp_path / "run.safetensors"
    tensors = load_file(file)
    save_file(tensors, file, {"progress": json.dumps({"updates": 12, "best_weights": None})})
    with pytest.raises(UserError, match=r"run.safetensors: not a run that can be gone on with \(of another network, or of another version"):
        train_run(config, task, Job(1, 0.01, 24, tmp_path), ALONE)
