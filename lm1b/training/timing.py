"""Where a step's time goes on this rank, and how long each rank waits for the others: host time, a few microseconds a step.

A step's parts are rows, forward, backward, checks and update. In all but forward a rank waits for others:

    rows           until the step has its rows
    core gradient  DeepSpeed's reduction at the end of backward (ZeRO stage 3 gathers weights before, which is not counted)
    status         the small all-reduce after it
    row gradients  until those of all ranks are here

What is exchanged in the step's own thread is counted with the work that goes with it, and so is this rank's own work that the thread
beside the steps has not done in time. The straggler is who waits least. On a GPU host time says nothing of the work: none is kept.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence

import torch

STEP_PARTS = ("rows", "forward", "backward", "checks", "update")
WAITED_FOR = ("rows", "core gradient", "status", "row gradients")
# What of a part is spent waiting for other ranks: told apart, as `exchange`.
WAITING_IN = {"backward": "core gradient", "checks": "status", "update": "row gradients"}
NOTABLE_SHARE = 0.1  # of a step, that the others wait for the slowest


class PartSeconds:
    """Seconds on this rank by part, since they were last taken."""

    def __init__(self, parts: Sequence[str], device: torch.device) -> None:
        self.is_on = device.type == "cpu"
        self._parts = parts
        self.seconds: dict[str, float] = dict.fromkeys(parts, 0.0)

    @contextlib.contextmanager
    def on(self, part: str) -> Generator[None]:
        """Around a part, once or more in a step."""
        started = time.perf_counter()
        try:
            yield
        finally:
            if self.is_on:
                self.seconds[part] += time.perf_counter() - started

    def take_seconds(self) -> dict[str, float]:
        """The seconds so far, in the order of the parts; then all are 0 again."""
        seconds, self.seconds = self.seconds, dict.fromkeys(self._parts, 0.0)
        return seconds


class Waiting(PartSeconds):
    """Seconds that this rank waits in the present step, by what for."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(WAITED_FOR, device)

    def take(self) -> list[float]:
        """The seconds so far in the order of WAITED_FOR; then all are 0 again."""
        return list(self.take_seconds().values())


class StepParts(PartSeconds):
    """Seconds of the steps since they were last taken, by part."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(STEP_PARTS, device)

    def take(self, waited: Mapping[str, float], steps: int) -> dict[str, float] | None:
        """Mean seconds a step by part, and of `exchange`; then all are 0 again. None on a GPU.

        waited: seconds that this rank has waited over the same `steps` steps, by what for.
        """
        seconds = self.take_seconds()
        if not self.is_on or not steps:
            return None
        for part, what in WAITING_IN.items():
            seconds[part] = max(0.0, seconds[part] - waited.get(what, 0.0))
        seconds["exchange"] = sum(waited.get(what, 0.0) for what in WAITING_IN.values())
        return {part: round(value / steps, 6) for part, value in seconds.items()}


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
