"""Where a result comes from: the command, the revision, the versions, the machine, the data. No path of this machine in it.

The command is that of one process, which finds what ranks under a launcher find but for rounding. How many there were is not told.
"""

from __future__ import annotations

import shlex
from typing import Any

import torch

from lm1b.console import now
from lm1b.neutral_path import neutral_path
from lm1b.processor import cpu_name
from lm1b.sequence_tasks.data.task import Task
from lm1b.training.log.run_log import git_revision
from lm1b.workers import usable_cores


def neutral_command(config: str, overrides: list[str]) -> str:
    """The command as a user would type it in the repository. overrides: `a.b=value`; where results go is left out."""
    words = ["python", "launch/sequence_task.py", "--config", neutral_path(config)]
    for override in overrides:
        name, _, value = override.partition("=")
        if name != "run.directory":
            words += ["--set", f"{name}={neutral_path(value.strip(chr(34)))}"]
    return shlex.join(words)


def machine() -> str:
    """The processor, and how many of its cores there are for this process."""
    return f"{usable_cores()} cores of {cpu_name()}"


def provenance(command: str | None) -> dict[str, Any]:
    """What a reader needs to make a result again. revision: the one that finished it; what it went on from may be older."""
    return {"command": command, "revision": git_revision(), "torch": torch.__version__, "machine": machine(), "finished_at": now()}


def task_facts(task: Task) -> dict[str, Any]:
    """What a result is on: name, sizes of the splits in sequences, a constant answer's loss, and where the data came from."""
    return {
        "name": task.name,
        "asked": task.asked,
        "baseline_loss": task.baseline_loss,
        "sequences": {"train": len(task.train), "dev": len(task.dev), "test": len(task.test)},
        "sources": task.sources,
    }
