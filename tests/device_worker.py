"""Trains runs in this process alone, on the device that DS_ACCELERATOR names: `python device_worker.py plan.json report.json`.

The plan is a list of {"config": {...}}, which may have "initial_scale_power": of fp16's loss scale, for which the config has no field; and
"kernels": "triton".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from devices import kernels_of
from parts.harness.scored import word_perplexity

from lm1b.config import parse_config
from lm1b.distributed import Ranks
from lm1b.evaluation.scoring.texts import text_of_split
from lm1b.training import loop
from lm1b.training.engine import engine
from lm1b.training.engine.process_group import start_ranks, stop_ranks


def train(job: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """-> where the run's tables and core were, whether float32 was float32 there, and the validation text's perplexity, scored there."""
    made = engine.deepspeed_config

    def with_scale(*arguments: Any) -> dict[str, Any]:
        settings = made(*arguments)
        if "initial_scale_power" in job:
            settings["fp16"]["initial_scale_power"] = job["initial_scale_power"]
        return settings

    with mock.patch.object(engine, "deepspeed_config", with_scale), kernels_of(job.get("kernels", "torch")):
        run = loop.train_on(ranks, parse_config(job["config"]))
    tables = {tensor.device.type for table in run.training_step.tables.all() for tensor in (table.rows, table.accumulators)}
    core = {parameter.device.type for parameter in run.training_step.engine.module.parameters()}
    uses_tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    perplexity = word_perplexity(run, text_of_split(run.tokens, "validation"), torch.float32)
    return {"tables": sorted(tables), "core": sorted(core), "uses_tf32": uses_tf32, "word_perplexity": perplexity}


def main(plan_file: str, report_file: str) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    ranks = start_ranks()
    report = [train(job, ranks) for job in json.loads(Path(plan_file).read_text())]
    stop_ranks()
    Path(report_file).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
