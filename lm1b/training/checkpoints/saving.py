"""Checkpoints written behind the steps, committed in one instant on all ranks.

1. `begin` empties `step_N.partial/`, takes what is small (core, recurrent state) as it is and a snapshot of the tables, and
   starts this rank's writer: every rank writes its own rows, rank 0 the rest, hashed on the way.
2. Training goes on; rows that are about to change are kept for the writer (snapshot.py).
3. `poll`, once a step, sees whether every rank has written. Then rank 0 writes the manifest from the hashes that the ranks send,
   and renames the folder: only now is it a checkpoint.
4. One save at a time: `begin` and `finish` wait for the one before. What went wrong in a writer is raised here, on every rank.

Memory: STAGING_BYTES at most beside the tables, whatever their size up to some two million rows a rank, then 4 bytes a row and matrix
more; on rank 0 a core larger than LARGEST_STAGED_CORE_BYTES comes on top, until it is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm1b.distributed import Ranks, agree, all_gather_objects, all_reduce_sum, from_first
from lm1b.errors import UserError, in_words
from lm1b.files import digest_of_file, flush_folder, megabytes, needing_space, write_json, write_sealed_json
from lm1b.model.tables import VocabularyTable
from lm1b.training.checkpoints.checkpoint import CARRY, CORE, FORMAT_VERSION, MANIFEST, STATE, Checkpoint, checkpoint_folder, table_file
from lm1b.training.checkpoints.snapshot import BLOCK_BYTES, RowPool, Snapshot
from lm1b.training.checkpoints.tensor_file import TensorFile, write_tensors

STAGING_BYTES = 256 << 20  # what a save may hold beside the tables: core, blocks, and rows kept
LARGEST_STAGED_CORE_BYTES = 64 << 20  # a larger core is written before the steps go on
POOL_BYTES = STAGING_BYTES - LARGEST_STAGED_CORE_BYTES - (32 << 20)  # the rest: blocks, small tables, one int32 a row
GUESSED_BYTES_PER_SECOND = 200e6  # of a disk that nothing has been saved to yet

Files = dict[str, dict[str, Any]]


class CheckpointSaver:
    """Saves one run's checkpoints; every rank has one and calls it at the same steps.

    in_background False: `begin` returns when the files are written. So it is where a GPU computes, wherever the tables are.
    """

    def __init__(self, run_directory: Path, ranks: Ranks, *, in_background: bool = True) -> None:
        self._run_directory, self._ranks = Path(run_directory), ranks
        self.in_background = in_background and ranks.device.type == "cpu"
        self._pool: RowPool | None = None
        self._pending: _Save | None = None
        self._bytes_per_second = GUESSED_BYTES_PER_SECOND

    @property
    def is_pending(self) -> bool:
        """Whether a save has begun that is not committed: then `poll` must be called once a step."""
        return self._pending is not None

    def why_in_foreground(self, core_parameters: int) -> str | None:
        """What of a save the steps wait for, in words; None where nothing."""
        if not self.in_background:
            return f"checkpoints are written while the steps wait: the steps run on {self._ranks.device} or the config says so"
        if 12 * core_parameters > LARGEST_STAGED_CORE_BYTES:
            return f"the core of a checkpoint ({megabytes(12 * core_parameters)} or more) is written while the steps wait"
        return None

    def estimated_seconds(self, core: int, tables: list[VocabularyTable]) -> float:
        """How long a save will take on this rank. core: its number of float32 parameters."""
        return (16 * core + sum(_table_bytes(table) for table in tables)) / self._bytes_per_second

    def begin(self, state: dict[str, Any], core: dict[str, Tensor], carry: dict[str, Tensor], tables: list[VocabularyTable]) -> None:
        """Start saving; collective. state must hold `step`; core and carry are rank 0's, and may be empty elsewhere.

        Raises UserError on every rank where one cannot write or an earlier save has failed.
        """
        self.finish()
        final = checkpoint_folder(self._run_directory, int(state["step"]))
        folder = final.with_name(final.name + ".partial")
        described = {table.name: {"num_rows": table.num_rows, "width": table.width} for table in tables}
        state = {**state, "ranks": self._ranks.size, "tables": described}
        table_bytes = sum(8 * table.num_rows * table.width for table in tables)

        def prepare() -> int:
            core_bytes = sum(tensor.nbytes for tensor in core.values())
            final.parent.mkdir(parents=True, exist_ok=True)
            for left_over in final.parent.glob("*.partial"):
                _remove(left_over)
            with needing_space(final.parent, table_bytes + core_bytes):
                folder.mkdir(exist_ok=True)
            return core_bytes

        core_bytes = from_first(self._ranks, prepare, may_take_long=True)
        save = _Save(int(state["step"]), final, folder, table_bytes + core_bytes)
        if self._ranks.is_first:
            save.small, save.state = {CORE: core, CARRY: carry}, state
        if core_bytes > LARGEST_STAGED_CORE_BYTES:
            agree(self._ranks, save.write_small, may_take_long=True)
        self._pending = save
        self._start(save, tables)

    def _start(self, save: _Save, tables: list[VocabularyTable]) -> None:
        names = {table.name: table_file(table.name, self._ranks.rank, self._ranks.size) for table in tables}
        if not self.in_background:
            agree(self._ranks, lambda: save.write(tables, names, None), may_take_long=True)
            return
        if self._pool is None:
            self._pool = RowPool(POOL_BYTES, max(table.width for table in tables))
        snapshot = Snapshot(tables, self._pool)
        for table in tables:
            table.before_update = snapshot.keep
        save.thread = threading.Thread(target=save.write, args=(tables, names, snapshot), name="checkpoint", daemon=True)
        save.thread.start()

    def poll(self) -> Checkpoint | None:
        """The checkpoint, where every rank has written its part by now; collective. Raises UserError where one could not."""
        if self._pending is None:
            return None
        done = torch.tensor([float(self._pending.is_written)], device=self._ranks.device)
        return self.finish() if int(all_reduce_sum(done, self._ranks)) == self._ranks.size else None

    def finish(self) -> Checkpoint | None:
        """Wait for the save that is under way and commit it; collective. None where there is none."""
        save, self._pending = self._pending, None
        if save is None:
            return None
        agree(self._ranks, save.wait, may_take_long=True)
        everything: Files = {}
        for files in all_gather_objects(save.files, self._ranks):
            everything |= files
        agree(self._ranks, lambda: save.commit(everything) if self._ranks.is_first else None, may_take_long=True)
        self._bytes_per_second = sum(entry["bytes"] for entry in save.files.values()) / max(1e-3, save.seconds)
        return Checkpoint(save.step, save.final)


class _Save:
    """One checkpoint on its way to the disk, this rank's part."""

    def __init__(self, step: int, final: Path, folder: Path, needed_bytes: int) -> None:
        self.step, self.final, self.folder, self._needed_bytes = step, final, folder, needed_bytes
        self.small: dict[str, dict[str, Tensor]] = {}  # rank 0's: core and recurrent state
        self.state: dict[str, Any] | None = None  # rank 0's
        self.files: Files = {}
        self.thread: threading.Thread | None = None
        self.seconds = 0.0
        self.is_written = False
        self._problem: str | None = None

    def write_small(self) -> None:
        """What is rank 0's. Raises UserError where the disk is full, OSError where it cannot be written."""
        with self._in_need():
            while self.small:
                name, tensors = self.small.popitem()
                self.files[name] = write_tensors(self.folder / name, tensors)
            if self.state is not None:
                path = self.folder / STATE
                write_json(path, self.state)
                self.files[STATE] = {"bytes": path.stat().st_size, "sha256": digest_of_file(path)}
                self.state = None

    def _in_need(self) -> contextlib.AbstractContextManager[None]:
        return needing_space(self.folder, self._needed_bytes, checks_first=False)

    def write(self, tables: list[VocabularyTable], names: dict[str, str], snapshot: Snapshot | None) -> None:
        """Everything that is left; where it fails, the cause is kept for `wait`."""
        started_at = time.monotonic()
        try:
            self.write_small()
            with self._in_need():
                for table in tables:
                    self.files[names[table.name]] = _write_table(self.folder / names[table.name], table, snapshot)
        except (UserError, OSError) as error:
            self._problem = in_words(error)
        except Exception as error:  # a thread's exception would be lost, and the run go on without checkpoints
            self._problem = f"{self.folder}: {type(error).__name__}: {error}"
        finally:
            if snapshot is not None:
                snapshot.end()
            for table in tables:
                table.before_update = None
            self.seconds = time.monotonic() - started_at
            self.is_written = True

    def wait(self) -> None:
        """Until this rank's part is written. Raises UserError where it could not be."""
        if self.thread is not None:
            self.thread.join()
        if self._problem is not None:
            raise UserError(f"checkpoint of step {self.step} was not saved: {self._problem}")

    def commit(self, files: Files) -> None:
        """The manifest, then the folder's name. On rank 0, when every rank has written."""
        with self._in_need():
            write_sealed_json(self.folder / MANIFEST, {"format_version": FORMAT_VERSION, "files": files})
        flush_folder(self.folder)
        replaced = self.final.with_name(f"{self.final.name}.replaced.partial")
        with contextlib.suppress(FileNotFoundError):  # the same step again: an older checkpoint had to be taken, or it is the end now
            os.replace(self.final, replaced)
        os.replace(self.folder, self.final)
        _remove(replaced)
        flush_folder(self.final.parent)


def _write_table(path: Path, table: VocabularyTable, snapshot: Snapshot | None) -> dict[str, Any]:
    shape = (len(table.rows), table.width)
    file = TensorFile(path, {"rows": ("F32", shape), "accumulators": ("F32", shape)})
    try:
        for key, matrix in (("rows", table.rows), ("accumulators", table.accumulators)):
            for block in snapshot.blocks(table.name, key) if snapshot else _blocks(matrix):
                file.write(block.data.cast("B"))
    except OSError:
        file.abandon()
        raise
    return file.finish()


def _blocks(matrix: Tensor) -> Iterator[np.ndarray]:
    """A matrix that nobody changes, on whatever device."""
    rows_at_a_time = max(1, BLOCK_BYTES // (4 * matrix.shape[1]))
    for start in range(0, len(matrix), rows_at_a_time):
        yield matrix[start : start + rows_at_a_time].cpu().numpy()


def _table_bytes(table: VocabularyTable) -> int:
    return table.rows.nbytes + table.accumulators.nbytes


def _remove(path: Path) -> None:
    """Remove a file or folder that is in the way; what cannot be removed is written over."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
