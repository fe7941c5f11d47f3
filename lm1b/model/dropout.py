"""Dropout whose mask is a function of where an activation is: (seed, step, layer, lane, t, unit).

So a lane has the same mask whichever rank holds it, and however a step is cut into micro-batches; no random state exists.

T steps, B lanes, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lm1b.randomness import derive_key, random_bits


@dataclass(frozen=True)
class Dropout:
    """What decides which activations are dropped. first_lane: global number of the first lane at hand."""

    probability: float
    seed: int
    step: int
    first_lane: int = 0

    def __call__(self, x_TBD: Tensor, layer: int) -> Tensor:
        """Zero activations with `probability` and scale the rest by 1 / (1 - probability). layer: which input this is."""
        num_steps, num_lanes, width = x_TBD.shape
        lanes_B = torch.arange(self.first_lane, self.first_lane + num_lanes, device=x_TBD.device)
        steps_T1 = torch.arange(num_steps, device=x_TBD.device).unsqueeze(1)
        key = derive_key(self.seed, "dropout", self.step, layer)
        mask = keep_mask(key, ((steps_T1 << 32) + lanes_B).flatten(), width, self.probability)
        # The mask first: a mask of 1 / (1 - probability) would round that number to the computing dtype (4/3 in bfloat16: 0.2 % too large).
        return x_TBD * mask.view_as(x_TBD).to(x_TBD.dtype) * (1.0 / (1.0 - self.probability))


def keep_mask(key: int, row_counters: Tensor, width: int, drop_probability: float) -> Tensor:
    """Dropout's mask: one decision a (row, unit), True with probability 1 - drop_probability.

    row_counters: int64 (R,), what names a row of activations (its lane and time) -> bool (R, width). The unit's
    decision hashes the row's 32 bits with the unit's number; 32-bit words because this runs over every activation.
    """
    row_bits = random_bits(key, row_counters).to(torch.int32)  # wraps: keeps the low 32 bits
    units = torch.arange(width, dtype=torch.int32, device=row_counters.device) * _signed_32(0x9E3779B1)
    bits = _hash_32(row_bits.unsqueeze(1) + units.unsqueeze(0))
    threshold = round(drop_probability * 2.0**32) - 2**31  # compares signed numbers
    return bits >= max(-(2**31), min(2**31 - 1, threshold))


def _hash_32(x: Tensor) -> Tensor:
    """Scramble int32 counters (shift, xor, multiply: the `lowbias32` constants of C. Wellons), in place."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed_32(0x846CA68B)
    x ^= (x >> 16) & 0xFFFF
    return x


def _signed_32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value
