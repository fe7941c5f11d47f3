"""How far the training is, as its first rank tells it: see lm1b/progress.py for the forms."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from lm1b.console import LastingOutput, is_json, remark, say
from lm1b.progress import duration, on_terminal
from lm1b.training.log.metrics_line import describe

DRAW_SECONDS = 1.0
LINE_SECONDS = 10.0  # between two plain lines, which come with lines of metrics.jsonl alone
SMOOTHING = 0.05  # of the speed that the time left on a terminal is reckoned with: 1 is the last moment's alone
FORM = "{percentage:3.0f}% step {n}/{total}, {remaining} left{postfix}"


class StepProgress:
    """`update()` once a step, `tell(line)` with every line of metrics.jsonl."""

    def __init__(self, step: int, total_steps: int, *, shown: bool = True) -> None:
        self._shown, self._first, self._total = shown, step, total_steps
        self._started_at = time.monotonic()
        self._said_at = -LINE_SECONDS
        self._bar = None
        if shown and on_terminal():
            self._bar = tqdm(
                total=total_steps,
                initial=step,
                file=LastingOutput(sys.stderr),
                mininterval=DRAW_SECONDS,
                smoothing=SMOOTHING,
                bar_format=FORM,
                dynamic_ncols=True,
            )

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        """One more step is done."""
        if self._bar is not None:
            self._bar.update()

    def tell(self, line: dict[str, Any]) -> None:
        """What the newest line of metrics.jsonl says."""
        step = line["step"]
        if self._bar is not None:
            self._bar.set_postfix_str(describe(line), refresh=False)
        elif self._shown:
            left = (self._total - step) * (time.monotonic() - self._started_at) / max(1, step - self._first)
            if is_json():
                say("", event="metrics", lasting=True, step=step, seconds_left=round(left), metrics=line)
            elif time.monotonic() - self._said_at >= LINE_SECONDS or step >= self._total:
                self._said_at = time.monotonic()
                how_long = f", {duration(left)} left" if step < self._total else ""
                text = f"step {step} of {self._total} ({step / self._total:.0%}){how_long}: {describe(line)}"
                remark(text, lasting=True)
