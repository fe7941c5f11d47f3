"""What tests of commands share: a folder with the tiny corpus, and the README's first two commands run on it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from forked import run_forked
from tiny import REPOSITORY, environment, environments, free_port, write_corpus, write_settings

DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))


def run(
    arguments: list[str], timeout: float = 240, cwd: Path = REPOSITORY, stdin: Path = Path(os.devnull)
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; stdout and stderr apart. stdin: the file that it reads. A Python script runs in a fork, see forked.py."""
    program, *rest = arguments
    with open(stdin) as file:
        if program == sys.executable and (rest[0].endswith(".py") or rest[0] == "-c"):
            return run_forked(rest[0], rest[1:], [environment()], cwd, file, timeout)
        return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=timeout, cwd=cwd, stdin=file)


def run_script(*arguments: str, text: str | bytes = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """The same of a Python script with its arguments, which reads `text` and sees these variables too."""
    with tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode() if isinstance(text, str) else text)
        stdin.seek(0)
        return run_forked(arguments[0], list(arguments[1:]), [environment(**variables)], REPOSITORY, stdin)


def launch(config: Path, *more: str, ranks: int = 2) -> list[str]:
    """The launcher's command line, on a port of its own."""
    return [DEEPSPEED, "--num_gpus", str(ranks), "--master_port", str(free_port()), "launch/train.py", "--config", str(config), *more]


def train(config: Path, *more: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """What the launcher starts, without it: where it is not what is tested."""
    return run_forked("launch/train.py", ["--config", str(config), *more], environments(ranks), REPOSITORY)


def fill(folder: Path) -> Path:
    """Put the tiny corpus there, not yet preprocessed, and a config `run.json` that trains with the evaluator beside it."""
    write_corpus(folder / "corpus")
    write_settings(folder, "run", training={"evaluate_alongside": True, "total_steps": 60}, evaluation={"lanes": 4})
    return folder
