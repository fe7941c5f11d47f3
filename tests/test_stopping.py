"""What ends a run before its end: signals, a launcher that goes, ranks that die or hang, full disks. All done to real processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from command_runs import DEEPSPEED, run_script
from forked import ForkedProcess, Process, end_of_all, run_each
from readme_commands import commands_run_by, run_line
from tiny import REPOSITORY, environment, environments, run_ranks, settings_in
from waiting import wait_for

from lm1b.files import read_json_lines
from lm1b.processes import RankProcess
from lm1b.training.checkpoints.checkpoint import list_checkpoints
from lm1b.training.run_state import endings, run_state, training_ranks
from lm1b.training.stopping import default_signals, ignore_signals

ENDLESS = 1_000_000


class Started:
    """Real processes of a tiny run of two ranks, and what they say: forks that nobody has launched, or DeepSpeed's launcher."""

    def __init__(self, config: Path, directory: Path, launched: bool = False, **variables: str):
        self.config, self.directory, self.output = config, directory, directory.with_suffix(".output")
        self.file = open(self.output, "w")  # noqa: SIM115
        self.processes: list[Process] = []
        places = environments(2)
        self.port = places[0]["MASTER_PORT"]
        files = {"stdout": self.file, "stderr": self.file, "cwd": REPOSITORY}
        variables["PYTHONUNBUFFERED"] = "1"
        if launched:
            command = [DEEPSPEED, "--num_gpus", "2", "--master_port", self.port, "launch/train.py", "--config", str(config)]
            own = {"env": environment(**variables), "stdin": subprocess.DEVNULL, "start_new_session": True}
            self.processes.append(subprocess.Popen(command, **own, **files))
        else:
            for place in places:
                self.processes.append(ForkedProcess("launch/train.py", ["--config", str(config)], env={**place, **variables}, **files))

    def ranks(self, after_steps: int = 5) -> list[RankProcess]:
        """Its ranks, once it has logged that many steps."""
        wait_for(lambda: len(read_json_lines(self.directory / "metrics.jsonl")) >= after_steps, 180, self.text)
        return training_ranks(self.directory)

    def text(self) -> str:
        return self.output.read_text()

    def errors(self) -> list[str]:
        return [line for line in self.text().splitlines() if "lm1b: error:" in line]

    def end(self, timeout: float = 60) -> list[int]:
        """Wait for the end of every process; their statuses."""
        return [process.wait(timeout) for process in self.processes]

    def clean_up(self) -> None:
        for member in training_ranks(self.directory):
            member.send(signal.SIGKILL)
        for process in self.processes:
            if isinstance(process, subprocess.Popen):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)
            else:
                process.kill()
        self.file.close()


def all_gone(ranks: list[RankProcess]) -> bool:
    return all(rank.condition() == "gone" for rank in ranks)


Start = Callable[..., Started]


