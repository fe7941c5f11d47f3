"""The papers' shipped configs: each trains, a table's differ in the model alone, and a mistake in one is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_runs import run_script
from sequence_experiments import ALONE, CELLS, run_experiment
from tiny import REPOSITORY

from lm1b.sequence_tasks.config import load_task_experiment
from lm1b.sequence_tasks.data.load import load_task
from lm1b.sequence_tasks.experiment.resumable_run import Job, train_run
from lm1b.strict import override

CONFIGS = sorted((REPOSITORY / "configs" / "tasks").glob("*.json"))
SHARED = REPOSITORY.parent / "shared" / "data"
REAL_DATA = {"pixel_mnist": "mnist", "phones": "timit_sample", "actions": "wrist_motion"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_trains(path: Path, tmp_path: Path) -> None:
    config = load_task_experiment(path, ["training.updates=2", "training.evaluate_every=2", "training.batch=4", "run.seeds=[1]"])
    small = ["search.learning_rates=[0.001]", "search.shares=[1.0]", f"run.directory={json.dumps(str(tmp_path))}"]
    if config.task.kind in REAL_DATA:
        if not SHARED.is_dir():
            pytest.skip("needs ../shared/data, which is not passed on")
        small.append(f"task.path={json.dumps(str(SHARED / REAL_DATA[config.task.kind]))}")
        if config.task.kind == "pixel_mnist":
            small.append("task.dev_size=59990")
    else:
        small += ["task.train_size=20", "task.held_out_size=10"]
    if config.task.kind == "pixel_mnist":
        task = load_task(override(config, small).task)  # ten thousand images of test would take too long
        task = replace(task, dev=task.train, test=task.train)
        result = train_run(config, task, Job(1, 0.001, 2, tmp_path, True), ALONE)
        assert result["updates"] == 2
        return
    result, _ = run_experiment(override(config, small))
    assert result["summary"]["runs"] == 1


def test_the_cells_of_a_table_differ_in_the_model_alone() -> None:
    tables: dict[str, list[dict[str, Any]]] = {}
    for path in CONFIGS:
        name = next(path.stem.removesuffix(f"_{cell}") for cell in CELLS if path.stem.endswith(f"_{cell}"))
        config = load_task_experiment(path).as_json()
        assert config["run"].pop("directory") == f"runs/tasks/{path.stem}"
        assert path.stem.endswith(config.pop("model")["cell"])
        tables.setdefault(name, []).append(config)
    assert tables
    for name, configs in tables.items():
        assert len(configs) == len(CELLS), name
        assert all(config == configs[0] for config in configs), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["task.steps=1"], r"task\.steps: Input should be greater than or equal to 2, found 1"),
        (["task.stepz=3"], r"stepz: unknown key"),
        (["run.seeds=[1,1]"], r"run.seeds must differ"),
        (["run.seeds=[0,1]"], r"run.seeds: 0 is the search's own"),
        (["search.shares=[0.5,0.25]"], r"search.shares must grow"),
        (["task.kind=subtraction"], r"task: .*subtraction"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(settings: list[str], message: str) -> None:
    import re

    command = ["launch/sequence_task.py", "--config", "configs/tasks/adding_irnn.json"]
    done = run_script(*command, *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert re.search(message, done.stderr), done.stderr
