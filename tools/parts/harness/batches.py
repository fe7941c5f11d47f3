"""Batches of made-up tokens for steps that are measured: what a step reads through `lm1b.data.batches.Batches.at`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lm1b.data.batches import Batch


@dataclass
class UnigramBatches:
    """Batches of tokens drawn from unigram counts, so that rows, samples and traffic are those of real text; equal for any ranks."""

    cumulative_V: np.ndarray
    lanes: int
    steps: int
    end_id: int = 0

    def at(self, step: int, first_lane: int, num_lanes: int) -> Batch:
        """See lm1b.data.batches.Batches."""
        generator = np.random.default_rng(step)
        draws = np.searchsorted(self.cumulative_V, generator.random((self.steps + 1, self.lanes)) * self.cumulative_V[-1], side="right")
        tokens = draws[:, first_lane : first_lane + num_lanes].astype(np.int64)
        return Batch(tokens[:-1], tokens[1:], epoch=0, starts_epoch=step == 0)


class PreparedBatches:
    """Some of another's batches, drawn once and then read over and over: for where drawing them would count."""

    def __init__(self, batches: UnigramBatches, count: int = 64) -> None:
        self._batches = [batches.at(step, 0, batches.lanes) for step in range(count)]
        self.lanes, self.steps, self.end_id = batches.lanes, batches.steps, batches.end_id

    def at(self, step: int, first_lane: int, num_lanes: int) -> Batch:
        """See lm1b.data.batches.Batches."""
        batch, lanes = self._batches[step % len(self._batches)], slice(first_lane, first_lane + num_lanes)
        return Batch(batch.inputs_TB[:, lanes], batch.targets_TB[:, lanes], epoch=0, starts_epoch=step == 0)