@pytest.fixture
def start(tiny_folder: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts runs in a directory of their own, and leaves no process behind."""
    started: list[Started] = []

    def begin(name: str = "run", *, launched: bool = False, every: int = ENDLESS, variables: dict[str, str] | None = None) -> Started:
        config = settings_in(
            tiny_folder, tmp_path / name, training={"total_steps": ENDLESS, "gap_every": None}, checkpoints={"every": every}
        )
        started.append(Started(config, tmp_path / name, launched, **(variables or {})))
        return started[-1]

    yield begin
    for one in started:
        one.clean_up()


def test_a_runner_that_is_terminated_leaves_no_orphans_and_its_ranks_save(start: Start) -> None:
    run = start(launched=True)
    ranks = run.ranks()
    below = {process.pid for process in psutil.Process(run.processes[0].pid).children(recursive=True)}
    assert [rank.rank for rank in ranks] == [0, 1]
    assert {rank.pid for rank in ranks} <= below
    os.kill(run.processes[0].pid, signal.SIGTERM)  # the runner alone: DeepSpeed passes nothing on
    run.end()
    wait_for(lambda: all_gone(ranks), 30, run.text)
    assert "stopped because its launcher has gone" in run.text()
    assert endings(run.directory) == ["launcher gone"]
    (saved,) = list_checkpoints(run.directory)
    assert saved.step >= 5
    assert not run.errors()
    assert run_state(run.directory) == "stopped"
    assert not (run.directory / "training.pid").exists()


def test_a_launcher_that_is_killed_leaves_no_orphans_and_its_ranks_save(start: Start) -> None:
    run = start(launched=True)
    ranks = run.ranks()
    (launcher,) = psutil.Process(run.processes[0].pid).children()
    launcher.kill()
    wait_for(lambda: all_gone(ranks), 30, run.text)
    assert endings(run.directory) == ["launcher gone"]
    assert len(list_checkpoints(run.directory)) == 1


def test_a_signal_to_one_rank_stops_all_with_status_0_and_those_right_after_it_count_as_the_same(start: Start) -> None:
    run = start()
    ranks = run.ranks()
    ranks[1].send(signal.SIGINT)
    for rank in ranks:
        rank.send(signal.SIGTERM)
    assert run.end() == [0, 0], run.text()
    assert run.text().count("stopped on request (SIG") == 1
    assert endings(run.directory) == ["stopped"]
    assert len(list_checkpoints(run.directory)) == 1
    assert run_state(run.directory) == "stopped"
    assert "Traceback" not in run.text()


@pytest.mark.parametrize(("killed", "launched"), [(0, False), (1, True)])
def test_a_killed_rank_is_named_by_the_other(start: Start, killed: int, launched: bool) -> None:
    shared_memory = set(os.listdir("/dev/shm"))
    run = start(launched=launched, every=3)
    ranks = run.ranks()
    wait_for(lambda: list_checkpoints(run.directory), 60, run.text)
    started_at = time.monotonic()
    ranks[killed].send(signal.SIGKILL)
    statuses = run.end()
    assert time.monotonic() - started_at < 30
    assert 0 not in statuses
    (line,) = run.errors()
    assert f"rank {killed} (pid {ranks[killed].pid} on {ranks[killed].host}) has died, so rank {1 - killed} ends too" in line
    assert f"the newest checkpoint is {list_checkpoints(run.directory)[-1].path}" in line
    assert "Traceback" not in run.text()
    assert all_gone(ranks)
    assert run_state(run.directory) == "dead"
    assert not [name for name in set(os.listdir("/dev/shm")) - shared_memory if run.port in name]  # others may run here too


FAILING = """
import sys, torch, torch.distributed as dist
from lm1b.peers import naming_the_guilty
from lm1b.training.engine.process_group import start_ranks
ranks = start_ranks()
with naming_the_guilty(ranks.peers, lambda: "go on"):
    if ranks.rank == int(sys.argv[1]):
        raise KeyError("a mistake of ours")
    while True:
        dist.all_reduce(torch.ones(1))
"""


@pytest.mark.parametrize("failing", [0, 1])
def test_a_ranks_own_error_is_told_by_the_others_in_one_line(failing: int) -> None:
    ended = run_each([["-c", FAILING, str(failing)]] * 2, environments(2), [REPOSITORY] * 2)
    assert [rank.returncode for rank in ended] == [1, 1], ended
    guilty, other = ended[failing].stderr, ended[1 - failing].stderr
    assert "KeyError: 'a mistake of ours'" in guilty
    (line,) = [line for line in other.splitlines() if "lm1b: error:" in line]
    assert f"rank {failing} (pid {ended[failing].pid}" in line
    assert "has failed: KeyError: 'a mistake of ours', so rank" in line
    assert "Traceback" not in other


def test_a_hung_rank_is_named_after_the_time_limit(start: Start) -> None:
    run = start(variables={"LM1B_TIMEOUT_SECONDS": "4"})
    ranks = run.ranks()
    ranks[1].send(signal.SIGSTOP)
    assert run.processes[0].wait(25) == 1
    (line,) = run.errors()
    assert f"{ranks[1]} is stopped and does not answer" in line
    ranks[1].send(signal.SIGCONT)
    assert run.processes[1].wait(25) == 1  # it finds the others gone
    assert "rank 0" in run.errors()[1]


def test_the_hung_keeper_of_the_meeting_point_is_named(start: Start) -> None:
    run = start(variables={"LM1B_TIMEOUT_SECONDS": "4"})
    ranks = run.ranks()
    ranks[0].send(signal.SIGSTOP)
    assert run.processes[1].wait(25) == 1
    (line,) = run.errors()
    assert f"{ranks[0]} is stopped and does not answer" in line


def test_the_next_start_notices_an_unclean_end_and_a_second_start_is_refused_by_name(start: Start) -> None:
    run = start(every=3)
    ranks = run.ranks()
    second = run_script("launch/train.py", "--config", str(run.config))
    assert second.returncode == 2
    assert f"another training is at work here: pid {ranks[0].pid} on {ranks[0].host} since" in second.stderr
    for rank in ranks:
        rank.send(signal.SIGKILL)
    run.end()
    assert run_state(run.directory) == "dead"
    again = start()
    wait_for(lambda: "going on at step" in again.text(), 60, again.text)
    texts = [line["text"] for line in read_json_lines(run.directory / "events.jsonl")]
    assert any(f"(pid {ranks[0].pid} on {ranks[0].host}, started" in text and "did not end cleanly" in text for text in texts)
    state, stop = (line.replace("runs/irnn_lm", str(run.directory)) for line in commands_run_by("test_stopping"))
    assert run_line(state).stdout == "running\n"
    assert run_line(stop).stdout == "stopped\n"
    assert again.end() == [0, 0]


def test_output_that_nobody_reads_any_more_does_not_end_the_run(tiny_folder: Path, tmp_path: Path) -> None:
    config = settings_in(tiny_folder, tmp_path / "pipe", training={"total_steps": 40})
    reading, writing = os.pipe()
    with open(writing, "wb") as pipe:
        process = ForkedProcess("launch/train.py", ["--config", str(config)], env=environment(), cwd=REPOSITORY, stdout=pipe, stderr=pipe)
    os.close(reading)
    assert end_of_all([process], 60) == [0]
    assert run_state(tmp_path / "pipe") == "finished"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small file system needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("full", ["metrics.jsonl", "tensorboard"])
def test_logs_on_a_full_disk_stop_all_ranks_with_one_line(start: Start, small_disk: Path, tmp_path: Path, full: str) -> None:
    # The run lies on a roomy disk, its logs on one that is going to be full.
    directory = tmp_path / "logs"
    directory.mkdir()
    target = small_disk / full
    if full == "tensorboard":
        target.mkdir()
    else:
        target.touch()
    (directory / full).symlink_to(target)
    run = start("logs")
    wait_for(lambda: (directory / "metrics.jsonl").exists() and len(read_json_lines(directory / "metrics.jsonl")) >= 5, 60, run.text)
    with contextlib.suppress(OSError), open(small_disk / "filler", "wb") as filler:
        while True:
            filler.write(b"x" * 4096)
            filler.flush()
    assert run.end(90) == [2, 2], run.text()
    (line,) = run.errors()
    assert "No space left on device" in line
    assert str(directory / full) in line
    assert len(list_checkpoints(directory)) == 1
    assert "Traceback" not in run.text()


TRAINED_THROUGH = """
import os, sys
from lm1b.config import load_config
from lm1b.training.loop import train
train(load_config(sys.argv[1], []))
names = {open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")}
assert not [name for name in names if "gloo" in name], names
"""


def test_no_thread_of_a_process_group_is_left_to_abort_the_exit(tiny_folder: Path, tmp_path: Path) -> None:
    config = settings_in(tiny_folder, tmp_path / "through", training={"total_steps": 3, "gap_every": None})
    run_ranks(["-c", TRAINED_THROUGH, str(config)], 2)


@pytest.mark.parametrize("at_hangup", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_closed_terminal_means_after_the_training_what_it_meant_before(at_hangup: signal.Handlers) -> None:
    """Under nohup it means nothing: who waits for the evaluator goes on."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        ignore_signals()
        assert {signal.getsignal(number) for number in numbers} == {signal.SIG_IGN}
        default_signals(at_hangup)
        assert [signal.getsignal(number) for number in numbers] == [signal.default_int_handler, signal.SIG_DFL, at_hangup]
    finally:
        for number, action in before.items():
            signal.signal(number, action)
