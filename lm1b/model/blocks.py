"""Logits a chunk at a time, and through float32 in blocks that stay in a cache: what the sampled and the full softmax share.

1. `chunks_of_logits`: the products of hidden vectors and rows, in the computing dtype.
2. `float32_blocks`: such a chunk as float32, a block at a time.
3. `TargetColumns`: where the targets are among the columns.

N positions, n of a chunk or block, P hidden width, W words whose rows are at hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lm1b.model.products import product

# Bytes of logits (in the computing dtype) held at a time, and elements of a block that goes through float32: the
# first is large enough for the products to run at full speed, the second stays in a core's second-level cache.
CHUNK_BYTES = 48 << 20
BLOCK_ELEMENTS = 1 << 17
# On a GPU small ones would only cost launches: these hold a large step's logits (10,240 x 8,192 in half precision) at once, and take
# them through float32 in ten blocks.
CHUNK_BYTES_GPU = 192 << 20
BLOCK_ELEMENTS_GPU = 1 << 23
_LOG2_E = math.log2(math.e)

_scratch_space: dict[tuple[str, torch.dtype], Tensor] = {}


def _scratch(name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor for use within one call. On the CPU its memory is kept: fresh pages for the logits of every
    step cost a tenth of the whole sampled softmax there, while CUDA's allocator keeps memory by itself. (float32's logits on a CPU
    come in memory of their own: see `product`. What is asked for them here is never touched, so it takes none.)"""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = shape[0] * shape[1]
    space = _scratch_space.get((name, dtype))
    if space is None or space.numel() < size:
        space = _scratch_space[name, dtype] = torch.empty(size, dtype=dtype)
    return space[:size].view(shape)


def chunks_of_logits(hidden_NP: Tensor, rows_WP: Tensor, divisor: int = 1) -> Iterator[tuple[slice, Tensor]]:
    """(positions, their products with the rows in the computing dtype), CHUNK_BYTES / divisor at a time; used up before the next."""
    num_bytes = (CHUNK_BYTES if hidden_NP.device.type == "cpu" else CHUNK_BYTES_GPU) // divisor
    chunk = min(len(hidden_NP), max(1, num_bytes // (len(rows_WP) * hidden_NP.element_size())))
    buffer = _scratch("logits", (chunk, len(rows_WP)), hidden_NP.dtype, hidden_NP.device)
    for start in range(0, len(hidden_NP), chunk):
        hidden = hidden_NP[start : start + chunk]
        yield slice(start, start + len(hidden)), product(hidden, rows_WP, out=buffer[: len(hidden)])


def float32_blocks(logits_nW: Tensor, bias_W: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(positions, their logits as they are, the same in float32 with the bias), a block at a time; used up before the next.

    The last two are one tensor where the logits are float32. first: number of the first position.
    """
    block = max(1, (BLOCK_ELEMENTS if logits_nW.device.type == "cpu" else BLOCK_ELEMENTS_GPU) // logits_nW.shape[1])
    for start in range(0, len(logits_nW), block):
        logits = logits_nW[start : start + block]
        values = logits
        if logits.dtype != torch.float32:
            values = _scratch("block", (logits.shape[0], logits.shape[1]), torch.float32, logits.device).copy_(logits)
        values += bias_W
        yield slice(first + start, first + start + len(logits)), logits, values


class TargetColumns:
    """Where the targets of N positions are among W columns, as far as they are there; nobody asks the device for it."""

    def __init__(self, columns_N: Tensor, width: int) -> None:
        self.is_there_N1 = ((columns_N >= 0) & (columns_N < width)).unsqueeze(1)
        self._columns_N1 = columns_N.unsqueeze(1).where(self.is_there_N1, 0)

    def put(self, part: slice, logits_nW: Tensor, value: Any) -> None:
        """Put a value, or one a position [n, 1], in the place of each target's logit; what has its target elsewhere keeps its column 0."""
        columns_n1 = self._columns_N1[part]
        logits_nW.scatter_(1, columns_n1, torch.where(self.is_there_N1[part], value, logits_nW.gather(1, columns_n1)))


def exp_of_difference(values_nW: Tensor, largest_n: Tensor) -> Tensor:
    """exp(values - largest), in place, as a power of 2: torch's exp takes four times as long as its exp2 on a CPU."""
    # The difference first: scaled one by one, two large numbers would leave their rounding.
    return values_nW.sub_(largest_n.unsqueeze(1)).mul_(_LOG2_E).exp2_()
