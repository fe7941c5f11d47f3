"""A training by the real step that is scored on the way: its clock runs while it trains, and stands still while it is scored."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from lm1b.config import Config
from lm1b.devices import synchronize
from lm1b.errors import UserError
from lm1b.evaluation.scoring.texts import ScoredText, text_of_split
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.run import Run, prepare_process
from parts.harness.scored import first_sentences, word_perplexity

POINTS = (0.25, 0.5, 0.75, 1.0)
STEPS_TIMED = 40


class Point(NamedTuple):
    """After so many steps, words and seconds of training. word_perplexity: None where it is not finite."""

    step: int
    words: int
    seconds: float
    word_perplexity: float | None


class ScoredTraining:
    """A run of one rank, the text that it is scored on, and the clock.

    clock: CPU time where others use the machine too (`time.process_time`), wall time on a GPU. dtype: in which the scorer computes.
    """

    def __init__(self, run: Run, text: ScoredText, dtype: torch.dtype, clock: Callable[[], float]) -> None:
        self.run, self.text, self.dtype, self.clock = run, text, dtype, clock
        self.seconds, self.skipped = 0.0, 0
        self.step_seconds: list[float] = []  # by the host: a GPU may still be at work

    def train_to(self, last: int) -> None:
        """Take steps up to this one."""
        step, device = self.run.training_step, self.run.ranks.device
        synchronize(device)
        started_at = begins_at = self.clock()
        while step.step < last:
            self.skipped += not step.run().applied
            ends_at = self.clock()
            self.step_seconds.append(ends_at - begins_at)
            begins_at = ends_at
        synchronize(device)
        self.seconds += self.clock() - started_at

    def points(self, steps: Iterable[int]) -> Iterator[Point]:
        """Train to each of these steps and score the text there."""
        for last in steps:
            self.train_to(last)
            perplexity = word_perplexity(self.run, self.text, self.dtype)
            words = last * self.run.batches.tokens_per_step
            yield Point(last, words, self.seconds, perplexity if math.isfinite(perplexity) else None)


def steps_within(cpu_seconds: float, step_seconds: float, shares: Sequence[float]) -> int:
    """Steps that a budget has. Raises UserError where the first point would come before the step's time is known."""
    steps, least = round(cpu_seconds / step_seconds), round(STEPS_TIMED / shares[0])
    if steps < least:
        raise UserError(f"{cpu_seconds:g} CPU seconds are {steps} steps, expected at least {least}; give more seconds, or --steps")
    return steps


def try_settings(
    config: Config, num_sentences: int, *, cpu_seconds: float = 0.0, num_steps: int | None = None, shares: Sequence[float] = POINTS
) -> dict[str, Any]:
    """One try of a config's settings: train for num_steps, or else for `cpu_seconds`, and score after these shares of it.

    -> steps, words, CPU seconds a step, and the curve [(CPU seconds, word perplexity, None where it is not finite)]. Raises UserError where
    the budget has too few steps for so many points.
    """
    if num_steps is not None and num_steps < len(shares):
        raise UserError(f"{num_steps} steps: expected at least {len(shares)}, one for each point that is scored")
    ranks = start_ranks()
    prepare_process(config, ranks)
    run = Run(config, ranks)
    try:
        text = first_sentences(text_of_split(run.tokens, "validation"), num_sentences)
        step = run.training_step
        training = ScoredTraining(run, text, step.engine.dtype, time.process_time)
        if num_steps is None:
            step.total_steps = 10**6  # the first steps are in the warm-up, or at full rate
            training.train_to(STEPS_TIMED)
            num_steps = steps_within(cpu_seconds, statistics.median(training.step_seconds), shares)
        step.total_steps = num_steps
        curve = []
        for point in training.points(math.ceil(share * num_steps) for share in shares):
            perplexity = point.word_perplexity and round(point.word_perplexity, 2)
            curve.append((round(point.seconds, 1), perplexity))
            print(f"  {point.seconds:7.1f} CPU s  step {point.step:6d} of {num_steps}  word perplexity {perplexity}", flush=True)
        words, seconds = num_steps * run.batches.tokens_per_step, statistics.median(training.step_seconds)
    finally:
        run.close()
        stop_ranks()
    return {"steps": num_steps, "words": words, "step_seconds": seconds, "curve": curve}
