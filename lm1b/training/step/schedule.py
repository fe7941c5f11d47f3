"""Learning rate over updates, as a factor of the configured rate."""

from __future__ import annotations

import math

from lm1b.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, update: int, total_steps: int) -> float:
    """Factor for the update numbered `update` (from 0): warm-up from 0, then the shape, over as many updates as a run of total_steps has.

    A run that skips updates ends so many short of the shape's end.
    """
    if update < schedule.warmup_updates:
        return (update + 1) / schedule.warmup_updates
    if schedule.shape == "constant":
        return 1.0
    length = max(1, total_steps - schedule.warmup_updates)
    done = min(1.0, (update - schedule.warmup_updates) / length)
    left = 1.0 - done if schedule.shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.final_fraction + (1.0 - schedule.final_fraction) * left
