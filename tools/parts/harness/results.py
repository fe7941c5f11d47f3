"""Files of figures: what each says of itself (the command, revision and machine that made it, when), and a place for it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from lm1b.errors import UserError
from lm1b.sequence_tasks.experiment.provenance import neutral_path, provenance


def typed_command() -> str:
    """This process's command line as anyone may type it again: no path of this machine in it, nor behind the = of a word."""
    return shlex.join(["python", *(_neutral(word) for word in sys.argv)])


def _neutral(word: str) -> str:
    name, is_set, value = word.partition("=")
    path = value.strip('"')
    return name + is_set + neutral_path(path) if is_set and path.startswith("/") else neutral_path(word)


def made_by() -> dict[str, Any]:
    """command, revision, torch, machine, finished_at."""
    return provenance(typed_command())


def revision_of(figures: dict[str, Any]) -> str:
    """Twelve digits of the revision that a file of figures says, or `unknown`; older files call it git_revision."""
    return (figures.get("revision") or figures.get("git_revision") or "unknown")[:12]


def check_can_write(option: str, path: Path | None) -> None:
    """Raise UserError where `path`, given with `option`, cannot be written: before all is measured, not after."""
    if path is None:
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written; give a file in a folder that can")
