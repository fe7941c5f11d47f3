"""One cell on one task, by the protocol of a fair table: the learning rate by successive halving on dev, then every seed with it.

1. All rates are trained to the first share of the budget, the better half of them goes on to the next, and so forth; the best on dev at
   the last share is taken (Jamieson and Talwalkar 2016). Only learning rates are searched, the same for every cell of a table.
2. Every seed is trained to the whole budget with that rate, and looks at test once, with the weights that were best on dev.
3. Runs go side by side, one a core, and none that has ended is done again: the same command goes on after a kill.
4. `results.json` says where it comes from (provenance.py). It stays as it is where the same command finds every run done.
5. Several ranks train one run after another together; the first one's folder decides, and it alone writes and speaks.

    run.directory/  config.json  search/rate_0.001/...  seeds/rate_0.001/seed_1/...  results.json
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import statistics
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch

from lm1b.distributed import Ranks, agree, all_gather_objects, from_first
from lm1b.errors import UserError
from lm1b.files import read_json, write_json
from lm1b.launchers import here
from lm1b.model.products import keep_float32_exact
from lm1b.sequence_tasks.config import SEARCH_SEED, TaskConfig, TaskExperiment
from lm1b.sequence_tasks.data.load import fetch, load_task
from lm1b.sequence_tasks.data.task import Task
from lm1b.sequence_tasks.experiment.provenance import provenance, task_facts
from lm1b.sequence_tasks.experiment.resumable_run import Job, train_run
from lm1b.strict import parse
from lm1b.workers import Workers

# Of what lies in the folder already, which may have been moved.
MAY_DIFFER = {("run", "directory"), ("run", "seeds"), ("search", "learning_rates"), ("search", "shares")}


_kept_task = functools.lru_cache(maxsize=2)(load_task)


def _data(config: TaskConfig) -> Task:
    """The task; kept, since one process trains several runs, of several cells."""
    return _kept_task(config)  # type: ignore[arg-type]  (pydantic gives what is frozen a hash)


def _train_one(config_json: str, job: Job, ranks: Ranks) -> dict[str, Any]:
    """A job, in a process of its own where ranks are one. The config as JSON: parsing it there brings in the cells of LM1B_CELLS."""
    config = parse(TaskExperiment, json.loads(config_json))
    if ranks.size == 1:
        torch.set_num_threads(1)
    keep_float32_exact()
    with _denormals_as_zero():
        return train_run(config, _data(config.task), job, ranks)


@contextlib.contextmanager
def _denormals_as_zero() -> Generator[None]:
    """In this block, and in it alone, since the process may have other uses for them.

    A gradient that vanishes over hundreds of steps comes below 1e-38, where a CPU takes five times as long for what means nothing.
    """
    were_kept = bool(torch.tensor(1e-30) * 1e-10 != 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not were_kept)


def _facts(task: TaskConfig) -> dict[str, Any]:
    return task_facts(_data(task))


def rate_name(rate: float) -> str:
    """A learning rate as folders are named after it: short, and no two alike."""
    return f"{rate:g}" if float(f"{rate:g}") == rate else repr(rate)


class CellRuns:
    """One cell on one task, in its folder: config.json from the start, results.json in the end."""

    def __init__(
        self,
        config: TaskExperiment,
        workers: Workers,
        say: Callable[[str], object],
        ranks: Ranks,
        command: str | None = None,
    ) -> None:
        """Raises UserError where the folder holds other settings. ranks: where several, each with Workers of one process; collective.

        command: for the record, without paths of this machine.
        """
        self.config, self._workers, self._say, self._ranks, self._command = config, workers, say, ranks, command
        self.folder = Path(config.run.directory)
        agree(ranks, lambda: self._open_folder() if ranks.is_first else None)

    def _open_folder(self) -> None:
        kept = self.folder / "config.json"
        if kept.exists():
            _check_same(kept, self.config)
        write_json(kept, self.config.as_json())

    def run(self) -> dict[str, Any]:
        """Search, where there is one, then all seeds: what results.json holds. Collective.

        Raises UserError for data or a run's file that cannot be used.
        """
        if self._ranks.size > 1:
            _load_everywhere(self.config.task, self._ranks)
        search = self._search() if self.config.search else {}
        best = search.get("best", self.config.optimizer.learning_rate)
        folder = self.folder / "seeds" / f"rate_{rate_name(best)}"  # of this rate: another search may find another one
        updates = self.config.training.updates
        runs = self._train([Job(seed, best, updates, folder / f"seed_{seed}", looks_at_test=True) for seed in self.config.run.seeds])
        runs.sort(key=lambda run: run["seed"])
        result = {"config": self.config.as_json(), "learning_rate": best, "search": search, "runs": runs, "summary": summarize(runs)}
        return from_first(self._ranks, lambda: self._keep(result))

    def _keep(self, result: dict[str, Any]) -> dict[str, Any]:
        """results.json, which stays as it is where it says the same already; the first rank's."""
        kept = self.folder / "results.json"
        before = read_json(kept) if kept.exists() else {}
        if "provenance" in before and {key: before.get(key) for key in result} == result:
            return before
        (facts,) = self._workers.run(_facts, [(self.config.task,)])  # in a process that has the data
        result = {**result, "task": facts, "provenance": provenance(self._command)}
        write_json(kept, result)
        return result

    def _search(self) -> dict[str, Any]:
        """The rungs, and the rate that is best on dev at the last one."""
        assert self.config.search
        rates, rungs = list(self.config.search.learning_rates), []
        for share in self.config.search.shares:
            updates = max(1, round(share * self.config.training.updates))
            runs = self._train([Job(SEARCH_SEED, rate, updates, self.folder / "search" / f"rate_{rate_name(rate)}") for rate in rates])
            runs.sort(key=_best_first)
            rungs.append({"updates": updates, "runs": runs})
            rates = [run["learning_rate"] for run in runs[: max(1, len(runs) // 2)]]
        return {"best": rates[0], "rungs": rungs}

    def _train(self, jobs: list[Job]) -> list[dict[str, Any]]:
        if self._ranks.is_first:
            self._say(f"{self.folder.name}: {len(jobs)} runs to {jobs[0].updates:,} updates each; a line as each ends")  # minutes may pass
        if self._ranks.size == 1 and not all(job.result.exists() for job in jobs):
            fetch(self.config.task)  # by this process, before workers that all need it start
        found, config_json = [], json.dumps(self.config.as_json())
        for run in self._workers.run(_train_one, ((config_json, job, self._ranks) for job in jobs)):
            if self._ranks.is_first:
                self._say(f"{self.folder.name}: {describe(run)}")
            found.append(run)
        return found


def _load_everywhere(config: TaskConfig, ranks: Ranks) -> None:
    """Every rank loads the task, the first of each host before the others, since a download may go with it. Raises UserError."""
    is_first_here = here().local_rank == 0
    for is_turn in (is_first_here, not is_first_here):
        agree(ranks, lambda is_turn=is_turn: _data(config) if is_turn else None, may_take_long=True)
    task = _data(config)
    facts = {"sources": task.sources, "sequences": [len(task.train), len(task.dev), len(task.test)]}
    for number, found in enumerate(all_gather_objects(facts, ranks)):
        if found != facts:
            first, other = sorted((ranks.rank, number))
            raise UserError(f"ranks {first} and {other} have different data for {task.name}; give every host the same files")


def _best_first(run: dict[str, Any]) -> tuple[bool, float, float]:
    """The better run first, by its error on dev; those that diverged last; of equals the lower rate, whichever has ended first."""
    return run["diverged"], math.inf if run["dev_error"] is None else run["dev_error"], run["learning_rate"]


def _check_same(kept: Path, config: TaskExperiment) -> None:
    """Raises UserError where a folder's config.json is of another experiment, defaults written out, wherever the folder lies now."""
    before, now = parse(TaskExperiment, read_json(kept), str(kept)).as_json(), config.as_json()
    different = [
        f"{section}.{key}"
        for section, fields in now.items()
        for key in (fields or {})
        if (section, key) not in MAY_DIFFER and (before[section] or {}).get(key) != fields[key]
    ]
    if different:
        raise UserError(f"{kept.parent}: holds runs with other settings ({', '.join(different)}); take another --set run.directory")


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: median, least and greatest error on test where there is a finite one, and how many diverged."""
    errors = sorted(run["test_error"] for run in runs if run.get("test_error") is not None)
    summary: dict[str, Any] = {"runs": len(runs), "diverged": sum(run["diverged"] for run in runs)}
    if errors:
        summary |= {"median": statistics.median(errors), "least": errors[0], "greatest": errors[-1]}
    return summary


def describe(run: dict[str, Any]) -> str:
    """A run's result in one line, for people."""
    dev = _shown(run["dev_error"]) + (f" (at {run['best_updates']})" if run["best_updates"] is not None else "")
    test = f", test error {_shown(run['test_error'])}" if "test_error" in run else ""
    state = ", diverged" if run["diverged"] else ""
    return (
        f"seed {run['seed']}, learning rate {run['learning_rate']:g}, {run['updates']} updates: dev error {dev}{test}{state}, "
        f"{run['skipped']} skipped, {run['cpu_seconds']:.0f} s of CPU"
    )


def _shown(error: float | None) -> str:
    return "not finite" if error is None else f"{error:.4f}"
