"""Forks in the place of commands: limits, and what is said apart."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
import pytest
from forked import run_each, run_forked
from tiny import environment

SLEEPER = "import os, pathlib, sys, time; pathlib.Path(str(os.getpid())).touch(); time.sleep(1000)"


def test_ranks_over_their_limit_are_all_ended(tmp_path: Path) -> None:
    started_at = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        run_forked("-c", [SLEEPER], [environment()] * 3, tmp_path, timeout=2)
    assert time.monotonic() - started_at < 60  # one limit for all, not one each
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 3
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_each_has_a_command_a_folder_and_words_of_its_own(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    code = "import os, sys; print(os.getcwd(), os.environ['WHO']); print('oh', file=sys.stderr); sys.exit(int(sys.argv[1]))"
    ended = run_each([["-c", code, "3"], ["-c", code, "0"]], [environment(WHO="x"), environment(WHO="y")], folders)
    assert [(one.returncode, one.stdout, one.stderr) for one in ended] == [
        (3, f"{folders[0]} x\n", "oh\n"),
        (0, f"{folders[1]} y\n", "oh\n"),
    ]
