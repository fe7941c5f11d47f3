"""Trains what a test has planned on real ranks: `python training_worker.py plan.json report.json`.

The plan is a list of launches, one after the other: {"ranks": n, "jobs": [...], "kill_at": file or null}. Each launch has n
processes of its own, forked from this one, which has imported torch and DeepSpeed once for all of them; they train the jobs
in turn, in one process group. As soon as the file `kill_at` exists every rank gets SIGKILL.

A job: {"config": {...}, "poison": {...} or null, "loss_scale": s or null, "as_on_gpu": bool}; the last goes the way of a GPU, with
the CPU in its place and every copy to it a real one. Poison spoils one place on the last rank in the
steps numbered from `first` (from 0) to before `end`: "state" (carried into the step), "loss", "scaled loss" (the loss is
fine, the scale is infinite), "late" (nothing is spoilt, but that rank's loss comes `value` seconds later), "input_table",
"output_table" and "output_bias" (the gradient of the fetched rows), "summed" (the core's gradient behind every look at it but
DeepSpeed's), or the name of a parameter of the core (one element of its gradient).

The report holds, of each launch, of each rank, of each job, what `Watch.seen` holds; null where the ranks were killed.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
import weakref
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tiny import environment, free_port

from lm1b.config import parse_config
from lm1b.distributed import Ranks
from lm1b.errors import UserError
from lm1b.model.language_model import LanguageModel, LossParts
from lm1b.training import loop
from lm1b.training.engine.engine import Engine
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.step import background
from lm1b.training.step import rows as step_rows
from lm1b.training.step.rows import RowPipeline, StepRows
from lm1b.training.step.training_step import StepResult, TrainingStep

TIME_LIMIT_SECONDS = 200.0


def weights_of(step: TrainingStep) -> list[torch.Tensor]:
    """Everything a skipped step must leave as it is."""
    tables = [tensor.clone() for table in step.tables.all() for tensor in (table.rows, table.accumulators)]
    return [*step.engine.core_state().values(), *tables]


class Watch:
    """Runs one job with its poison, and sees what a test wants to know of it."""

    def __init__(self, job: dict[str, Any], ranks: Ranks):
        self.job, self.ranks = job, ranks
        self.poison: dict[str, Any] = job.get("poison") or {"place": "", "first": 0, "end": 0}
        self.value = float(self.poison.get("value", "nan"))
        self.active = False  # in the present step, on this rank
        self.seen: dict[str, Any] = {"skips": [], "factors": []}
        self.run, self.backward = TrainingStep.run, Engine.backward
        self.take, self.watch_gradients, self.forward = RowPipeline.take, Engine._watch_gradients, LanguageModel.forward

    def is_at(self, place: str) -> bool:
        return self.active and self.poison["place"] == place

    def spoilt(self, place: str, gradient: torch.Tensor) -> torch.Tensor:
        if not self.is_at(place):
            return gradient
        gradient = gradient.clone()
        gradient.flatten()[-1] = self.value
        return gradient

    def patches(self) -> list[Any]:
        watch, scale = self, self.job.get("loss_scale")

        def run(step: TrainingStep, **keywords: Any) -> StepResult:
            poisoned = watch.poison["first"] <= step.step < watch.poison["end"]
            watch.active = poisoned and watch.ranks.rank == watch.ranks.size - 1
            before = weights_of(step) if poisoned else []
            if watch.is_at("state"):
                for tensor in step.carry.values():
                    tensor[0] = watch.value
            result = watch.run(step, **keywords)
            watch.seen["factors"].append(result.learning_rate_factor)
            if poisoned or not result.applied:
                after = weights_of(step) if poisoned else []
                skip = {"step": step.step, "applied": result.applied, "causes": result.not_finite, "lanes": result.lanes_restarted}
                skip["unchanged"] = poisoned and all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
                skip["carry_finite"] = all(bool(torch.isfinite(tensor).all()) for tensor in step.carry.values())
                watch.seen["skips"].append(skip)
            return result

        def take(pipeline: RowPipeline, *arguments: Any, **keywords: Any) -> Any:
            rows = watch.take(pipeline, *arguments, **keywords)
            places = ("input_table", "output_table", "output_bias")
            for place, leaf in zip(places, [rows.leaves[0], *rows.leaves[-2:]], strict=True):
                leaf.register_hook(lambda gradient, place=place: watch.spoilt(place, gradient))
            return rows

        def watch_gradients(engine: Engine) -> Any:
            # Hooks run in the order they came in: these before the engine's own, "summed" after it.
            for name, parameter in engine._parameters():
                parameter.register_hook(lambda gradient, name=name: watch.spoilt(name, gradient))
            norms = watch.watch_gradients(engine)
            engine._parameters()[-1][1].register_hook(lambda gradient: watch.spoilt("summed", gradient))
            return norms

        def forward(model: LanguageModel, *arguments: Any, **keywords: Any) -> LossParts:
            parts = watch.forward(model, *arguments, **keywords)
            if watch.is_at("late"):
                time.sleep(watch.value)
            return parts._replace(nats=parts.nats * watch.value) if watch.is_at("loss") else parts

        def backward(engine: Engine, loss: torch.Tensor) -> None:
            watch.backward(engine, loss * float("inf") if watch.is_at("scaled loss") else loss * (scale or 1.0))

        patches = [
            mock.patch.object(TrainingStep, "run", run),
            mock.patch.object(RowPipeline, "take", take),
            mock.patch.object(Engine, "_watch_gradients", watch_gradients),
            mock.patch.object(LanguageModel, "forward", forward),
            mock.patch.object(Engine, "backward", backward),
        ]
        if self.job.get("as_on_gpu"):
            patches += [mock.patch.object(module, "computes_apart", return_value=True) for module in (background, step_rows)]
            patches.append(mock.patch.object(step_rows, "on_device", lambda tensor, device: tensor.clone()))
        if scale:
            patches.append(mock.patch.object(Engine, "loss_scale", property(lambda _: scale)))
        return patches

    def train(self) -> dict[str, Any]:
        taken: list[weakref.ref[StepRows]] = []
        take = self.take

        def counting(pipeline: RowPipeline, *arguments: Any, **keywords: Any) -> StepRows:
            rows = take(pipeline, *arguments, **keywords)
            taken.append(weakref.ref(rows))
            self.seen["rows_alive"] = sum(reference() is not None for reference in taken)
            return rows

        with mock.patch.object(RowPipeline, "take", counting):
            return self._train()

    def _train(self) -> dict[str, Any]:
        self.take = RowPipeline.take  # the one that counts
        patches = self.patches() if any(self.job.get(key) for key in ("poison", "loss_scale", "as_on_gpu")) else []
        for patch in patches:
            patch.start()
        try:
            ended = loop.train_on(self.ranks, parse_config(self.job["config"]))
            counts = {**dataclasses.asdict(ended.counts), "step": ended.training_step.step, "updates": ended.training_step.updates}
            self.seen |= {"error": None, **counts, "changes": ended.changes}
        except UserError as error:
            self.seen["error"] = str(error)
        finally:
            for patch in patches:
                patch.stop()
        gc.collect()  # a run that failed lets go of its lock
        return self.seen


def train_as_rank(place: dict[str, str], jobs: list[dict[str, Any]], report_file: str) -> None:
    """One rank of a launch, in a process of its own."""
    os.environ.update(place)
    ranks = start_ranks()
    seen = [Watch(job, ranks).train() for job in jobs]
    stop_ranks()
    Path(report_file).write_text(json.dumps(seen))


def finish(processes: list[BaseProcess], kill_at: str | None) -> None:
    """Wait for the ranks of one launch, or kill them when it is time. Raises where they did not end as they should."""
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    while kill_at is not None and not Path(kill_at).exists():
        assert all(process.is_alive() for process in processes), f"ended before {kill_at} was there"
        assert time.monotonic() < deadline, f"{kill_at} never came"
        time.sleep(0.002)
    expected = 0 if kill_at is None else -signal.SIGKILL
    if kill_at is not None:
        for process in processes:
            process.kill()
    try:
        while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
            if any(process.exitcode not in (None, expected) for process in processes):
                break  # the others wait for one that has gone
            time.sleep(0.01)
        codes = [process.exitcode for process in processes]
        assert codes == [expected] * len(codes), f"ranks ended with {codes}, expected {expected}"
    finally:
        for process in processes:
            process.kill()
            process.join()


def main(plan_file: str, report_file: str) -> None:
    warnings.filterwarnings("error", module=r"lm1b\.")  # ours; those of torch and DeepSpeed are not
    forks = multiprocessing.get_context("fork")
    report = []
    for number, launch in enumerate(json.loads(Path(plan_file).read_text())):
        size, port = launch["ranks"], str(free_port())
        processes, files = [], []
        for rank in range(size):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_SIZE": str(size)}
            place = environment(**place, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            files.append(f"{report_file}.{number}.{rank}")
            processes.append(forks.Process(target=train_as_rank, args=(place, launch["jobs"], files[-1])))
            processes[-1].start()
        finish(processes, launch["kill_at"])
        report.append(None if launch["kill_at"] else [json.loads(Path(file).read_text()) for file in files])
    Path(report_file).write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
