"""Files of figures: what each says of itself (the command that made it, the revision of the code, when), and a place for it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from lm1b.console import now
from lm1b.errors import UserError
from lm1b.sequence_tasks.experiment.provenance import neutral_path
from lm1b.training.log.run_log import git_revision


def typed_command() -> str:
    """This process's command line as anyone may type it again: no path of this machine in it."""
    return shlex.join(["python", *map(neutral_path, sys.argv)])


def made_by(command: str | None = None) -> dict[str, Any]:
    """command: where it is not the one that was typed."""
    return {"command": command or typed_command(), "git_revision": git_revision() or "unknown", "finished_at": now()}


def check_can_write(option: str, path: Path | None) -> None:
    """Raise UserError where `path`, given with `option`, cannot be written: before all is measured, not after."""
    if path is None:
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path}: cannot be written; give a file in a folder that can")
