"""One training step's work, counted, not timed: `python work_worker.py OUT.json`. A process of its own: DeepSpeed starts in it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.shapes import shape_config, word_counts
from benchmarks.training import build_step
from torch.profiler import ProfilerActivity, profile

from lm1b.distributed import Ranks
from lm1b.training.process_group import start_ranks, stop_ranks
from lm1b.training.step_rows import StepRows

STEPS = 3
VOCABULARY = 20_000
SETTINGS = ["training.threads=1", "batches.lanes=16", "softmax.samples=512", "model.embedding=64", "model.hidden=144"]


def work_of(shape: str, precision: str, ranks: Ranks) -> dict[str, float]:
    """Operators started, bytes of memory asked for, and rows fetched by a step, mean of a few."""
    config = shape_config(shape, precision, [*SETTINGS, "model.projection=64"])
    step = build_step(config, word_counts(None, VOCABULARY), ranks, precision)
    rows = 0
    take = step._rows.take

    def counting(*arguments: Any, **keywords: Any) -> StepRows:
        nonlocal rows
        taken = take(*arguments, **keywords)
        rows += len(taken.output_rows_UP)
        return taken

    step._rows.take = counting  # type: ignore[method-assign]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(STEPS):
            step.run()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    operators = sum(event.name().startswith(("aten::", "mkldnn::")) for event in events)
    allocated = sum(max(0, event.nbytes()) for event in events if event.name() == "[memory]")
    return {"operators": operators / STEPS, "bytes_allocated": allocated / STEPS, "rows_fetched": rows / STEPS}


def main() -> None:
    ranks = start_ranks()
    found = {
        f"{shape} {precision}": work_of(shape, precision, ranks) for shape in ("lstm_512", "irnn_512") for precision in ("fp32", "bf16")
    }
    Path(sys.argv[1]).write_text(json.dumps(found))
    stop_ranks()


if __name__ == "__main__":
    main()
