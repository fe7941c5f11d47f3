"""What of a result is kept for the papers' report: small, without paths of the machine, and refused by name where it is unsound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_papers import ADDING_150, SOLVES, keep_made_results, kept, made_result
from tiny import REPOSITORY

from lm1b.distributed import single_process
from lm1b.errors import UserError
from lm1b.files import write_json
from lm1b.sequence_tasks.config import load_task_experiment
from lm1b.sequence_tasks.experiment.cell_runs import CellRuns
from lm1b.sequence_tasks.experiment.provenance import neutral_command
from lm1b.sequence_tasks.papers.kept import LARGEST_KEPT_BYTES, read_kept, rounded, shorten, write_kept
from lm1b.sequence_tasks.papers.report import render
from lm1b.workers import Workers


def test_a_kept_result_is_small_and_knows_no_path_of_the_machine(tmp_path: Path) -> None:
    keep_made_results(tmp_path)
    for path in tmp_path.glob("*.json"):
        assert path.stat().st_size < LARGEST_KEPT_BYTES / 2
        assert "/somewhere" not in path.read_text()
    (phones,) = [result for result in read_kept(tmp_path) if result.name == "phones_irnn"]
    assert (phones.kept["config"]["task"]["path"], phones.config.run.directory) == ("PATH/timit_sample", "runs/tasks/phones_irnn")


def test_a_kept_curve_has_its_first_and_last_point_and_at_most_50() -> None:
    made = made_result(ADDING_150, "irnn", SOLVES)
    for short, full in zip(kept(made).runs, made["runs"], strict=True):
        assert len(short["curve"]["updates"]) == 50
        for place in (0, -1):
            assert short["curve"]["updates"][place] == full["curve"][place]["updates"]
            assert short["curve"]["dev_loss"][place] == rounded(full["curve"][place]["dev_loss"])


def test_a_result_that_does_not_say_what_it_is_on_is_refused() -> None:
    made = made_result({"kind": "actions", "path": "x"}, "irnn", [0.1])
    del made["task"]
    with pytest.raises(UserError, match="does not say what data it is on; the same command again adds that"):
        shorten(made, "actions_irnn")


def test_a_file_that_is_no_kept_result_is_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "broken.json", {"runs": []})
    with pytest.raises(UserError, match=r"broken.json: not a kept result \(name, config"):
        render(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("one", {"name": "x", "config": {}, "learning_rate": 1, "search": [], "runs": []}, r"one.json: not a kept result \(task, prov"),
        ("one", {"runs": [{"seed": 1}], "search": [[]]}, r"one.json: not a kept result \(name, .*, search, runs\)"),
        ("one", shorten(made_result(ADDING_150, "irnn", SOLVES), "one") | {"config": {}}, r"one.json: run: missing; task: missing"),
        ("dynamics", {}, r"dynamics.json: not what tools/paper_results.py dynamics writes"),
        ("dynamics", {"steps": [], "cells": {}}, r"dynamics.json: not what tools/paper_results.py dynamics writes"),
    ],
)  # fmt: skip
def test_an_unsound_file_is_refused_by_name(tmp_path: Path, name: str, value: Any, message: str) -> None:
    write_json(tmp_path / f"{name}.json", value)
    with pytest.raises(UserError, match=message):
        render(tmp_path, tmp_path)


def test_a_kept_result_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than the 40,000 of a kept result"):
        write_kept(tmp_path / "large.json", kept(made_result(ADDING_150, "irnn", [0.001] * 100)).kept)


def test_a_command_is_kept_as_anyone_may_type_it() -> None:
    here = str(REPOSITORY / "configs" / "tasks" / "pixel_mnist_irnn.json")
    overrides = ["task.path=/home/me/mnist", "run.directory=/tmp/mine", "run.seeds=[1, 2]", 'task.path="/home/me/more"']
    assert neutral_command(here, overrides) == (
        "python launch/sequence_task.py --config configs/tasks/pixel_mnist_irnn.json --set task.path=PATH/mnist --set 'run.seeds=[1, 2]' "
        "--set task.path=PATH/more"
    )


ALONE = single_process()
TINY = ["task.steps=8", "task.train_size=64", "task.held_out_size=32", "training.updates=4", "training.evaluate_every=2", "search=null"]


def test_results_keep_their_provenance_when_the_same_command_finds_them_done(tmp_path: Path) -> None:
    sets = [*TINY, "run.seeds=[1]", f"run.directory={tmp_path / 'tiny'}"]
    config = load_task_experiment(REPOSITORY / "configs" / "tasks" / "adding_irnn.json", sets)
    with Workers(1) as workers:
        first = CellRuns(config, workers, lambda line: None, ALONE, "the first command").run()
        before = (tmp_path / "tiny" / "results.json").read_bytes()
        again = CellRuns(config, workers, lambda line: None, ALONE, "another command").run()
        assert again == first == json.loads(before)
        assert (tmp_path / "tiny" / "results.json").read_bytes() == before
        assert first["provenance"]["command"] == "the first command"
        assert first["task"]["name"] == "adding, T = 8"
        more = load_task_experiment(REPOSITORY / "configs" / "tasks" / "adding_irnn.json", [*sets, "run.seeds=[1, 2]"])
        assert CellRuns(more, workers, lambda line: None, ALONE, "a third").run()["provenance"]["command"] == "a third"
