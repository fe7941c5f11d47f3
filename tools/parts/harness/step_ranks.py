"""Ranks that take measured steps (step_worker.py): the command line that starts them, and what they have written."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from lm1b.errors import UserError

WORKER = Path(__file__).with_name("step_worker.py")


def worker_words(out: Path, settings: list[str], cases: list[list[str]], **options: Any) -> list[str]:
    """The worker's arguments. settings: of all cases; options: those of step_worker.py by name, None where it is not given."""
    words = ["--out", str(out), "--cases", json.dumps(cases)]
    words += [word for setting in [*settings, "training.threads=1"] for word in ("--set", setting)]
    return words + [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]


def read_reports(out: Path, ranks: int, done: subprocess.CompletedProcess[str], what: str) -> list[dict[str, Any]]:
    """Every rank's report, by rank. Raises UserError where one is missing or the launch has failed. what: for its message."""
    reports = sorted((json.loads(file.read_text()) for file in out.glob("*.json")), key=lambda report: report["rank"])
    if done.returncode or len(reports) != ranks:
        raise UserError(f"{what} have failed: {done.stdout.strip().splitlines()[-1:]}")
    return reports
