"""Runs of the papers' tasks over two real ranks under DeepSpeed: what one process finds, resumed either way, and clean ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from sequence_ranks_worker import CASES, HALF, NO_PENALTY, RATE, UPDATES, WILD_RATE, case, spoilt_updates
from tiny import REPOSITORY, environment, free_port, run_ranks

from lm1b.distributed import single_process
from lm1b.sequence_tasks.experiment.resumable_run import Job, train_run
from lm1b.sequence_tasks.experiment.trainer import SequenceRun

ALONE = single_process()
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))
RELATIVE = 2e-5  # what float32 makes of eight updates whose sums were added up in another order


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """The folder, what both ranks have reported, and what one process has found of the same cases."""
    folder = tmp_path_factory.mktemp("ranks")
    alone: dict[str, Any] = {}
    for name in CASES:
        config, task = case(name)
        train_run(config, task, Job(1, RATE, HALF, folder / "ranks" / name / "begun_by_one"), ALONE)
        alone[name] = train_run(config, task, Job(1, RATE, UPDATES, folder / "alone" / name, True), ALONE)
    run_ranks([str(Path(__file__).with_name("sequence_ranks_worker.py")), str(folder)], 2)
    return folder, [json.loads((folder / f"report_{rank}.json").read_text()) for rank in range(2)], alone


def assert_same_file(one: Path, other: Path, relative: float) -> None:
    """Two runs' files hold the same tensors; relative 0: bit for bit."""
    expected, found = (load_file(folder / "run.safetensors") for folder in (one, other))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        if relative == 0:
            assert torch.equal(tensor, found[name]), name
            continue
        distance = torch.linalg.vector_norm(tensor - found[name])
        assert distance <= relative * torch.linalg.vector_norm(tensor), f"{name}: {distance:.2e}"


