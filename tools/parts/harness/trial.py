"""One try of a config's settings: a short training by the real step, on a budget of CPU time or of steps, scored on the way."""

from __future__ import annotations

import statistics
import time
from typing import Any

from lm1b.config import Config
from lm1b.evaluation.scoring.texts import text_of_split
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.run import Run, prepare_process
from parts.harness.scored import first_sentences, word_perplexity

POINTS = (0.25, 0.5, 0.75, 1.0)
STEPS_TIMED = 40


def try_settings(
    config: Config, cpu_seconds: float, num_steps: int | None, num_sentences: int, shares: tuple[float, ...] = POINTS
) -> dict[str, Any]:
    """Train for `cpu_seconds`, or num_steps, and score after these shares of it.

    -> steps, words, seconds a step, and the curve [(CPU seconds, word perplexity)].
    """
    ranks = start_ranks()
    prepare_process(config, ranks)
    run = Run(config, ranks)
    text = first_sentences(text_of_split(run.tokens, "validation"), num_sentences)
    step, times, used, curve = run.training_step, [], 0.0, []
    step.total_steps = 10**6  # the first steps are in the warm-up, or at full rate
    total = STEPS_TIMED
    points = list(shares)
    while step.step < total:
        started_at = time.process_time()
        step.run()
        times.append(time.process_time() - started_at)
        used += times[-1]
        if step.step == STEPS_TIMED:
            total = step.total_steps = num_steps or max(STEPS_TIMED + 1, round(cpu_seconds / statistics.median(times)))
        if total > STEPS_TIMED and step.step >= points[0] * total:
            points.pop(0)
            curve.append((round(used, 1), round(word_perplexity(run, text, step.engine.dtype), 2)))
            print(f"  {used:7.1f} CPU s  step {step.step:6d} of {total}  word perplexity {curve[-1][1]}", flush=True)
    run.close()
    del run, step
    stop_ranks()
    return {
        "steps": total,
        "words": total * config.batches.lanes * config.batches.steps,
        "step_seconds": statistics.median(times),
        "curve": curve,
    }
