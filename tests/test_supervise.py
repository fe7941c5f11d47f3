"""The supervisor: starts a real run again until it has finished, and knows when not to."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from test_stopping import DEEPSPEED, settings_in, wait_for
from tiny import REPOSITORY, environment, free_port

from lm1b.files import read_json_lines
from lm1b.training.run_state import newest_step, run_state, training_ranks

SUPERVISE = [sys.executable, "-u", "tools/supervise.py"]
Supervise = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Starts a supervisor; ends what it has started."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        where = {"env": environment(**variables), "cwd": REPOSITORY, "stdin": subprocess.DEVNULL, "text": True}
        process = subprocess.Popen([*SUPERVISE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **where)
        started.append(process)
        return process

    yield begin
    for process in started:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.kill()
        for child in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.communicate(timeout=20)


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
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert run_state(directory) == "finished"
    assert output.count("starting it again in 0 s") == 2
    assert output.count("has died, so rank") == 2
    assert [line["step"] for line in read_json_lines(directory / "metrics.jsonl")] == list(range(1, 401))


def test_a_stop_reaches_the_ranks_which_save(supervise: Supervise, tiny_folder: Path, tmp_path: Path) -> None:
    directory = tmp_path / "stopped"
    config = settings_in(tiny_folder, directory, training={"total_steps": 1_000_000, "gap_every": None}, checkpoints={"every": 1_000_000})
    process = supervise("--", *command(config))
    wait_for(lambda: (directory / "metrics.jsonl").exists(), 90)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 3, output
    assert "stopped on request (SIGTERM)" in output
    assert newest_step(directory) > 0
    answer = subprocess.run(
        [*SUPERVISE, "--run", str(directory), "--state"], env=environment(), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert answer.stdout == "stopped\n"


def test_a_mistake_ends_at_once(supervise: Supervise, tiny_folder: Path, tmp_path: Path) -> None:
    config = settings_in(tiny_folder, tmp_path / "mistake")
    for mistake in ("model.hiden=3", "tokens.directory=nowhere"):  # the supervisor's reading of the config; the training's own
        process = supervise("--", sys.executable, "launch/train.py", "--config", str(config), "--set", mistake)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 2, output
        assert output.count("lm1b: error:") == 1
        assert "starting it again" not in output


def test_it_gives_up_without_progress(supervise: Supervise, tmp_path: Path) -> None:
    process = supervise(
        "--run", str(tmp_path / "none"), "--first-wait", "0.01", "--tries", "3", "--", sys.executable, "-c", "raise SystemExit(7)"
    )
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    assert output.count("status 7") == 2
    assert "3 starts in a row" in output


def test_processes_that_outlive_the_command_are_ended_before_the_next_start(supervise: Supervise, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 1000 & echo $! > {pid_file}"
    arguments = ["--run", str(tmp_path / "none"), "--tries", "1", "--patience", "1", "--", "sh", "-c", script]
    process = supervise(*arguments)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1, output
    assert "outlived the command" in output
    left = int(pid_file.read_text())
    wait_for(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE, 10)
