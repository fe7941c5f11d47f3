"""One rank of a test: trains every job of a JSON list, one after the other, in one process group.

A job: {"config": {...}, "poison_step": n or null, "loss_scale": s or null}. The first rank writes what happened to `report`.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from lm1b.config import parse_config
from lm1b.training import loop
from lm1b.training.engine import Engine, start_ranks, stop_ranks
from lm1b.training.step import StepResult, TrainingStep


def weights_of(step: TrainingStep) -> list[torch.Tensor]:
    """Everything a skipped step must leave as it is."""
    tables = [tensor.clone() for table in step.tables.all() for tensor in (table.rows, table.accumulators)]
    return [*step.engine.core_state().values(), *tables]


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """Train one config; what a test wants to know of it."""
    seen: dict[str, Any] = {"skips": []}
    original_run, original_backward = TrainingStep.run, Engine.backward

    def run(self: TrainingStep, **keywords: Any) -> StepResult:
        poisoned = job.get("poison_step") == self.step
        before = weights_of(self) if poisoned else []
        if poisoned and self.ranks.rank == self.ranks.size - 1:
            for tensor in self.carry.values():
                tensor[0] = float("nan")
        result = original_run(self, **keywords)
        if poisoned:
            unchanged = all(torch.equal(old, new) for old, new in zip(before, weights_of(self), strict=True))
            finite = all(bool(torch.isfinite(tensor).all()) for tensor in self.carry.values())
            seen["skips"].append({"applied": result.applied, "causes": result.not_finite, "unchanged": unchanged, "carry_finite": finite})
            seen["lanes_restarted"] = result.lanes_restarted
        return result

    patches = [mock.patch.object(TrainingStep, "run", run)]
    if scale := job.get("loss_scale"):
        patches.append(mock.patch.object(Engine, "backward", lambda self, loss: original_backward(self, loss * scale)))
        patches.append(mock.patch.object(Engine, "loss_scale", property(lambda self: scale)))
    for patch in patches:
        patch.start()
    try:
        run_ended = loop.train_on(RANKS, parse_config(job["config"]))
    finally:
        for patch in patches:
            patch.stop()
    seen["step"], seen["updates"] = run_ended.training_step.step, run_ended.training_step.updates
    return seen


if __name__ == "__main__":
    jobs_file, report_file = map(Path, sys.argv[1:])
    warnings.filterwarnings("error", module=r"lm1b\.")  # ours; those of torch and DeepSpeed are not
    RANKS = start_ranks()
    report = [run_job(job) for job in json.loads(jobs_file.read_text())]
    stop_ranks()
    if RANKS.is_first:
        report_file.write_text(json.dumps(report))
