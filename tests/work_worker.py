"""One training step's work, counted, not timed: `python work_worker.py OUT.json`. A process of its own: DeepSpeed starts in it.

The last entry, "asked", is who reads a tensor's numbers in a step, as it goes where a GPU computes: there the host would wait for it.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from parts.harness.counts import read_counts
from parts.harness.shapes import shape_config
from parts.harness.steps import build_step
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from lm1b.distributed import Ranks
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.step import background
from lm1b.training.step import rows as step_rows
from lm1b.training.step.rows import StepRows

STEPS = 3
VOCABULARY = 20_000
SETTINGS = ["training.threads=1", "batches.lanes=16", "softmax.samples=512", "model.embedding=64", "model.hidden=144"]


def work_of(shape: str, precision: str, ranks: Ranks) -> dict[str, float]:
    """Operators started, bytes of memory asked for, and rows fetched by a step, mean of a few."""
    config = shape_config(shape, precision, [*SETTINGS, "model.projection=64"])
    step = build_step(config, read_counts(None, VOCABULARY), ranks, precision)
    rows = 0
    take = step._rows.take

    def counting(*arguments: Any, **keywords: Any) -> StepRows:
        nonlocal rows
        taken = take(*arguments, **keywords)
        rows += len(taken.leaves[-2])
        return taken

    step._rows.take = counting  # type: ignore[method-assign]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(STEPS):
            step.run()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    operators = sum(event.name().startswith(("aten::", "mkldnn::")) for event in events)
    allocated = sum(max(0, event.nbytes()) for event in events if event.name() == "[memory]")  # type: ignore[attr-defined]
    return {"operators": operators / STEPS, "bytes_allocated": allocated / STEPS, "rows_fetched": rows / STEPS}


# What waits for a device: for numbers, or for how many there are.
ASKING = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "unique",
    "masked_select",
    "bincount",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
)


class Asked(TorchFunctionMode):
    """Counts who asks for numbers: the innermost function of ours or of DeepSpeed's, and what it calls."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ASKING or (
            name == "__getitem__" and any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in tree_leaves(args[1]))
        ):
            frames = [frame for frame in traceback.extract_stack() if "/deepspeed/" in frame.filename or "/lm1b/" in frame.filename]
            package = "deepspeed" if "/deepspeed/" in frames[-1].filename else "lm1b"
            self.counts[f"{package}.{frames[-1].name} {name}"] += 1
        return func(*args, **(kwargs or {}))


def asked_in_a_step(precision: str, ranks: Ranks) -> dict[str, int]:
    """Of one step on batches that were planned behind the one before."""
    background.computes_apart = step_rows.computes_apart = lambda device: True
    config = shape_config("lstm_512", precision, [*SETTINGS, "model.projection=64"])
    step = build_step(config, read_counts(None, VOCABULARY), ranks, precision)
    with Asked() as asked:
        step.run()
    step.close()
    return dict(asked.counts)


def main() -> None:
    ranks = start_ranks()
    found = {
        f"{shape} {precision}": work_of(shape, precision, ranks) for shape in ("lstm_512", "irnn_512") for precision in ("fp32", "bf16")
    }
    asked = {precision: asked_in_a_step(precision, ranks) for precision in ("fp32", "bf16")}
    Path(sys.argv[1]).write_text(json.dumps({**found, "asked": asked}))
    stop_ranks()


if __name__ == "__main__":
    main()
