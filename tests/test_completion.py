"""Completion in a real bash: what pressing Tab puts there."""

from __future__ import annotations

import importlib.util
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import REPOSITORY, environment

pytestmark = [
    pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash"),
    pytest.mark.skipif(importlib.util.find_spec("argcomplete") is None, reason="argcomplete is not installed"),
]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ASK = """
. tools/completion.sh
COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9
read -ra COMP_WORDS <<< "${1//=/ = }"
[[ "$1" != *" " ]] || COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_lm1b_complete
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(line: str) -> list[str]:
    """What bash would offer at the end of `line`."""
    done = subprocess.run(
        ["bash", "-c", ASK, "bash", line], cwd=REPOSITORY, env=environment(PATH=PATH), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("python launch/train.py --dry", ["--dry-run"]),
        ("deepspeed --num_gpus 2 launch/train.py --set optimizer.mo", ["optimizer.momentum="]),
        ("deepspeed --num_gpus 2 launch/train.py --set model.cell=", ["irnn", "lstm"]),
        ("python launch/evaluate.py --set ", ["evaluation.", "tokens."]),
        ("python launch/sequence_task.py --config configs/tasks/adding_l", ["configs/tasks/adding_lstm.json"]),
    ],
)
def test_bash_offers(line: str, some: list[str]) -> None:
    assert set(some) <= set(offered(line))


def test_only_what_may_be_set_is_offered_and_nothing_of_other_programs() -> None:
    assert offered("python launch/evaluate.py --set m") == []
    assert offered("python setup.py --set m") == []


def test_pressing_tab_completes_the_word() -> None:
    """An interactive bash on a terminal of its own."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(REPOSITORY)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**environment(PATH=PATH), "TERM": "dumb", "PS1": "ready> "})

    def read_until(expected: str, seconds: float = 60) -> str:
        text, end_at = "", time.monotonic() + seconds
        while expected not in text and time.monotonic() < end_at:
            if select.select([terminal], [], [], 0.5)[0]:
                text += os.read(terminal, 4096).decode(errors="replace")
        return text

    try:
        read_until("ready> ")
        os.write(terminal, b". tools/completion.sh\n")
        read_until("ready> ")
        os.write(terminal, b"python launch/train.py --set schedule.warm\t")
        assert "schedule.warmup_updates=" in read_until("warmup_updates=")
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)


@pytest.mark.parametrize("script", sorted(path.name for path in (REPOSITORY / "launch").glob("*.py")))
def test_a_command_s_parser_needs_no_torch(script: str) -> None:
    """It would take seconds at every Tab."""
    command = [sys.executable, "-X", "importtime", f"launch/{script}", "--help"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert "torch" not in imported
