"""How rows of a table are written into the bytes that travel between ranks: in a plain dtype, or as int8 with a scale a row.

int8 is for gradients: a row is divided by its largest magnitude / 127 and rounded up or down by chance, so that its expectation is
the row itself (stochastic rounding; Alistarh et al. 2017, QSGD, arXiv 1610.02132). One random number a row, keyed by (seed, step,
table, rank) and the row's id, is shifted from column to column by the golden ratio: each column's own is uniform too.

n rows, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lm1b.randomness import uniform

_GOLDEN_RATIO = 0.6180339887498949
_LARGEST_CODE = 127.0


@dataclass(frozen=True)
class Packed:
    """Where num_rows rows of `width` numbers lie in some format: `bytes`, uint8."""

    bytes: Tensor
    num_rows: int
    width: int

    def rows(self, dtype: torch.dtype) -> Tensor:
        """The bytes as rows of `dtype` that share their memory."""
        return self.bytes.view(dtype).view(self.num_rows, self.width)

    def cut(self, num_rows: int, row_bytes: int) -> tuple[Packed, Packed]:
        """The first num_rows and the rest, in a format that has one row after another."""
        end = num_rows * row_bytes
        return Packed(self.bytes[:end], num_rows, self.width), Packed(self.bytes[end:], self.num_rows - num_rows, self.width)


class RowFormat(Protocol):
    """How float32 rows are written into bytes."""

    def row_bytes(self, width: int) -> int:
        """Bytes of one row of `width` numbers."""
        ...

    def write(self, packed: Packed, start: int, rows_nD: Tensor, ids_n: Tensor) -> None:
        """Put float32 rows, whose ids are ids_n, at row `start`."""
        ...

    def read(self, packed: Packed, start: int, stop: int) -> Tensor:
        """Rows start to stop, float32; a tensor of their own."""
        ...


@dataclass(frozen=True)
class Plain:
    """Rows in `dtype`, one after another."""

    dtype: torch.dtype

    def row_bytes(self, width: int) -> int:
        return width * self.dtype.itemsize

    def write(self, packed: Packed, start: int, rows_nD: Tensor, ids_n: Tensor) -> None:
        packed.rows(self.dtype)[start : start + len(rows_nD)] = rows_nD

    def read(self, packed: Packed, start: int, stop: int) -> Tensor:
        return packed.rows(self.dtype)[start:stop].to(torch.float32, copy=True)


@dataclass(frozen=True)
class StochasticInt8:
    """All rows' scales, float32, and then their codes, int8. key: see `derive_key`; another one for each step, table and rank."""

    key: int

    def row_bytes(self, width: int) -> int:
        return 4 + width

    def write(self, packed: Packed, start: int, rows_nD: Tensor, ids_n: Tensor) -> None:
        scales, codes = self._parts(packed)
        scale_n = rows_nD.abs().amax(1) / _LARGEST_CODE
        columns_D = torch.arange(rows_nD.shape[1], device=rows_nD.device, dtype=torch.float64) * _GOLDEN_RATIO
        chance_nD = (uniform(self.key, ids_n).unsqueeze(1) + columns_D).frac_().float().clamp_(max=1 - 2**-24)  # below 1 as float32 too
        # A row of zeros has scale 0 and gets codes 0.
        values = (rows_nD / scale_n.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)).add_(chance_nD).floor_()
        scales[start : start + len(rows_nD)] = scale_n
        codes[start : start + len(rows_nD)] = values.nan_to_num_(0.0).clamp_(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int8)

    def read(self, packed: Packed, start: int, stop: int) -> Tensor:
        scales, codes = self._parts(packed)
        return codes[start:stop].to(torch.float32) * scales[start:stop].unsqueeze(1)

    def _parts(self, packed: Packed) -> tuple[Tensor, Tensor]:
        end = 4 * packed.num_rows
        return packed.bytes[:end].view(torch.float32), packed.bytes[end:].view(torch.int8).view(packed.num_rows, packed.width)
