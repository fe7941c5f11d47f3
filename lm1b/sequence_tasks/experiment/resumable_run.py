"""A run in its folder, from wherever it stands to a number of updates; nothing is trained twice.

run.safetensors        weights, those best on dev, optimizer state; how far it has come in the metadata. The same for any number of ranks
result_<updates>.json  once it has come that far, or has given up before
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lm1b.distributed import Ranks, agree, from_first, tensors_from_first
from lm1b.errors import UserError
from lm1b.files import atomic_file, read_json, write_json
from lm1b.sequence_tasks.config import TaskExperiment
from lm1b.sequence_tasks.data.task import Task
from lm1b.sequence_tasks.experiment.engine_run import EngineRun
from lm1b.sequence_tasks.experiment.trainer import PROGRESS, SequenceRun


class Job(NamedTuple):
    """One run, in its folder, that is to be trained to `updates`. looks_at_test: there, unless it has diverged."""

    seed: int
    learning_rate: float
    updates: int
    folder: Path
    looks_at_test: bool = False

    @property
    def result(self) -> Path:
        """Where what has come of it is kept."""
        return self.folder / f"result_{self.updates}.json"


def train_run(config: TaskExperiment, task: Task, job: Job, ranks: Ranks) -> dict[str, Any]:
    """Train to `job.updates`, or read what has come of it already: SequenceRun.result, with `test_loss` and `test_error` where asked.

    Collective: what lies in the first rank's folder decides, and it alone writes there. Raises UserError for a run that cannot be gone
    on with, or that has gone further already.
    """
    kept = job.folder / "run.safetensors"
    result = from_first(ranks, lambda: read_json(job.result) if job.result.exists() else None)
    if result is not None:
        _check_not_beyond(job, result["updates"])
        return result
    run = (SequenceRun if ranks.size == 1 else EngineRun)(config, task, job.seed, job.learning_rate, ranks)
    if from_first(ranks, kept.exists):
        _load_run(run, kept)
        _check_not_beyond(job, run.updates)
    else:
        run.look_at_dev()
    while run.updates < job.updates and not run.has_given_up:
        started_at = time.process_time()
        until = min(job.updates, run.updates + config.training.evaluate_every)
        while run.updates < until and not run.has_given_up:
            run.update()
        run.look_at_dev()
        run.cpu_seconds += run.add_up(time.process_time() - started_at)[0]
        _save_run(run, kept)
    result = run.result()
    if job.looks_at_test and not run.has_diverged:
        result |= run.look_at_test()
    run.close()
    agree(ranks, lambda: write_json(job.result, result, outlives_power=False) if ranks.is_first else None)
    return from_first(ranks, lambda: result)


def _check_not_beyond(job: Job, updates: int) -> None:
    """What a run was after fewer updates cannot be told any more: runs of unlike length would be compared."""
    if updates > job.updates:
        raise UserError(
            f"{job.folder}: trained for {updates:,} updates already, more than the {job.updates:,} asked for; a folder in use takes no "
            "lower search.shares: take another --set run.directory, or delete that run to train it anew"
        )


def _save_run(run: SequenceRun, path: Path) -> None:
    """Everything that going on needs, atomically, by the first rank. Collective."""
    tensors, progress = run.kept()

    def write() -> None:
        with atomic_file(path, outlives_power=False) as file:
            file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"progress": json.dumps(progress)}))

    agree(run.ranks, lambda: write() if run.ranks.is_first else None)


def _load_run(run: SequenceRun, path: Path) -> None:
    """Go on from a file of `_save_run`, whatever the number of ranks then. Raises UserError for one that is not whole. Collective."""
    shapes = {name: parameter.shape for name, parameter in run.network.named_parameters()}
    tensors, progress = agree(run.ranks, lambda: _read(path, shapes) if run.ranks.is_first else ({}, {}))
    run.go_on(tensors_from_first(tensors, run.ranks), from_first(run.ranks, lambda: progress))


def _read(path: Path, shapes: dict[str, torch.Size]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on CPU, and progress. shapes: of the network's weights, by name."""
    try:
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        found: dict[str, dict[str, torch.Size]] = {"weights": {}, "best": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition("/")
            found[kind][rest] = tensor.shape
        if set(progress) != set(PROGRESS) or found["weights"] != shapes or found["best"] not in (shapes, {}):
            raise ValueError("of another network, or of another version")
        if not all(re.fullmatch(r"\d+/\w+", name) for name in found["optimizer"]):
            raise ValueError("its optimizer's state has other names")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a run that can be gone on with ({error}); delete it to train that run anew") from None
    return tensors, progress
