"""How long each rank waits for the others in a step, by what it waits for: the straggler is who waits least.

rows: until the step has its rows. core gradient: DeepSpeed's reduction at the end of backward (ZeRO stage 3 gathers weights
before, which is not counted). status: the small all-reduce after it. row gradients: until those of all ranks are here. What is
exchanged in the step's own thread is counted with the work that goes with it, and so is this rank's own work that the thread beside the
steps has not done in time. On a GPU host time says nothing of this: zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lm1b.training.part_seconds import PartSeconds

PARTS = ("rows", "core gradient", "status", "row gradients")
NOTABLE_SHARE = 0.1  # of a step, that the others wait for the slowest


class Waiting(PartSeconds):
    """Seconds of the present step by part, on this rank."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(PARTS, device)

    def take(self) -> list[float]:
        """The seconds so far in the order of PARTS; then all are 0 again."""
        return list(self.take_seconds().values())


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
