"""The watcher: every checkpoint scored once, an end whatever becomes of the trainer."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from made_run import made_checkpoint, made_config, made_tokens, run_of
from tiny import environment

from lm1b.config import Config, override_config
from lm1b.errors import UserError
from lm1b.evaluation.scoring.evaluator import Evaluator
from lm1b.evaluation.scoring.watch import watch
from lm1b.evaluation.trained import open as open_module
from lm1b.files import read_json_lines, write_json
from lm1b.processes import RankProcess, write_processes
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.run_folder import RunFolder
from lm1b.training.run_state import RunLock, run_state

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made_tokens(tmp_path / "tokens")
    return made_config(tmp_path)


def watched(config: Config, **arguments: Any) -> tuple[list[int], str]:
    """Steps in the order in which a watcher scored them, and why it ended."""
    steps: list[int] = []
    reason = watch(
        Evaluator(run_of(config), config),
        lambda evaluation: steps.append(evaluation.step),
        **{"poll_seconds": 0.05, "grace_seconds": 0.0} | arguments,
    )
    return steps, reason


def leave_mark(config: Config, pid: int, host: str | None = None) -> None:
    created_at = psutil.Process(pid).create_time() if psutil.pid_exists(pid) else 0.0
    write_processes(RunFolder(run_of(config)).pid, [RankProcess(0, host or socket.gethostname(), pid, created_at)], "now")


def gone_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_newest_first_and_the_end_of_training_ends_it(config: Config) -> None:
    for step in (10, 20):
        made_checkpoint(config, step)
    made_checkpoint(config, 30, finished=True)
    assert watched(config) == ([30, 20, 10], "the training has ended and every checkpoint is scored")
    lines = read_json_lines(run_of(config) / "evaluations.jsonl")
    assert [line["step"] for line in lines] == [30, 20, 10]
    assert {line["split"] for line in lines} == {"validation"}
    assert list((run_of(config) / "tensorboard" / "evaluation").iterdir())
    # What is scored is not scored again; no lease stays behind.
    assert watched(config)[0] == []
    assert not any((run_of(config) / "checkpoints" / ".leases").iterdir())


def test_other_settings_are_other_results(config: Config) -> None:
    made_checkpoint(config, 30, finished=True)
    assert watched(config)[0] == [30]
    assert watched(override_config(config, ["evaluation.state=reset"]))[0] == [30]
    assert watched(override_config(config, ["evaluation.weights=raw"]))[0] == [30]
    assert watched(config)[0] == []


def test_a_dead_trainer_is_told(config: Config) -> None:
    made_checkpoint(config, 10)
    leave_mark(config, gone_pid())
    steps, reason = watched(config, grace_seconds=60.0)
    assert steps == [10]
    assert "died" in reason


def test_a_trainer_that_stopped_on_request_ends_it(config: Config) -> None:
    made_checkpoint(config, 10)
    steps, reason = watched(config)
    assert steps == [10]
    assert "no training is running" in reason


def test_checkpoints_that_come_while_it_watches(config: Config) -> None:
    made_checkpoint(config, 10)
    leave_mark(config, os.getpid())

    def train() -> None:
        for scored_before, step in ((1, 20), (2, 30)):  # each when the one before is scored: the newest would be first else
            while len(RunFolder(run_of(config)).read_evaluations()) < scored_before:
                time.sleep(0.05)
            made_checkpoint(config, step, finished=step == 30)
        RunFolder(run_of(config)).pid.unlink()

    trainer = threading.Thread(target=train)
    trainer.start()
    steps, reason = watched(config)
    trainer.join()
    assert steps == [10, 20, 30]
    assert "has ended" in reason


def test_training_made_longer_is_not_at_its_end(config: Config) -> None:
    made_checkpoint(config, 30, finished=True)
    longer = override_config(config, ["training.total_steps=40"])
    write_json(run_of(config) / "config.json", {"config": longer.as_json(), "history": []})
    leave_mark(config, os.getpid())

    def train() -> None:
        made_checkpoint(longer, 40, finished=True)
        RunFolder(run_of(config)).pid.unlink()

    thread = threading.Timer(0.5, train)
    thread.start()
    steps, reason = watched(longer)
    thread.join()
    assert steps == [30, 40]
    assert "has ended" in reason


@pytest.mark.parametrize("reader", ["lease", "verify", "read_table", "core"])
def test_a_checkpoint_deleted_meanwhile_leads_on_to_the_next(config: Config, monkeypatch: pytest.MonkeyPatch, reader: str) -> None:
    made_checkpoint(config, 10)
    made_checkpoint(config, 20)
    made_checkpoint(config, 30, finished=True)
    place: Any = open_module if reader == "lease" else Checkpoint
    original = getattr(place, reader)

    def delete_and_read(checkpoint: Checkpoint, *arguments: Any) -> Any:
        if checkpoint.step == 20:
            checkpoint.delete()
        return original(checkpoint, *arguments)

    monkeypatch.setattr(place, reader, delete_and_read)
    assert watched(config)[0] == [30, 10]


def test_one_deleted_between_two_looks_at_a_file_is_a_user_s_error(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = made_checkpoint(config, 10)

    def digest(path: Path) -> str:
        checkpoint.delete()
        return str(len(path.read_bytes()))

    monkeypatch.setattr("lm1b.training.checkpoints.checkpoint.digest_of_file", digest)
    with pytest.raises(UserError, match="deleted meanwhile"):
        Evaluator(run_of(config), config).score(checkpoint)


def test_a_killed_watcher_s_missing_half_is_scored(config: Config) -> None:
    both = override_config(config, ["evaluation.weights=both"])
    made_checkpoint(both, 20)
    made_checkpoint(both, 30, finished=True, ema=False)
    assert watched(both)[0] == [30, 20, 20]  # without an average there is one result
    log = run_of(config) / "evaluations.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]))
    assert [json.loads(line)["weights"] for line in lines] == ["raw", "ema", "raw"]
    assert watched(both)[0] == [20]
    assert [(line["step"], line["weights"]) for line in read_json_lines(log)] == [(30, "raw"), (20, "ema"), (20, "raw")]
    assert watched(config)[0] == []
    assert watched(override_config(config, ["evaluation.weights=raw"]))[0] == []


def test_raw_results_do_not_stand_for_averaged_ones(config: Config) -> None:
    made_checkpoint(config, 30, finished=True)
    assert watched(override_config(config, ["evaluation.weights=raw"]))[0] == [30]
    assert watched(config)[0] == [30]


def test_a_damaged_checkpoint_does_not_stop_it_but_is_told(config: Config) -> None:
    checkpoint = made_checkpoint(config, 10)
    made_checkpoint(config, 30, finished=True)
    (checkpoint.path / "core.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"step_00000010.*damaged"):
        watched(config)
    assert [line["step"] for line in read_json_lines(run_of(config) / "evaluations.jsonl")] == [30]


def test_two_watchers_take_turns(config: Config) -> None:
    made_checkpoint(config, 10)
    made_checkpoint(config, 30, finished=True)
    done: list[list[int]] = []
    threads = [threading.Thread(target=lambda: done.append(watched(config)[0])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [[], [30, 10]]


def test_the_state_that_a_watcher_goes_by(config: Config) -> None:
    assert run_state(run_of(config)) == "none"
    made_checkpoint(config, 10)
    assert run_state(run_of(config)) == "stopped"
    leave_mark(config, os.getpid())
    assert run_state(run_of(config)) == "running"
    leave_mark(config, gone_pid())
    assert run_state(run_of(config)) == "dead"
    leave_mark(config, 1, host="another-machine")
    assert run_state(run_of(config)) == "dead"  # a living one would hold the lock
    lock = RunLock(run_of(config))
    assert run_state(run_of(config)) == "running"
    lock.release()


def test_whoever_asks_for_the_state_of_a_run_does_without_torch() -> None:
    program = "import sys; import lm1b.training.run_state; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=environment(), cwd=ROOT, timeout=60).returncode == 0
