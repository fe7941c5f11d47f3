"""Logits a chunk at a time, and through float32 in blocks that stay in a cache: what the sampled and the full softmax share.

n positions of a chunk, S words.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Bytes of logits (in the computing dtype) held at a time, and elements of a block that goes through float32: the
# first is large enough for the products to run at full speed, the second stays in a core's second-level cache.
CHUNK_BYTES = 48 << 20
BLOCK_ELEMENTS = 1 << 17
# On a GPU small ones would only cost launches: these hold a large step's logits (10,240 x 8,192 in half precision) at once, and take
# them through float32 in ten blocks.
CHUNK_BYTES_GPU = 192 << 20
BLOCK_ELEMENTS_GPU = 1 << 23
_LOG2_E = math.log2(math.e)


def chunk_bytes(device: torch.device) -> int:
    """Bytes of logits held at a time."""
    return CHUNK_BYTES if device.type == "cpu" else CHUNK_BYTES_GPU


_scratch_space: dict[tuple[str, torch.dtype], Tensor] = {}


def scratch(name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
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


def block_positions(width: int, device: torch.device) -> int:
    """How many positions, with `width` logits each, go through float32 together."""
    return max(1, (BLOCK_ELEMENTS if device.type == "cpu" else BLOCK_ELEMENTS_GPU) // width)


def in_float32(block: Tensor) -> Tensor:
    """A block of logits as float32 to work on: itself where it is that, else a copy in scratch space."""
    if block.dtype == torch.float32:
        return block
    return scratch("block", (block.shape[0], block.shape[1]), torch.float32, block.device).copy_(block)


def exp_of_difference(values_nS: Tensor, largest_n: Tensor) -> Tensor:
    """exp(values - largest), in place, as a power of 2: torch's exp takes four times as long as its exp2 on a CPU."""
    # The difference first: scaled one by one, two large numbers would leave their rounding.
    return values_nS.sub_(largest_n.unsqueeze(1)).mul_(_LOG2_E).exp2_()