def assert_same_result(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Two runs' results, within rounding; CPU time aside."""
    pairs = [({**one, "cpu_seconds": 0, "curve": 0}, {**other, "cpu_seconds": 0, "curve": 0})]
    for expected, found in [*pairs, *zip(one["curve"], other["curve"], strict=True)]:
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            assert found[key] == (None if value is None else pytest.approx(value, rel=RELATIVE)), key


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_find_what_one_process_finds(found: Any, name: str) -> None:
    folder, (report, _), alone = found
    assert_same_result(alone[name], report["cases"][name]["whole"])
    assert_same_file(folder / "alone" / name, folder / "ranks" / name / "whole", RELATIVE)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_go_on_bit_for_bit(found: Any, name: str) -> None:
    folder, (report, _), _ = found
    results = report["cases"][name]
    assert {**results["parts"], "cpu_seconds": 0} == {**results["whole"], "cpu_seconds": 0}
    assert_same_file(folder / "ranks" / name / "whole", folder / "ranks" / name / "parts", 0.0)


@pytest.mark.parametrize("name", CASES)
def test_what_one_process_began_two_ranks_go_on_with_and_the_other_way_round(found: Any, name: str) -> None:
    folder, (report, _), alone = found
    assert_same_result(alone[name], report["cases"][name]["begun_by_one"])
    assert_same_file(folder / "alone" / name, folder / "ranks" / name / "begun_by_one", RELATIVE)
    config, task = case(name)
    theirs = folder / "ranks" / name / "begun_by_ranks"
    assert json.loads((theirs / f"result_{HALF}.json").read_text())["updates"] == HALF
    assert_same_result(alone[name], train_run(config, task, Job(1, RATE, UPDATES, theirs, True), ALONE))
    assert_same_file(folder / "alone" / name, theirs, RELATIVE)


def test_the_first_ranks_folder_decides_and_it_alone_writes(found: Any) -> None:
    folder, (first, other), _ = found
    assert first["cases"] == other["cases"]
    assert not (folder / "nowhere").exists()
    for results in first["cases"].values():
        assert results["again"] == results["whole"]  # its CPU time too: it was read
    for report in (first, other):
        del report["searched"]["config"]
    assert first["searched"] == other["searched"]
    assert first["searched"]["learning_rate"] == RATE
    assert sum("dev error" in line for line in first["said"]) == 5
    assert not other["said"]


@pytest.mark.parametrize(("what", "factor"), [("NaN", float("nan")), ("no norm", 1e22)])
def test_a_gradient_that_is_not_finite_on_one_rank_is_skipped_on_both_and_counted_once(found: Any, what: str, factor: float) -> None:
    _, reports, _ = found
    expected = [(0, 0, True), (1, 1, False), (1, 0, True)]
    assert spoilt_updates(SequenceRun(*case("label_per_step", **NO_PENALTY), 1, RATE, ALONE), True, factor) == expected
    assert [[tuple(seen) for seen in report[what]] for report in reports] == [expected, expected]


def test_ranks_give_up_when_one_process_does_and_stay_so(found: Any, tmp_path: Path) -> None:
    folder, (report, _), _ = found
    config, task = case("number", training={"evaluate_every": 1})
    alone = train_run(config, task, Job(1, WILD_RATE, 20, tmp_path, True), ALONE)
    wild, parts = report["cases"]["number"]["wild"], report["cases"]["number"]["wild parts"]
    assert wild["diverged"]
    assert [wild[key] for key in ("updates", "skipped")] == [alone[key] for key in ("updates", "skipped")]
    assert {**parts, "cpu_seconds": 0} == {**wild, "cpu_seconds": 0}
    assert_same_file(folder / "ranks" / "number" / "wild", folder / "ranks" / "number" / "wild parts", 0.0)


def test_a_mistake_is_told_to_every_rank(found: Any) -> None:
    _, reports, _ = found
    for report in reports:
        assert report["batch"].startswith("a batch of 7 sequences must be divisible by the number of ranks (=2)")
        assert report["clip_value"].startswith("optimizer.clip_value=0.5: 2 ranks clip by the norm alone")
        assert "run.safetensors: not a run that can be gone on with" in report["cut off"]
        assert report["data"].startswith("ranks 0 and 1 have different data for adding, T = 6")


# The command ------------------------------------------------------------------------------------------------------


class Launched:
    """The command under DeepSpeed's launcher, and what it says."""

    def __init__(self, words: list[str], output: Path) -> None:
        command = [DEEPSPEED, "--num_gpus", "2", "--master_port", str(free_port()), *words]
        self._output = output
        with open(output, "w") as file:
            self.process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=file, stderr=file, start_new_session=True)

    def ranks(self) -> list[psutil.Process]:
        """The two processes that train."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if any(word.startswith("--local_rank") for word in child.cmdline())]

    def text(self) -> str:
        return self._output.read_text()

    def errors(self) -> list[str]:
        return [line for line in self.text().splitlines() if "lm1b: error:" in line]


@contextlib.contextmanager
def launched(words: list[str], output: Path) -> Generator[Launched]:
    started = Launched(words, output)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.process.pid, signal.SIGKILL)
        started.process.wait(20)


def wait_for(condition: Callable[[], object], explain: Callable[[], str]) -> None:
    end_at = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end_at, explain()
        time.sleep(0.05)


def test_ranks_end_with_one_of_them_and_at_ctrl_c_and_one_process_goes_on(tmp_path: Path) -> None:
    training = {"updates": 2000, "evaluate_every": 20}
    config, _ = case("number", training=training, run={"directory": str(tmp_path / "run"), "seeds": [1]})
    path = tmp_path / "config.json"
    kept = tmp_path / "run" / "seeds" / f"rate_{config.optimizer.learning_rate:g}" / "seed_1" / "run.safetensors"
    path.write_text(json.dumps(config.as_json()))
    words = ["launch/sequence_task.py", "--config", str(path)]
    with launched(words, tmp_path / "killed.txt") as first:
        wait_for(kept.exists, first.text)
        killed = first.ranks()[1]
        killed.send_signal(signal.SIGKILL)
        assert first.process.wait(60) != 0
        (line,) = first.errors()
        assert f"rank 1 (pid {killed.pid}" in line, first.text()
        assert "the same command goes on from there" in line
        assert "Traceback" not in first.text()
    killed_at = kept.stat().st_mtime_ns
    with launched(words, tmp_path / "stopped.txt") as second:
        wait_for(lambda: kept.stat().st_mtime_ns != killed_at, second.text)
        ranks = second.ranks()
        os.killpg(second.process.pid, signal.SIGINT)
        assert second.process.wait(60) != 0
        assert len(second.errors()) <= 1, second.text()
        assert all("stopped (SIG" in line for line in second.errors())
        assert not any(rank.is_running() for rank in ranks)
    stopped = json.loads(_metadata(kept))["updates"]
    assert 20 < stopped < 2000
    # Alone the command does without DeepSpeed.
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n    print('imported' if 'deepspeed' in sys.modules else 'not imported')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--processes", "1"],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "not imported"
    (run,) = json.loads((tmp_path / "run" / "results.json").read_text())["runs"]
    assert [point["updates"] for point in run["curve"]] == list(range(0, 2001, 20))


def _metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["progress"]
