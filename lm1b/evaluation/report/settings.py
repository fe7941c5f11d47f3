"""Settings, environment and commands of runs side by side: rows of tables for the report."""

from __future__ import annotations

import json
import shlex
from typing import Any

from lm1b.evaluation.report.records import RunRecord

PLACES = ("run.directory", "run.mirror", "tokens.cache_directory")  # where, not what
ENVIRONMENT_FACTS = {
    "git_revision": "revision",
    "started_at": "started",
    "hosts": "hosts",
    "ranks": "ranks",
    "threads": "threads a rank",
    "device": "device",
    "precision": "precision",
    "python": "Python",
    "core_parameters": "parameters of the core",
    "table_parameters": "parameters of the tables",
}
VERSIONS = ("torch", "deepspeed", "numpy")


def _flat(value: dict[str, Any], before: str = "") -> dict[str, str]:
    """`a.b`: JSON of every field."""
    found: dict[str, str] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{before}{key}.") if isinstance(inner, dict) and inner else {before + key: json.dumps(inner)}
    return found


def settings_rows(runs: list[RunRecord]) -> list[list[str]]:
    """A row a field: its name and every run's value; only what differs between runs, or for one run from the defaults."""
    values = [_flat(run.config.as_json()) for run in runs]
    if len(runs) == 1:
        defaults = _defaults(runs[0])
        return [[name, value, defaults.get(name, "")] for name, value in values[0].items() if value != defaults.get(name)]
    names = dict.fromkeys(name for each in values for name in each if name not in PLACES)
    rows = [[name, *(each.get(name, "") for each in values)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def _defaults(run: RunRecord) -> dict[str, str]:
    """Of the fields that have one."""
    found: dict[str, str] = {}
    for name, field in type(run.config).model_fields.items():
        section = type(getattr(run.config, name))
        if hasattr(section, "model_fields"):
            fields = {
                key: inner.get_default(call_default_factory=True) for key, inner in section.model_fields.items() if not inner.is_required()
            }
            found |= {f"{name}.{key}": json.dumps(value) for key, value in fields.items()}
        else:
            found[name] = json.dumps(field.get_default(call_default_factory=True))
    return found


def environment_rows(runs: list[RunRecord]) -> list[list[str]]:
    """A row a fact: its name and every run's value, where some run has one."""
    columns = []
    for run in runs:
        versions = run.environment.get("versions") or {}
        shown = {label: _shown(run.environment.get(key)) for key, label in ENVIRONMENT_FACTS.items()}
        columns.append(shown | {name: _shown(versions.get(name)) for name in VERSIONS})
    rows = [[label, *(column[label] for column in columns)] for label in columns[0]]
    return [row for row in rows if any(row[1:])]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(dict.fromkeys(str(each) for each in value))
    if isinstance(value, str) and len(value) >= 40 and set(value[:40]) <= set("0123456789abcdef"):
        return value[:12] + value[40:]  # a revision
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def commands_to_repeat(run: RunRecord) -> list[str]:
    """Shell lines that make the run again, from the command that it was started with; the config's options on the command line included."""
    words = [str(word) for word in run.environment.get("command") or []]
    options = [word for word in words[1:] if not word.startswith("--local_rank")]
    if not options:
        return []
    revision = run.environment.get("git_revision")
    checkout = [f"git checkout {shlex.quote(revision.removesuffix('-dirty'))}"] if isinstance(revision, str) else []
    if isinstance(revision, str) and revision.endswith("-dirty"):
        checkout[0] += "  # and what had been changed since then"
    ranks = run.environment.get("ranks")
    training = shlex.join(["deepspeed", "--num_gpus", str(ranks or 1), "launch/train.py", *options])
    return [
        *checkout,
        shlex.join(["python", "launch/preprocess.py", *options]),
        training,
        shlex.join(["python", "launch/evaluate.py", "--run", run.config.run.directory]),
        shlex.join(["python", "launch/report.py", run.config.run.directory]),
    ]
