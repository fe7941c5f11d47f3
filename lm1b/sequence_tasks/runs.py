"""A run in its folder, from wherever it stands to a number of updates; nothing is trained twice.

run.safetensors        weights, those best on dev, optimizer state; the curve in its metadata
result_<updates>.json  once it has come that far
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lm1b.distributed import Ranks, agree, from_first, single_process
from lm1b.files import read_json, write_json
from lm1b.sequence_tasks.config import TaskExperiment
from lm1b.sequence_tasks.data import Task
from lm1b.sequence_tasks.engine_run import EngineRun
from lm1b.sequence_tasks.trainer import SequenceRun


def train_run(
    config: TaskExperiment,
    task: Task,
    seed: int,
    learning_rate: float,
    updates: int,
    folder: Path,
    *,
    look_at_test: bool,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train to `updates`, or read what has come of it already: SequenceRun.result, with `test_loss` and `test_error` where asked.

    Collective: what lies in the first rank's folder decides, and it alone writes there. ranks None: one process, on the CPU.
    """
    ranks = ranks or single_process()
    done, kept = Path(folder) / f"result_{updates}.json", Path(folder) / "run.safetensors"
    result = from_first(ranks, lambda: read_json(done) if done.exists() else None)
    if result is not None:
        return result
    run = (SequenceRun if ranks.size == 1 else EngineRun)(config, task, seed, learning_rate, ranks)
    if from_first(ranks, kept.exists):
        run.load(kept)
    else:
        run.look_at_dev()
    while run.updates < updates and not run.has_given_up:
        started_at = time.process_time()
        until = min(updates, run.updates + config.training.evaluate_every)
        while run.updates < until and not run.has_given_up:
            run.update()
        run.look_at_dev()
        run.cpu_seconds += run.add_up(time.process_time() - started_at)[0]
        run.save(kept)
    result = run.result()
    if look_at_test and not run.has_diverged:
        result |= run.look_at_test()
    run.close()
    agree(ranks, lambda: write_json(done, result, outlives_power=False) if ranks.is_first else None)
    return from_first(ranks, lambda: result)
