"""Counter-based random numbers: no state, the same for any number of ranks, and on CPU and CUDA (but `normal`, asked for on CPUs alone).

1. A *key* is a Python integer mixed from a seed and labels: `derive_key(seed, "sampler", step)`.
2. A *counter* is an int64 tensor that names the element: a row, a lane, a unit.
3. `random_bits(key, counters)` hashes both with the SplitMix64 finaliser (Steele, Lea, Flood 2014), in wrapping int64
   tensor operations; `uniform` and `normal` turn the bits into float64 numbers.

>>> key = derive_key(1, "block_order", 0)
>>> uniform(key, torch.arange(3))            # three numbers in (0, 1), the same on every machine
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_MASK_64 = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK_64
    return value - (1 << 64) if value >> 63 else value


def derive_key(seed: int, *labels: str | int) -> int:
    """Mix a seed and labels into a 64-bit key. Different labels give unrelated streams."""
    text = "\x1f".join([str(seed), *(f"{type(label).__name__}:{label}" for label in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _shift_right_logical(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def random_bits(key: int, counters: Tensor) -> Tensor:
    """64 random bits a counter. counters: int64, any shape -> int64, same shape."""
    x = counters * _signed(_GOLDEN_GAMMA) + _signed(key)
    x = (x ^ _shift_right_logical(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right_logical(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right_logical(x, 31)


def uniform(key: int, counters: Tensor) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float64, 52 bits of randomness. counters: int64, any shape."""
    bits = _shift_right_logical(random_bits(key, counters), 12)
    return (bits.to(torch.float64) + 0.5) * 2.0**-52


def normal(key: int, counters: Tensor) -> Tensor:
    """Standard normal numbers, float64, by Box and Muller (1958). counters: int64, any shape. log and cos round as a device has them."""
    radius = torch.sqrt(-2.0 * torch.log(uniform(derive_key(key, "radius"), counters)))
    angle = 2.0 * math.pi * uniform(derive_key(key, "angle"), counters)
    return radius * torch.cos(angle)


def permutation(key: int, length: int) -> Tensor:
    """A random order of 0 .. length-1, int64: the ranks of `length` hashed numbers."""
    return torch.argsort(random_bits(key, torch.arange(length)), stable=True)
