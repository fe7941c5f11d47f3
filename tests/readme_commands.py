"""The commands of the READMEs: who runs which, and one of them run with a tiny run's paths put in."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from documents import commands_of, documents, section
from forked import run_forked
from tiny import REPOSITORY, environment, environments

TIME_LIMIT_SECONDS = 600.0


def commands_of_the_readme() -> list[str]:
    """Every line of the shell blocks of all READMEs, without comments."""
    return [line for text in documents().values() for line in commands_of(text)]


def as_the_tiny_run_s(line: str) -> str:
    """One name for all configs, runs and models: the same command for another of them is not run twice."""
    return re.sub(r"\b(runs|models)/\w+", r"\1/run", re.sub(r"configs/\w+\.json", "configs/run.json", line))


_OF_SECTIONS = {
    "test_pieces_commands": commands_of(section("Pieces of words, and any corpus")),
    "test_remote_commands": commands_of(section("Data that is not on the machine")),
    "test_launching": [line for line in commands_of(section("Other launchers")) if line.startswith("deepspeed ")],
}
# The tests that run a command, by what it holds; test_readme_commands.py runs the cell's and all that is left.
_OF_TOOLS: dict[str, Callable[[str], bool]] = {
    "test_cluster": lambda line: "--hostfile hostfile" in line or "tools/cluster.py run" in line,
    "test_cluster_tool": lambda line: "tools/cluster.py" in line and "cluster.py run" not in line,
    "test_learning_curve": lambda line: "tools/learning_curve.py" in line,
    "test_readme_tools": lambda line: any(f"tools/{tool}.py" in line for tool in ("benchmark", "scaling_model", "fault_rig")),
    "test_stopping": lambda line: "tools/supervise.py --run" in line,
    "the cell of one's own": lambda line: "runs/gated" in line,
    "test_supervise": lambda line: "tools/supervise.py --" in line and "--run" not in line,
}


def who_runs(line: str) -> str:
    """The one file of tests that runs a command."""
    found = [name for name, lines in _OF_SECTIONS.items() if line in lines] or [name for name, holds in _OF_TOOLS.items() if holds(line)]
    assert len(found) < 2, (line, found)
    return found[0] if found else "test_readme_commands"


def commands_run_by(test: str) -> list[str]:
    """The commands for one file of tests, at least one: those that start with `python` or `deepspeed`."""
    lines = [line for line in commands_of_the_readme() if line.startswith(("python ", "deepspeed ")) and who_runs(line) == test]
    assert lines, test
    return list({as_the_tiny_run_s(line): line for line in lines}.values())


def put_in(line: str, folder: Path) -> str:
    """The tiny run's config and directory, which lie in `folder`, in the place of those that a README names."""
    return re.sub(r"\bruns/\w+", str(folder / "run"), re.sub(r"configs/\w+\.json", str(folder / "run.json"), line))


def run_line(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in forks, ranks without the launcher (test_commands.py has it). Fails where it does, or warns of our code."""
    line, _, stdin = line.partition(" < ")
    program, *words = shlex.split(line)
    ranks = environments(2) if program == "deepspeed" else [environment()]
    if words[0] == "--num_gpus":
        assert words[1] == "2"
        words = words[2:]
    with open(stdin.strip() or os.devnull) as file:
        done = run_forked(words[0], words[1:], [{**rank, **variables} for rank in ranks], REPOSITORY, file, TIME_LIMIT_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [warning for warning in done.stderr.splitlines() if "Warning:" in warning and "/lm1b/" in warning]
    return done
