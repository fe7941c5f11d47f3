"""What every file of figures says of itself: the command that made it, the revision of the code, when."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from lm1b.console import now
from lm1b.sequence_tasks.experiment.provenance import neutral_path
from lm1b.training.log.run_log import git_revision


def typed_command() -> str:
    """This process's command line as anyone may type it again: no path of this machine in it."""
    return shlex.join(["python", *map(neutral_path, sys.argv)])


def made_by(command: str | None = None) -> dict[str, Any]:
    """command: where it is not the one that was typed."""
    return {"command": command or typed_command(), "git_revision": git_revision() or "unknown", "finished_at": now()}
