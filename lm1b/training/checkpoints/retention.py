"""Which checkpoints a run keeps: the newest, every so many steps, the best, and whatever is being read."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Generator
from pathlib import Path

from lm1b.config import CheckpointsConfig, Config
from lm1b.errors import UserError
from lm1b.processes import host_name
from lm1b.training.checkpoints.checkpoint import MANIFEST, Checkpoint, list_checkpoints
from lm1b.training.run_folder import RunFolder

LEASE_SECONDS = 600.0  # a lease from another host that is older than this was left by a reader that died
LONGEST_LEASE_SECONDS = 86_400.0  # on this host, where a process of that number lives: it may be another one by now


@contextlib.contextmanager
def lease(checkpoint: Checkpoint) -> Generator[None]:
    """Keep retention away while this process reads. Raises UserError where the checkpoint has gone already.

    Who may not write there, as in somebody else's run, reads without.
    """
    leases = checkpoint.path.parent / ".leases"
    mark = leases / f"{checkpoint.path.name}.{os.getpid()}@{host_name()}"
    has_mark = False
    try:
        leases.mkdir(exist_ok=True)
        mark.touch()
        has_mark = True
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    try:
        if not (checkpoint.path / MANIFEST).exists():
            raise UserError(f"{checkpoint.path}: the checkpoint has been deleted meanwhile")
        yield
    finally:
        if has_mark:
            mark.unlink(missing_ok=True)


def is_leased(checkpoint: Checkpoint) -> bool:
    """Whether a living reader holds the checkpoint: its process on this host, or one on another host not long ago."""
    name = checkpoint.path.name
    for mark in (checkpoint.path.parent / ".leases").glob(f"{name}.*"):
        pid, _, host = mark.name.removeprefix(f"{name}.").partition("@")
        if host == host_name() and pid.isdecimal():
            limit = LONGEST_LEASE_SECONDS if Path(f"/proc/{pid}").exists() else 0.0
        else:
            limit = LEASE_SECONDS
        with contextlib.suppress(FileNotFoundError):  # its reader has just ended
            if time.time() - mark.stat().st_mtime < limit:
                return True
    return False


def best_to_keep(config: Config) -> int | None:
    """Step of the run's best result so far, where it is to be kept."""
    return RunFolder(config.run.directory).best_step(config) if config.checkpoints.keep_best else None


def steps_to_keep(steps: list[int], settings: CheckpointsConfig, best_step: int | None) -> set[int]:
    """Of steps that rise, those that retention keeps: the newest, the multiples of keep_every, the best."""
    kept = set(steps[-settings.keep_last :])
    return kept | {step for step in steps if step == best_step or (settings.keep_every is not None and step % settings.keep_every == 0)}


def apply_retention(run_directory: Path, settings: CheckpointsConfig, best_step: int | None) -> None:
    """Delete what need not be kept and is not being read; see `steps_to_keep`."""
    checkpoints = list_checkpoints(run_directory)
    kept = steps_to_keep([checkpoint.step for checkpoint in checkpoints], settings, best_step)
    for checkpoint in checkpoints:
        if checkpoint.step not in kept and not is_leased(checkpoint):
            checkpoint.delete()
