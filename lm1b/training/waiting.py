"""How long each rank waits for the others in a step, by what it waits for: the straggler is who waits least.

rows: until the step has its rows. core gradient: DeepSpeed's reduction at the end of backward (ZeRO stage 3 gathers weights
before, which is not counted). status: the small all-reduce after it. row gradients: until those of all ranks are here. What is
exchanged in the step's own thread is counted with the work that goes with it, and so is this rank's own work that the thread beside the
steps has not done in time. On a GPU host time says nothing of this: zeros.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch

PARTS = ("rows", "core gradient", "status", "row gradients")
NOTABLE_SHARE = 0.1  # of a step, that the others wait for the slowest


class Waiting:
    """Seconds of the present step by part, on this rank."""

    def __init__(self, device: torch.device) -> None:
        self._is_on = device.type == "cpu"
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Around what waits for other ranks."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if self._is_on:
                self.seconds[part] += time.perf_counter() - started

    def take(self) -> list[float]:
        """The seconds so far in the order of PARTS; then all are 0 again."""
        values = list(self.seconds.values())
        self.seconds = dict.fromkeys(PARTS, 0.0)
        return values


def straggler(waiting_RP: Sequence[Sequence[float]], seconds: float) -> tuple[int, float] | None:
    """The rank that the others wait for, and the share of `seconds` that they wait longer than it; None where that is little.

    waiting_RP: seconds that each rank waited, by part.
    """
    totals = [sum(parts) for parts in waiting_RP]
    if len(totals) < 2 or seconds <= 0:
        return None
    slowest = min(range(len(totals)), key=totals.__getitem__)
    others = (sum(totals) - totals[slowest]) / (len(totals) - 1)
    share = (others - totals[slowest]) / seconds
    return (slowest, share) if share >= NOTABLE_SHARE else None
