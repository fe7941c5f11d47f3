"""The commands of the READMEs, and one of them run as it is printed, with a tiny run's paths put in."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from command_runs import DEEPSPEED, run
from documents import commands_of, documents
from parts.cluster.needs import what_is_missing
from tiny import free_port


def commands_of_the_readme() -> list[str]:
    """Every line of the shell blocks of all READMEs, without comments."""
    return [line for text in documents().values() for line in commands_of(text)]


def as_the_tiny_run_s(line: str) -> str:
    """One name for all configs, runs and models: the same command for another of them is not run twice."""
    return re.sub(r"\b(runs|models)/\w+", r"\1/run", re.sub(r"configs/\w+\.json", "configs/run.json", line))


README_COMMANDS = list(
    {
        as_the_tiny_run_s(line): line
        for line in commands_of_the_readme()
        if line.startswith(("python ", "deepspeed "))
        and not any(part in line for part in ("s3://", "pieces", "runs/gated", "learning_curve"))
    }.values()
)  # others: test_remote_commands.py, test_pieces_commands.py, test_learning_curve.py, and those that need ssh: test_readme_cluster.py


def is_for_hosts(line: str) -> bool:
    """Whether a command is launched on several hosts, by DeepSpeed's own way; others: test_launching.py."""
    return "--hostfile" in line and "--no_ssh" not in line and "--launcher" not in line


def is_of_tools(line: str) -> bool:
    """Whether a command is one of tools/ that stands alone: no cluster, and nothing that a command of launch/ has to make first."""
    return "tools/" in line and not any(part in line for part in ("--hostfile", "tools/cluster", "tools/paper_results.py keep"))


def is_of_launch(line: str) -> bool:
    """Whether a command is none of the others, on one host."""
    return not is_of_tools(line) and "--hostfile" not in line and "tools/cluster" not in line


def run_as_printed(line: str, folder: Path, exported: Path, tmp_path: Path) -> None:
    """Fails where the command does, or warns of something in this package. folder: of the tiny run. exported: its model."""
    line = re.sub(r"\bmodels/\w+", str(tmp_path / "model" if "launch/export.py" in line else exported), line)
    if "tools/cluster" in line and (missing := what_is_missing()):
        pytest.skip(missing)
    line = line.replace("tools/cluster.py run", f"tools/cluster.py run --shared {folder}")
    small = ["softmax.samples=60", "model.hidden=32", "model.embedding=32"]
    if "tools/cluster.py traffic" in line:
        line += f" --shared {folder} --only bytes --hosts 2 --vocabularies 2000 --lanes 4 --turns 1 --steps 2 --set " + " --set ".join(
            small
        )
    line = line.replace("tools/cluster.py faults --hosts 3", "tools/cluster.py faults --hosts 2 --only killed --on 2 --time-limit 5")
    sentences = str(folder / "corpus" / "heldout-monolingual.tokenized.shuffled" / "news.en.heldout-00001-of-00002")
    line = line.replace("--kills 40", "--kills 1 --phases preprocessing --only kills")
    if "tools/benchmark.py" in line:
        small.append("batches.lanes=4")
        line += " --device cpu --repeats 1 --shapes lstm_512 --vocabulary 2000 --only training logging evaluation " + " ".join(
            f"--set {part}" for part in small
        )
    else:
        line = re.sub(r"configs/\w+\.json", str(folder / "run.json"), line)
    if "sequence_task.py" in line:
        tiny = ["training.updates=4", "training.evaluate_every=2", "task.train_size=64", "task.held_out_size=32", "run.seeds=[1]"]
        line += "".join(f" --set {part}" for part in [*tiny, f"run.directory={folder}/tasks/adding_irnn"])
    line = line.replace("runs/tasks/", f"{folder}/tasks/")
    line = line.replace("--into results/papers", f"--into {folder}/kept").replace("--out report", f"--out {folder}/report")
    line = re.sub(r"\b(out\.json|scaling\.png)", lambda found: str(folder / found[0]), line)
    line = re.sub(r"\bruns/\w+", str(folder / "run"), line).replace("my_sentences.txt", sentences)
    line = line.replace("-- deepspeed ", f"-- {shlex.quote(DEEPSPEED)} --master_port {free_port()} ")
    line, _, stdin = line.partition(" < ")
    program, *rest = shlex.split(line)
    arguments = [sys.executable, *rest] if program == "python" else [DEEPSPEED, "--master_port", str(free_port()), *rest]
    done = run(arguments, stdin=Path(stdin.strip() or os.devnull))
    assert done.returncode == 0, done.stdout + done.stderr
    ours = [warning for warning in done.stderr.splitlines() if "Warning:" in warning and "/lm1b/" in warning]
    assert not ours
