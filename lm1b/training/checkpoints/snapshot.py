"""The tables as they were at one moment, written in blocks while training goes on changing them.

1. `Snapshot(tables)` is made between two steps: nothing is copied but matrices of a few megabytes.
2. A writer takes `blocks(...)` of every matrix from front to back, in a thread of its own.
3. Before a step updates rows, it calls `keep(table, places)`: rows that the writer has not reached yet are put into a pool of
   a fixed size; where that is full, the step waits for the writer, who frees what it passes.

So a checkpoint of any size costs the same memory. Example: 4 rows, the writer has passed rows 0 and 1, a step changes rows 1
and 3: row 3 goes into the pool, row 1 need not; the writer takes row 2 from the table and row 3 from the pool.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lm1b.model.tables import VocabularyTable

BLOCK_BYTES = 2 << 20  # what the writer takes at a time: in the cache from copy to hash to file (4 MB cost twice the CPU time)
COPIED_AT_ONCE_BYTES = 8 << 20  # a matrix up to this size is copied whole
KEPT_ROWS_AT_A_TIME = 1024


class RowPool:
    """Room for `num_rows` old rows of up to `width` numbers, float32. Its memory is touched only as it is used, and kept."""

    def __init__(self, num_bytes: int, width: int) -> None:
        self.rows = torch.empty(max(1, num_bytes // (4 * width)), width)
        self._free = np.arange(len(self.rows), dtype=np.int32)[::-1].copy()
        self._num_free = len(self._free)

    def take(self, wanted: int) -> np.ndarray:
        """Up to `wanted` free places, int32."""
        count = min(wanted, self._num_free)
        self._num_free -= count
        return self._free[self._num_free : self._num_free + count].copy()

    def give_back(self, places: np.ndarray) -> None:
        """These places are free again."""
        self._free[self._num_free : self._num_free + len(places)] = places
        self._num_free += len(places)


class _Matrix:
    """One matrix of the snapshot: how far the writer is, and where the old rows are that it has yet to write."""

    def __init__(self, source: Tensor) -> None:
        self.width = source.shape[1]
        is_small = source.numel() * 4 <= COPIED_AT_ONCE_BYTES
        self.source = source.clone() if is_small else source
        self.num_written = len(source) if is_small else 0
        self.place_in_pool = np.full(0 if is_small else len(source), -1, dtype=np.int32)


class Snapshot:
    """Rows and accumulators of several tables as they are now."""

    def __init__(self, tables: Sequence[VocabularyTable], pool: RowPool) -> None:
        self._pool = pool
        self._changed = threading.Condition()
        self._is_over = False
        self._matrices = {table.name: {"rows": _Matrix(table.rows), "accumulators": _Matrix(table.accumulators)} for table in tables}

    def keep(self, table_name: str, places: Tensor) -> None:
        """Save the rows at `places` (int64, distinct) of a table that is about to change from being lost to the writer."""
        for matrix in self._matrices[table_name].values():
            waiting = places.numpy()
            with self._changed:
                while not self._is_over:
                    waiting = waiting[waiting >= matrix.num_written]
                    waiting = waiting[matrix.place_in_pool[waiting] < 0] if len(waiting) else waiting
                    if not len(waiting):
                        break
                    slots = self._pool.take(len(waiting))
                    self._copy(matrix, waiting[: len(slots)], slots)
                    if len(slots) < len(waiting):
                        self._changed.wait()

    def _copy(self, matrix: _Matrix, places: np.ndarray, slots: np.ndarray) -> None:
        matrix.place_in_pool[places] = slots
        pool = self._pool.rows[:, : matrix.width]
        for start in range(0, len(places), KEPT_ROWS_AT_A_TIME):
            part = slice(start, start + KEPT_ROWS_AT_A_TIME)
            pool.index_copy_(0, torch.from_numpy(slots[part]).long(), matrix.source.index_select(0, torch.from_numpy(places[part])))

    def blocks(self, table_name: str, key: str) -> Iterator[np.ndarray]:
        """The matrix `key` (`rows` or `accumulators`) as it was, in float32 blocks; the memory is used again for the next one."""
        matrix = self._matrices[table_name][key]
        source = matrix.source.numpy()
        rows_at_a_time = max(1, BLOCK_BYTES // (4 * matrix.width))
        if not len(matrix.place_in_pool):
            yield from (source[start : start + rows_at_a_time] for start in range(0, len(source), rows_at_a_time))
            return
        buffer = np.empty((rows_at_a_time, matrix.width), dtype=np.float32)
        for start in range(0, len(source), rows_at_a_time):
            block = buffer[: min(rows_at_a_time, len(source) - start)]
            with self._changed:
                np.copyto(block, source[start : start + len(block)])
                slots = matrix.place_in_pool[start : start + len(block)]
                kept = np.flatnonzero(slots >= 0)
                block[kept] = self._pool.rows.numpy()[slots[kept], : matrix.width]
                self._pool.give_back(slots[kept])
                matrix.num_written = start + len(block)
                self._changed.notify_all()
            yield block

    def end(self) -> None:
        """No more is written: rows need not be kept, and what is in the pool is given back."""
        with self._changed:
            self._is_over = True
            for matrices in self._matrices.values():
                for matrix in matrices.values():
                    rest = matrix.place_in_pool[matrix.num_written :]
                    self._pool.give_back(rest[rest >= 0])
            self._changed.notify_all()
