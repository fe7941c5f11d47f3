"""What telling of a run costs a step: the real logs and the real progress line on a temporary run directory, nothing else happening."""

from __future__ import annotations

import collections
import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from lm1b.distributed import single_process
from lm1b.processes import RankProcess
from lm1b.training.log.metrics_line import Interval
from lm1b.training.log.run_log import RunLog
from lm1b.training.log.step_progress import StepProgress
from lm1b.training.run import Counts, Run
from lm1b.training.step.training_step import StepResult
from lm1b.training.timing import WAITED_FOR, StepParts
from parts.harness.shapes import shape_config

LINES = 100
RESULT = StepResult(9.0e3, True, False, 1.5, 0.9, 1.0, [], 0, None, [[0.0] * len(WAITED_FOR)])


def measure_logging() -> dict[str, Any]:
    """Seconds a step, amortised over `training.log_every`; wall of the step's thread, and CPU of TensorBoard's own thread beside it.

    The progress line is that of a file, where no terminal is: with every line of metrics.jsonl that is 10 s after the last.
    """
    with tempfile.TemporaryDirectory(prefix="lm1b-logs-") as name:
        config = shape_config("lstm_512", "bf16", [f"run.directory={name}/run"])
        log_every = config.training.log_every
        steps = LINES * log_every
        # What Interval and the progress line read of a run: everything else of one would take a corpus and its tables.
        progress = SimpleNamespace(step=0, updates=0, engine=SimpleNamespace(loss_scale=1.0), parts=StepParts(torch.device("cpu")))
        batches = SimpleNamespace(tokens_per_step=config.batches.lanes * config.batches.steps, steps_per_epoch=1_000_000)
        parts = {"config": config, "batches": batches, "training_step": progress, "counts": Counts(), "ranks": single_process()}
        run = cast(Run, SimpleNamespace(**parts, total_steps=steps, tokens_at_ceiling=1e4, tokens_per_word=1.0))
        log = RunLog(config, 0, [RankProcess.here(0)], {})
        seconds: dict[str, float] = collections.defaultdict(float)
        whole, own = time.process_time(), time.thread_time()
        with open(Path(name) / "progress", "w") as file, contextlib.redirect_stdout(file), StepProgress(0, steps) as bar:
            for _ in range(LINES):
                _take_steps(run, log, bar, log_every, seconds)
        log.close()
        beside = (time.process_time() - whole) - (time.thread_time() - own)
        log.check()
    return {
        "log_every": log_every,
        "seconds_a_step": {name: round(value / steps, 8) for name, value in seconds.items()},
        "seconds_a_step_together": round(sum(seconds.values()) / steps, 8),
        "cpu_seconds_a_step_of_the_writer_thread": round(beside / steps, 8),
    }


def _take_steps(run: Run, log: RunLog, bar: Any, count: int, seconds: dict[str, float]) -> None:
    """What the training loop does for the log in the steps up to a line, each kind of it together."""

    def timed(name: str, action: Callable[[], Any]) -> Any:
        started_at = time.perf_counter()
        found = action()
        seconds[name] += time.perf_counter() - started_at
        return found

    interval = Interval()
    run.training_step.step += count
    timed("Interval.add", lambda: [interval.add(run, RESULT) for _ in range(count)])
    line = timed("Interval.line", lambda: interval.line(run, RESULT))
    timed("RunLog.metrics", lambda: log.metrics(line))
    timed("progress line", lambda: bar.tell(line))
    timed("progress line", lambda: [bar.update() for _ in range(count)])
