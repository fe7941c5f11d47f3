"""The papers' tasks in small: an experiment on the adding problem, and sequences of unlike length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm1b.distributed import single_process
from lm1b.sequence_tasks.config import TaskExperiment
from lm1b.sequence_tasks.experiment.cell_runs import CellRuns
from lm1b.strict import parse
from lm1b.workers import Workers

ALONE = single_process()
CELLS = ["irnn", "np_rnn", "relu_rnn", "tanh_rnn", "lstm"]


def experiment(folder: Path, **settings: Any) -> TaskExperiment:
    """A small adding problem; settings: `a__b=value` for a.b."""
    value: dict[str, Any] = {
        "run": {"directory": str(folder), "seeds": [1, 2]},
        "task": {"kind": "adding", "steps": 6, "train_size": 60, "held_out_size": 30},
        "model": {"cell": "irnn", "hidden": 8},
        "optimizer": {"learning_rate": 0.01},
        "training": {"updates": 24, "batch": 8, "evaluate_every": 6},
        "search": {"learning_rates": [0.001, 0.01, 0.02, 1e30], "shares": [0.25, 0.5, 1.0]},
    }
    for path, item in settings.items():
        section, key = path.split("__")
        value[section][key] = item
    return parse(TaskExperiment, value)


def mixed() -> tuple[list[Tensor], list[Tensor]]:
    """Three sequences of 4, 1 and 7 steps, and a label of each step."""
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randn(length, 3, generator=generator) for length in (4, 1, 7)]
    return sequences, [torch.randint(0, 5, (len(sequence),), generator=generator) for sequence in sequences]


def run_experiment(config: TaskExperiment, processes: int = 1) -> tuple[dict[str, Any], list[str]]:
    """Search and all seeds -> `results.json`'s value, and what was said."""
    said: list[str] = []
    with Workers(processes) as workers:
        return CellRuns(config, workers, said.append, ALONE).run(), said
