"""The supervisor: starts a real run again until it has finished, and knows when not to."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from command_runs import DEEPSPEED
from forked import ForkedProcess
from readme_commands import commands_run_by
from tiny import REPOSITORY, environment, free_port, settings_in
from waiting import wait_for

from lm1b.files import read_json_lines
from lm1b.training.run_state import newest_step, run_state, training_ranks


class Supervisor(ForkedProcess):
    """tools/supervise.py, and what it and the command below it say."""

    def __init__(self, output: Path, *arguments: str):
        self.output = output
        with open(output, "wb") as file:
            where = {"env": environment(PYTHONUNBUFFERED="1"), "cwd": REPOSITORY, "stdout": file, "stderr": file}
            super().__init__("tools/supervise.py", list(arguments), **where)

    def end(self, timeout: float = 60) -> str:
        """Wait for its end; all that was said."""
        self.wait(timeout)
        return self.output.read_text()


Supervise = Callable[..., Supervisor]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Starts a supervisor; ends what it has started."""
    started: list[Supervisor] = []

    def begin(*arguments: str) -> Supervisor:
        started.append(Supervisor(tmp_path / f"supervisor_{len(started)}.output", *arguments))
        return started[-1]

    yield begin
    for process in started:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        for child in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


def command(config: Path) -> list[str]:
    return [DEEPSPEED, "--num_gpus", "2", "--master_port", str(free_port()), "launch/train.py", "--config", str(config)]


@pytest.mark.long
def test_a_run_whose_ranks_are_killed_finishes_by_itself(supervise: Supervise, tiny_folder: Path, tmp_path: Path) -> None:
    directory = tmp_path / "killed"
    training = {"total_steps": 400, "gap_every": None}
    config = settings_in(tiny_folder, directory, training=training, checkpoints={"every": 20, "keep_last": 2})
    process = supervise("--first-wait", "0.1", "--", *command(config))
    for rank in (1, 0):
        wait_for(lambda: run_state(directory) == "running" and len(training_ranks(directory)) == 2, 90)
        before = newest_step(directory)
        wait_for(lambda before=before: newest_step(directory) > before, 60)
        training_ranks(directory)[rank].send(signal.SIGKILL)
        wait_for(lambda: run_state(directory) == "dead", 60)
    output = process.end(120)
    assert process.returncode == 0, output
    assert run_state(directory) == "finished"
    assert output.count("starting it again in 0 s") == 2
    assert output.count("has died, so rank") == 2
    assert [line["step"] for line in read_json_lines(directory / "metrics.jsonl")] == list(range(1, 401))


def test_a_stop_reaches_the_ranks_which_save(supervise: Supervise, tiny_folder: Path, tmp_path: Path) -> None:
    directory = tmp_path / "stopped"
    config = settings_in(tiny_folder, directory, training={"total_steps": 1_000_000, "gap_every": None}, checkpoints={"every": 1_000_000})
    (line,) = commands_run_by("test_supervise")
    line = re.sub(r"configs/\w+\.json", str(config), line).replace("deepspeed ", f"{DEEPSPEED} --master_port {free_port()} ")
    process = supervise(*shlex.split(line)[2:])
    wait_for(lambda: (directory / "metrics.jsonl").exists(), 120)
    os.kill(process.pid, signal.SIGTERM)
    output = process.end()
    assert process.returncode == 3, output
    assert "stopped on request (SIGTERM)" in output
    assert newest_step(directory) > 0
    assert run_state(directory) == "stopped"


def test_a_mistake_ends_at_once(supervise: Supervise, tiny_folder: Path, tmp_path: Path) -> None:
    config = settings_in(tiny_folder, tmp_path / "mistake")
    for mistake in ("model.hiden=3", "tokens.directory=nowhere"):  # the supervisor's reading of the config; the training's own
        process = supervise("--", sys.executable, "launch/train.py", "--config", str(config), "--set", mistake)
        output = process.end()
        assert process.returncode == 2, output
        assert output.count("lm1b: error:") == 1
        assert "starting it again" not in output


def test_it_gives_up_without_progress(supervise: Supervise, tmp_path: Path) -> None:
    process = supervise(
        "--run", str(tmp_path / "none"), "--first-wait", "0.01", "--tries", "3", "--", sys.executable, "-c", "raise SystemExit(7)"
    )
    output = process.end()
    assert process.returncode == 1, output
    assert output.count("status 7") == 2
    assert "3 starts in a row" in output


def test_processes_that_outlive_the_command_are_ended_before_the_next_start(supervise: Supervise, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {pid_file}"
    arguments = ["--run", str(tmp_path / "none"), "--tries", "1", "--patience", "1", "--", "sh", "-c", script]
    process = supervise(*arguments)
    output = process.end()
    assert process.returncode == 1, output
    assert "outlived the command" in output
    left = int(pid_file.read_text())
    wait_for(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE, 10)
