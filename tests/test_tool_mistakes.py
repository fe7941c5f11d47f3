"""What tools do with arguments, files, hosts and runs that are not as they should be: one line that says so, at once."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import check_hosts
import fault_rig
import numpy as np
import psutil
import pytest
import supervise
from parts.benchmark import everything, resume
from parts.check_hosts.remote import Remote, Unreachable, listening
from parts.cluster import demo, faults
from parts.cluster.harm import Outcome, Trial
from parts.harness.counts import read_counts
from parts.harness.results import check_can_write

from lm1b.errors import UserError
from lm1b.processes import RankProcess, write_processes
from lm1b.training.run_folder import RunFolder
from lm1b.training.run_state import RunLock


def parsed(add_arguments: Callable[[argparse.ArgumentParser], None], *words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


# Arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "shapes"), [("cpu", ["biglstm"]), ("cpu", ["lstm_512", "biglstm"]), ("cuda", ["lstm_512"])])
def test_a_shape_that_is_not_measured_on_the_device_is_refused(monkeypatch: pytest.MonkeyPatch, device: str, shapes: list[str]) -> None:
    monkeypatch.setattr(everything.torch.cuda, "is_available", lambda: True)
    arguments = parsed(everything.add_arguments, "--device", device, "--shapes", *shapes)
    with pytest.raises(UserError, match=rf"--shapes {shapes[-1]}: not measured on --device {device}; there: .*lstm_2048_512"):
        everything.check_arguments(arguments)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "0"], r"--ranks \(=0\) must be at least 1"),
        (["--kills", "-1"], r"--kills \(=-1\) must be at least 0"),
        (["--end-to-end", "-2"], r"--end-to-end \(=-2\) must be at least 0"),
        (["--ranks", "1", "--phases", "all-to-all"], "one rank alone sends nothing; give --ranks 2, or another phase"),
        (["--json", "."], "--json .: cannot be written"),
    ],
)
def test_the_fault_rig_says_at_once_what_it_cannot_do(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        fault_rig.parse_arguments(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--hosts", "1"], "expected at least 2"), (["--hosts", "3", "--on", "4", "2", "0"], "--on 4 0: expected hosts from 1 to 3")],
)
def test_a_host_that_is_not_there_cannot_be_harmed(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        faults.run(parsed(faults.add_arguments, *words))


def test_a_file_that_cannot_be_written_is_found_before_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (None, tmp_path / "out.json", tmp_path / "new" / "folder" / "out.json"):
        check_can_write("--json", path)
    for path in (tmp_path, tmp_path / "file" / "out.json"):
        with pytest.raises(UserError, match=r"--json .*: cannot be written"):
            check_can_write("--json", path)


# Files -----------------------------------------------------------------------------------------------------------


def test_a_file_that_holds_no_counts_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.npy").write_text("17 counts")
    np.savez(tmp_path / "several.npz", counts=np.ones(3))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=r"expected a .npy file of word counts"):
            read_counts(path)


def test_a_training_that_fails_without_a_word_is_told_by_its_status() -> None:
    with pytest.raises(UserError, match=r"has failed \(status 7\): it said nothing"):
        resume._run([sys.executable, "-c", "raise SystemExit(7)"], [])  # pyright: ignore[reportPrivateUsage]


def test_the_demo_removes_its_own_last_run_and_nobody_else_s(tmp_path: Path) -> None:
    clear, run = demo._clear_last_run, tmp_path / "run"  # pyright: ignore[reportPrivateUsage]
    clear(tmp_path)
    run.mkdir()
    (run / "metrics.jsonl").touch()
    for written in (None, [], {"run": {"directory": "elsewhere"}}):
        if written is not None:
            (tmp_path / "config.json").write_text(json.dumps(written))
        with pytest.raises(UserError, match="is there, and not from this command; give another --folder"):
            clear(tmp_path)
        assert (run / "metrics.jsonl").exists()
    (tmp_path / "config.json").write_text(json.dumps({"run": {"directory": str(run)}}))
    clear(tmp_path)
    assert not run.exists()


# Hosts -----------------------------------------------------------------------------------------------------------


def says(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_a_shell_prints_before_is_passed_over() -> None:
    with says("""echo welcome; echo 17; echo '{"listening": 29500}'; sleep 60""") as process:
        assert listening(process, Remote("host")) == {"listening": 29500}
        process.kill()


def test_a_host_that_does_not_listen_is_told_and_not_waited_for() -> None:
    with says("echo welcome; echo bad luck >&2; exit 3") as process, pytest.raises(Unreachable, match="status 3: bad luck"):
        listening(process, Remote("host"))
    with says("echo welcome; exec sleep 60") as process, pytest.raises(Unreachable, match="no answer within"):
        listening(process, Remote("host"), seconds=0.3)


def test_a_line_at_which_the_launcher_dies_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "environment"
    monkeypatch.setenv("DS_ENV_FILE", str(file))
    file.write_text("GLOO_SOCKET_IFNAME=eth7\n\nexport\nA=b=c\n")
    exports, findings = check_hosts.launcher_exports()
    assert (exports["GLOO_SOCKET_IFNAME"], exports["A"]) == ("eth7", "b=c")
    assert [finding.text.split(",")[0] for finding in findings] == [f"{file}: line {number} is no NAME=value" for number in (2, 3)]
    assert not any(finding.is_note for finding in findings)


def test_a_training_that_hangs_without_the_harmed_host_is_an_outcome(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def hang(*_: Any) -> None:
        raise subprocess.TimeoutExpired("deepspeed", 120.0, output=b"waiting for node2\n")

    trial, outcome = object.__new__(Trial), Outcome("link cut", "node2")
    trial.run, trial.config, trial.cluster = tmp_path, tmp_path / "x.json", SimpleNamespace(hostfile="hosts")  # type: ignore[assignment]
    trial.go_on(outcome, [SimpleNamespace(name="node1", run=hang)])  # type: ignore[list-item]
    assert outcome.problem == "still at work 120 s after it was started again: waiting for node2\n"


# Runs ------------------------------------------------------------------------------------------------------------


def test_a_run_whose_ranks_are_still_starting_is_stopped_as_soon_as_they_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    write_processes(folder.pid, [RankProcess(0, RankProcess.here(0).host, 2**22 - 1, 1.0)], "")  # of a training that died here
    lock = RunLock(tmp_path)
    with subprocess.Popen(["sleep", "60"]) as rank:

        def start() -> None:
            time.sleep(1.0)
            write_processes(folder.pid, [RankProcess(0, RankProcess.here(0).host, rank.pid, psutil.Process(rank.pid).create_time())], "")

        thread = threading.Thread(target=start)
        thread.start()
        try:
            assert supervise.stop_run(tmp_path) == 0
        finally:
            thread.join()
            rank.kill()
    assert rank.returncode == -15
    lock.release()
    assert capsys.readouterr().out == "running\n"  # this process holds the lock, as a rank that saves would
