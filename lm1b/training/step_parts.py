"""Where a step's time goes on this rank: host time by part, a few microseconds a step. On a GPU host time says nothing of this: none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from lm1b.training.part_seconds import PartSeconds

T = TypeVar("T")
STEP_PARTS = ("rows", "forward", "backward", "checks", "update")
# What of a part is spent waiting for other ranks, as waiting.py names it: told apart, as `exchange`.
WAITING_IN = {"backward": "core gradient", "checks": "status", "update": "row gradients"}


class StepParts(PartSeconds):
    """Seconds by part since they were last taken."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(STEP_PARTS, device)

    def timed(self, part: str, action: Callable[..., T]) -> Callable[..., T]:
        """`action`, whose calls count as `part`."""

        def call(*arguments: Any, **keywords: Any) -> T:
            with self.on(part):
                return action(*arguments, **keywords)

        return call

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
