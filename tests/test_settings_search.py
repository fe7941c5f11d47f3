"""Trainings on a budget: what tools/settings_search.py finds on the tiny corpus and refuses, and the papers' search of rates."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_runs import run
from parts.harness.scored_training import steps_within
from parts.paper_results import keep
from parts.paper_results.language_models import Table
from tiny import write_settings

from lm1b.errors import UserError
from lm1b.files import read_json


def search(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "tools/settings_search.py", "--config", str(config), "--json", str(config.with_name("out.json")), *words])


@pytest.fixture(scope="module")
def config(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_settings(tmp_path_factory.mktemp("search"), "tiny", tokens={"directory": str(tiny_folder / "tokens")})


def test_each_trial_has_its_budget_and_is_not_repeated(config: Path) -> None:
    asked = ["--steps", "30", "--sentences", "20", "--set", "training.threads=2"]
    done = search(config, *asked, "--try", "slow", "optimizer.learning_rate=0.01", "--try", "fast", "optimizer.learning_rate=0.3")
    assert done.returncode == 0, done.stderr
    found = read_json(config.with_name("out.json"))
    assert list(found) == ["slow", "fast"]
    for name, rate in (("slow", 0.01), ("fast", 0.3)):
        trial = found[name]
        assert (trial["steps"], trial["words"], trial["sentences"]) == (30, 30 * 80, 20)
        assert trial["set"] == ["training.threads=2", f"optimizer.learning_rate={rate}"]
        assert trial["command"].startswith("python tools/settings_search.py --config PATH/tiny.json --json PATH/out.json --steps 30")
        assert len(trial["curve"]) == 4
        assert all(perplexity > 1 for _, perplexity in trial["curve"])
    assert found["slow"]["curve"][-1][1] > found["fast"]["curve"][-1][1]

    again = search(config, *asked, "--try", "slow", "optimizer.learning_rate=0.01")
    assert (again.returncode, again.stdout) == (0, "")
    other = search(config, *asked[2:], "--steps", "31", "--try", "slow", "optimizer.learning_rate=0.02")
    assert other.returncode == 2
    assert "--try slow: the JSON holds one of this name, but with other set, steps; give it another name" in other.stderr
    assert read_json(config.with_name("out.json")) == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: --try"),
        (["--try", "a", "--sentences", "0"], "--sentences (=0) must be at least 1"),
        (["--try", "a", "--try", "a"], "two have the same name"),
        (["--try", "a", "--steps", "3"], "3 steps: expected at least 4"),
        (["--try", "a", "--cpu-seconds", "0.001"], "0.001 CPU seconds are 0 steps, expected at least 160"),
    ],
    ids=" ".join,
)
def test_what_can_be_no_trial_is_refused(config: Path, words: list[str], said: str) -> None:
    done = search(config, *words)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_budget_of_seconds_has_its_first_point_after_the_timed_steps() -> None:
    assert steps_within(32.0, 0.2, (0.25, 0.5, 0.75, 1.0)) == 160
    with pytest.raises(UserError, match="30 CPU seconds are 150 steps, expected at least 160"):
        steps_within(30.0, 0.2, (0.25, 0.5, 0.75, 1.0))


def test_a_rate_that_diverges_loses_the_search(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Perplexities of a search as files hold them: null, and Infinity in those that were made before."""
    table: Any = object.__new__(Table)
    table.cells = {"lstm_256": {"search": {"0.25": {"0.1": None, "0.2": 90.0, "0.4": math.inf, "0.8": 80.0}}}}
    assert table.rung("lstm_256", 0.25, [0.1, 0.2, 0.4, 0.8]) == [0.8, 0.2]
    (tmp_path / "language_models.json").write_text(json.dumps({"cells": table.cells}))
    keep.run(SimpleNamespace(runs=[tmp_path / "language_models.json"], into=tmp_path / "kept", revision=None))  # type: ignore[arg-type]
    text = (tmp_path / "kept" / "language_models.json").read_text()
    search = json.loads(text)["cells"]["lstm_256"]["search"]
    assert search == {"0.25": {"0.1": None, "0.2": 90.0, "0.4": None, "0.8": 80.0}}
    assert "Infinity" not in text
