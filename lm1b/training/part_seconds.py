"""Host time by part, a few microseconds a step. On a GPU host time says nothing of the work: none is kept."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch


class PartSeconds:
    """Seconds on this rank by part, since they were last taken."""

    def __init__(self, parts: Sequence[str], device: torch.device) -> None:
        self.is_on = device.type == "cpu"
        self._parts = parts
        self.seconds: dict[str, float] = dict.fromkeys(parts, 0.0)

    @contextlib.contextmanager
    def on(self, part: str) -> Iterator[None]:
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
