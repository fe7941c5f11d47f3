"""Saving a checkpoint and reading it back, while nothing else happens, beside what the disk itself does with as many bytes."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from lm1b.distributed import Ranks
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.checkpoints.saving import CheckpointSaver
from lm1b.training.resume import read_tables
from lm1b.training.step.training_step import TrainingStep

BLOCK_BYTES = 8 << 20
REPEATS = 2


def barrier(ranks: Ranks) -> None:
    """Wait until every rank is here."""
    if ranks.size > 1:
        dist.barrier()


def seconds_of(action: Callable[[], object], ranks: Ranks) -> float:
    """Wall seconds until every rank has done it."""
    barrier(ranks)
    started_at = time.perf_counter()
    action()
    barrier(ranks)
    return time.perf_counter() - started_at


def begin(step: TrainingStep, saver: CheckpointSaver) -> None:
    """Begin a checkpoint as a run does."""
    saver.begin({"step": step.step, "config": {}}, step.engine.core_state(), dict(step.carry), step.tables.all())


def save(step: TrainingStep, saver: CheckpointSaver) -> Checkpoint:
    """A whole checkpoint, committed."""
    begin(step, saver)
    checkpoint = saver.finish()
    assert checkpoint is not None
    return checkpoint


def read_back(step: TrainingStep, checkpoint: Checkpoint) -> None:
    """What a resumed run reads: core, optimizer state, recurrent state, and the tables into their place."""
    for kind in ("weights", "ema", *(f"optimizer/{key}" for key in checkpoint.optimizer_keys())):
        checkpoint.core(kind)
    checkpoint.carry()
    read_tables(checkpoint, step.ranks, step.tables.all())


def measure_checkpoint(step: TrainingStep, folder: Path) -> dict[str, Any]:
    """One rank's checkpoint saved in the foreground, verified and read back, by turns with a plain file of its size. Wall seconds, medians.

    A read is from the page cache, for the checkpoint and the plain file alike. Raises UserError where the disk is full.
    """
    assert step.ranks.size == 1
    saver = CheckpointSaver(folder, step.ranks, in_background=False)
    num_bytes, rounds = 0, []
    for _ in range(REPEATS):
        num_bytes, seconds = _one_round(step, saver, folder / "plain")
        rounds.append(seconds)
    medians = {name: statistics.median(seconds[name] for seconds in rounds) for name in rounds[0]}
    return {
        "vocabulary": step.tables.input.num_rows,
        "checkpoint_mb": round(num_bytes / 1e6, 1),
        "repeats": REPEATS,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "mb_per_second": {name: round(num_bytes / 1e6 / value) for name, value in medians.items()},
    }


def _one_round(step: TrainingStep, saver: CheckpointSaver, plain: Path) -> tuple[int, dict[str, float]]:
    """-> a checkpoint's bytes, and seconds of everything; no file is left."""
    ranks, found = step.ranks, list[Checkpoint]()
    seconds = {"save": seconds_of(lambda: found.append(save(step, saver)), ranks)}
    (checkpoint,) = found
    num_bytes = checkpoint_bytes(checkpoint)
    seconds["plain_write"] = seconds_of(lambda: write_plain(plain, num_bytes), ranks)
    seconds["verify"] = seconds_of(lambda: checkpoint.verify(ranks.rank, ranks.size), ranks)
    seconds["read"] = seconds_of(lambda: read_back(step, checkpoint), ranks)
    seconds["plain_read"] = seconds_of(lambda: read_plain(plain), ranks)
    shutil.rmtree(checkpoint.path)
    plain.unlink()
    return num_bytes, seconds


def checkpoint_bytes(checkpoint: Checkpoint) -> int:
    """Of all its files, the manifest left out."""
    return sum(entry["bytes"] for entry in checkpoint.manifest().values())


def write_plain(path: Path, num_bytes: int) -> None:
    """A file of so many bytes that do not compress, flushed to the disk."""
    block = os.urandom(BLOCK_BYTES)
    with open(path, "wb", buffering=0) as file:
        for start in range(0, num_bytes, BLOCK_BYTES):
            file.write(memoryview(block)[: min(BLOCK_BYTES, num_bytes - start)])
        os.fsync(file.fileno())


def read_plain(path: Path) -> None:
    """All of it, into memory that is used again."""
    block = bytearray(BLOCK_BYTES)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(block):
            pass
