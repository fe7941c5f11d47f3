"""Who trains in a run directory and how the last training there ended: the one place that supervisor, evaluator and users ask.

training.lock   held (flock) by the first rank while a training is at work; names its owner, and is emptied at an orderly end
training.pid    host and process id of every rank, from the first step's eve to an orderly end
events.jsonl    a line with `ended` for every orderly end, as far as it can be written: finished, stopped, launcher gone, logging failed,
                failed (by a mistake of the user, as a learning rate that is too high)
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO, Literal

from lm1b.config import Config
from lm1b.console import now
from lm1b.errors import UserError
from lm1b.files import read_json_lines, try_lock
from lm1b.processes import RankProcess, read_processes
from lm1b.training.checkpoints.checkpoint import Checkpoint, list_checkpoints
from lm1b.training.run_folder import RunFolder

RunState = Literal["finished", "stopped", "running", "dead", "none"]
RETRY_SECONDS = 1.0  # who asks for the state of a run holds its lock for an instant


class RunLock:
    """Holds a run directory for one training. Raises UserError that names the owner where another one is at work there."""

    def __init__(self, run_directory: Path):
        directory = Path(run_directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open(RunFolder(directory).lock, "a+b")  # noqa: SIM115 (held until the run ends)
        owner = _owner_in(self._file)
        if not try_lock(self._file, RETRY_SECONDS):
            self._file.close()
            who = f": pid {owner['pid']} on {owner['host']} since {owner.get('started_at')}" if owner else ""
            raise UserError(f"{directory}: another training is at work here{who}; wait for it, or use another run.directory")
        owner = _owner_in(self._file)
        self.stale_owner: str | None = None  # what the last training left, where it did not end in order
        if owner is not None:
            self.stale_owner = f"pid {owner['pid']} on {owner['host']}, started {owner.get('started_at')}"
        self._write(json.dumps({**RankProcess.here(0).as_json(), "started_at": now()}).encode() + b"\n")

    def _write(self, content: bytes) -> None:
        self._file.truncate(0)
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())  # for other hosts to see

    def release(self) -> None:
        """An orderly end: the directory is free and names no owner."""
        if not self._file.closed:
            with contextlib.suppress(OSError):
                self._write(b"")
            with contextlib.suppress(OSError):
                self._file.close()


def _is_held(run_directory: Path) -> bool:
    """Whether a living training holds the directory, on any host where the file system's locks reach over hosts."""
    try:
        with open(RunFolder(run_directory).lock, "rb") as file:
            return not try_lock(file, 0.0, shared=True)
    except OSError:
        return False


def _owner_in(file: BinaryIO) -> dict[str, Any] | None:
    file.seek(0)
    with contextlib.suppress(ValueError, RecursionError):
        owner = json.loads(file.read(4096))
        if RankProcess.from_json(owner):
            return owner
    return None


def lock_owner(run_directory: Path) -> RankProcess | None:
    """The process that training.lock names, alive or not."""
    try:
        with open(RunFolder(run_directory).lock, "rb") as file:
            return RankProcess.from_json(_owner_in(file))
    except OSError:
        return None


def training_ranks(run_directory: Path) -> list[RankProcess]:
    """The processes that train here, or that did and left no word of their end; empty where there are none."""
    return read_processes(RunFolder(run_directory).pid)


def training_has_finished(checkpoints: list[Checkpoint], config: Config) -> bool:
    """Whether the last checkpoint is the end of the training that `config` asks for (it may have been made longer since)."""
    if not checkpoints:
        return False
    try:
        state = checkpoints[-1].state()
    except UserError:
        return False
    length = (config.training.epochs, config.training.total_steps)
    trained = state.get("config", {}).get("training", {})
    return bool(state.get("finished")) and length == (trained.get("epochs", length[0]), trained.get("total_steps", length[1]))


def run_state(run_directory: Path, config: Config | None = None) -> RunState:
    """`running`, `finished`, `stopped` (ended in order before its end), `dead` (its processes left no word) or `none` (no run here).

    config: what the training is to be, where that may differ from the directory's own. Raises UserError for a broken config.json.
    """
    directory = Path(run_directory)
    owner, ranks = lock_owner(directory), training_ranks(directory)
    if _is_held(directory) or any(rank.condition() in ("alive", "stopped") for rank in ranks):
        return "running"
    folder = RunFolder(directory)
    if not folder.config.exists():
        return "dead" if owner else "none"
    if config is None:
        config = folder.read_config()
    if training_has_finished(list_checkpoints(directory), config):
        return "finished"
    return "dead" if owner or ranks else "stopped"


def endings(run_directory: Path) -> list[str]:
    """How the trainings here have ended, the latest last; those that died have no line."""
    return [str(line["ended"]) for line in read_json_lines(RunFolder(run_directory).events) if "ended" in line]


def newest_step(run_directory: Path) -> int:
    """Step of the newest complete checkpoint, -1 where there is none."""
    checkpoints = list_checkpoints(run_directory)
    return checkpoints[-1].step if checkpoints else -1


def where_to_go_on(run_directory: Path) -> str:
    """The newest checkpoint and what to do, in a few words."""
    checkpoints = list_checkpoints(run_directory)
    if not checkpoints:
        return "there is no checkpoint yet; the same command starts again"
    return f"the newest checkpoint is {checkpoints[-1].path}; the same command goes on from there"


def send_to_ranks(run_directory: Path, number: int) -> list[RankProcess]:
    """Send a signal to the ranks of this host; those that got it."""
    own = os.getpid()
    return [member for member in training_ranks(run_directory) if member.pid != own and member.send(number)]
