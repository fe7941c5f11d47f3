"""What the tests of preprocessing's faults run in processes of their own; imports little, so that a process starts quickly."""

from __future__ import annotations

import os
import signal
from typing import Any

from lm1b.config import parse_config
from lm1b.data.preprocess.preprocess import preprocess


def preprocess_settings(settings: dict[str, Any]) -> None:
    """Preprocess to the end."""
    preprocess(parse_config(settings), progress=False)


def kill_before_rename(number: int) -> None:
    """From now on: this process is killed by SIGKILL before its rename with this number, from 0."""
    renames, rename = 0, os.replace

    def replace(source: Any, target: Any) -> None:
        nonlocal renames
        if renames == number:
            os.kill(os.getpid(), signal.SIGKILL)
        renames += 1
        rename(source, target)

    os.replace = replace


def killed_before_rename(settings: dict[str, Any], number: int) -> None:
    """Preprocess and be killed by SIGKILL before the rename with this number, from 0."""
    kill_before_rename(number)
    preprocess_settings(settings)
