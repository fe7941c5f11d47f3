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

import functools
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lm1b.devices import best_device
from lm1b.distributed import Ranks, agree, all_gather_objects, from_first, local_rank, single_process
from lm1b.errors import UserError
from lm1b.files import read_json, write_json
from lm1b.model.products import keep_float32_exact
from lm1b.sequence_tasks.config import TaskExperiment
from lm1b.sequence_tasks.data.load import load_task
from lm1b.sequence_tasks.data.task import Task
from lm1b.sequence_tasks.experiment.provenance import provenance, task_facts
from lm1b.sequence_tasks.experiment.resumable_run import train_run
from lm1b.strict import parse
from lm1b.workers import Workers

SEARCH_SEED = 0
MAY_DIFFER = {("run", "seeds"), ("search", "learning_rates"), ("search", "shares")}  # of what lies in the folder already


@functools.lru_cache(maxsize=2)
def _experiment(config_json: str) -> tuple[TaskExperiment, Task]:
    """Config and data; kept, since one process trains several runs."""
    config = parse(TaskExperiment, json.loads(config_json))
    return config, load_task(config.task)


def _train_one(
    config_json: str, seed: int, learning_rate: float, updates: int, folder: Path, look_at_test: bool, ranks: Ranks | None
) -> dict[str, Any]:
    """ranks None: a process on its own."""
    config, task = _experiment(config_json)
    if ranks is None:
        torch.set_num_threads(1)
        ranks = single_process(best_device())
    keep_float32_exact()
    return train_run(config, task, seed, learning_rate, updates, folder, look_at_test=look_at_test, ranks=ranks)


def _facts(config_json: str) -> dict[str, Any]:
    return task_facts(_experiment(config_json)[1])


class CellSearch:
    """One cell on one task, in its folder: config.json from the start, results.json in the end."""

    def __init__(
        self,
        config: TaskExperiment,
        workers: Workers,
        say: Callable[[str], object],
        ranks: Ranks | None = None,
        command: str | None = None,
    ) -> None:
        """Raises UserError where the folder holds other settings. ranks: several, each with Workers of one process; collective.

        command: for the record, without paths of this machine.
        """
        self.config, self._workers, self._say, self._command = config, workers, say, command
        self._ranks = ranks or single_process()
        self._json = json.dumps(config.as_json(), sort_keys=True)
        self.folder = Path(config.run.directory)
        agree(self._ranks, self._open_folder)
        if self._ranks.size > 1:
            _load_everywhere(self._json, self._ranks)

    def _open_folder(self) -> None:
        kept = self.folder / "config.json"
        if self._ranks.is_first and kept.exists():
            _check_same(read_json(kept), self.config.as_json(), self.folder)
        self._write(kept, self.config.as_json())

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        if self._ranks.is_first:
            write_json(path, value)

    def run(self) -> dict[str, Any]:
        """Search, where there is one, then all seeds: what results.json holds. Collective.

        Raises UserError for data or a run's file that cannot be used.
        """
        search = self._search() if self.config.search else {}
        best = search.get("best", self.config.optimizer.learning_rate)
        folder = self.folder / "seeds" / f"rate_{best:g}"  # of this rate: another search may find another one
        runs = self._train([(seed, best, self.config.training.updates, folder / f"seed_{seed}", True) for seed in self.config.run.seeds])
        runs.sort(key=lambda run: run["seed"])
        result = {"config": self.config.as_json(), "learning_rate": best, "search": search, "runs": runs, "summary": summarize(runs)}
        return from_first(self._ranks, lambda: self._keep(result))

    def _keep(self, result: dict[str, Any]) -> dict[str, Any]:
        """results.json, which stays as it is where it says the same already; the first rank's."""
        kept = self.folder / "results.json"
        before = read_json(kept) if kept.exists() else {}
        if "provenance" in before and {key: before.get(key) for key in result} == result:
            return before
        (facts,) = self._workers.run(_facts, [(self._json,)])  # in a process that has the data
        result = {**result, "task": facts, "provenance": provenance(self._command)}
        write_json(kept, result)
        return result

    def _search(self) -> dict[str, Any]:
        """The rungs, and the rate that is best on dev at the last one."""
        assert self.config.search
        rates, rungs = list(self.config.search.learning_rates), []
        for share in self.config.search.shares:
            updates = max(1, round(share * self.config.training.updates))
            runs = self._train([(SEARCH_SEED, rate, updates, self.folder / "search" / f"rate_{rate:g}", False) for rate in rates])
            runs.sort(key=_rank)
            rungs.append({"updates": updates, "runs": runs})
            rates = [run["learning_rate"] for run in runs[: max(1, len(runs) // 2)]]
        return {"best": rates[0], "rungs": rungs}

    def _train(self, jobs: list[tuple[int, float, int, Path, bool]]) -> list[dict[str, Any]]:
        if self._ranks.is_first:
            self._say(f"{self.folder.name}: {len(jobs)} runs to {jobs[0][2]:,} updates each; a line as each ends")  # minutes may pass
        found = []
        ranks = self._ranks if self._ranks.size > 1 else None
        for run in self._workers.run(_train_one, ((self._json, *job, ranks) for job in jobs)):
            if self._ranks.is_first:
                self._say(f"{self.folder.name}: {describe(run)}")
            found.append(run)
        return found


def _load_everywhere(config_json: str, ranks: Ranks) -> None:
    """Every rank loads the task, the first of each host before the others, since a download may go with it. Raises UserError."""
    for is_turn in (local_rank() == 0, local_rank() != 0):
        agree(ranks, lambda is_turn=is_turn: _experiment(config_json) if is_turn else None, may_take_long=True)
    task = _experiment(config_json)[1]
    facts = {"sources": task.sources, "sequences": [len(task.train), len(task.dev), len(task.test)]}
    for number, found in enumerate(all_gather_objects(facts, ranks)):
        if found != facts:
            first, other = sorted((ranks.rank, number))
            raise UserError(f"ranks {first} and {other} have different data for {task.name}; give every host the same files")


def _rank(run: dict[str, Any]) -> tuple[bool, float, float]:
    """The better run first, by its error on dev; those that diverged last; of equals the lower rate, whichever has ended first."""
    return run["diverged"], math.inf if run["dev_error"] is None else run["dev_error"], run["learning_rate"]


def _check_same(kept: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    different = [
        f"{section}.{key}"
        for section, fields in config.items()
        for key in (fields or {})
        if (section, key) not in MAY_DIFFER and (kept.get(section) or {}).get(key) != fields[key]
    ]
    if different:
        raise UserError(f"{folder}: holds runs with other settings ({', '.join(different)}); take another --set run.directory")


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the seeds: median, least and greatest error on test of the runs that did not diverge, and how many did."""
    errors = sorted(run["test_error"] for run in runs if "test_error" in run)
    summary: dict[str, Any] = {"runs": len(runs), "diverged": sum(run["diverged"] for run in runs)}
    if errors:
        summary |= {"median": statistics.median(errors), "least": errors[0], "greatest": errors[-1]}
    return summary


def describe(run: dict[str, Any]) -> str:
    """A run's result in one line, for people."""
    dev = "not finite" if run["dev_error"] is None else f"{run['dev_error']:.4f} (at {run['best_updates']})"
    test = f", test error {run['test_error']:.4f}" if "test_error" in run else ""
    state = ", diverged" if run["diverged"] else ""
    return (
        f"seed {run['seed']}, learning rate {run['learning_rate']:g}, {run['updates']} updates: dev error {dev}{test}{state}, "
        f"{run['skipped']} skipped, {run['cpu_seconds']:.0f} s of CPU"
    )
