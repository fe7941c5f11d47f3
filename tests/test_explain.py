"""Help on the configs' fields, and the schemas for editors."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from config_schema import SCHEMAS
from tiny import REPOSITORY, environment

from lm1b.config import Config
from lm1b.errors import UserError
from lm1b.explain import explain, field_paths
from lm1b.sequence_tasks.config import TaskExperiment
from lm1b.strict import Section


@pytest.mark.parametrize("model", [Config, TaskExperiment])
def test_every_field_has_a_page_with_type_default_and_meaning(model: type[Section]) -> None:
    paths = field_paths(model)
    assert len(paths) > 20
    for path in paths:
        head, _, meaning = explain(model, path).partition("\n")
        assert head.startswith(f"{path}: ")
        assert "; default" in head or "; must be given" in head
        assert "anything" not in head
        assert len(meaning.split()) > 2, path
        assert max(map(len, explain(model, path).splitlines())) <= 140


def test_pages_of_sections_name_their_fields() -> None:
    whole = explain(Config)
    assert all(f"  {name}" in whole for name in Config.model_fields)
    page = explain(Config, "optimizer")
    assert "clip_norm (number above 0 or null; default 10.0): Clip" in page
    kinds = explain(TaskExperiment, "task")
    assert all(f"task: {first}" in kinds for first in ("The adding", "Handwritten", "Phone frames", "Which action"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("model.identity_scal", "did you mean `identity_scale`"),
        ("modl", "no `modl` in the config, did you mean `model`"),
        ("model.zzz", "there are cell, "),
        ("run.seed.more", "no `more` in run.seed"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        explain(Config, path)


def test_metrics_are_those_of_a_language_model_s_run() -> None:
    assert "nats_per_word" in explain(Config, "metrics")
    with pytest.raises(UserError, match="no `metrics` in the config"):
        explain(TaskExperiment, "metrics")


@pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_schemas_are_those_of_the_models(path: object) -> None:
    kept = json.loads(path.read_text())  # type: ignore[attr-defined]
    assert kept == SCHEMAS[path].model_json_schema(), "run python tools/config_schema.py"  # type: ignore[index]


@pytest.mark.parametrize("script", ["train.py", "preprocess.py", "sequence_task.py"])
def test_commands_explain_without_a_config(script: str) -> None:
    def command(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, f"launch/{script}", *options], cwd=REPOSITORY, env=environment(), capture_output=True, text=True
        )

    done = command("--explain", "model.identity_scale")
    assert done.returncode == 0
    assert done.stdout.startswith("model.identity_scale: number above 0; default 1.0\n  irnn: ")
    wrong = command("--explain", "model.identity_scal")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert command("--explain").stdout.startswith("the config: One ")
