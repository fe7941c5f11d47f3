"""The run directory tells the run's whole story: config, environment, metrics, TensorBoard, who is training."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from lm1b.config import Config, EvaluationConfig, parse_config
from lm1b.errors import UserError
from lm1b.files import append_json_line, atomic_file, read_json, read_json_lines, write_json

PACKAGES = ("torch", "deepspeed", "numpy", "pyarrow", "safetensors", "pydantic")


def now() -> str:
    """This instant, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_run_config(run_directory: Path) -> Config:
    """The resolved config that a run was last started with. Raises UserError where the folder holds no run."""
    path = Path(run_directory) / "config.json"
    if not path.exists():
        raise UserError(f"{run_directory}: no run here (config.json is missing); train first: deepspeed launch/train.py --config ...")
    return parse_config(read_json(path)["config"], str(path))


def is_scored_by(line: dict[str, Any], settings: EvaluationConfig) -> bool:
    """Whether a line of evaluations.jsonl was made with these settings, whatever the text and the weights."""
    lanes = settings.lanes if settings.state == "carry" else None
    return (line.get("state"), line.get("precision"), line.get("lanes")) == (settings.state, settings.precision, lanes)


def kinds_scored(line: dict[str, Any]) -> set[str]:
    """Kinds of weights that a line stands for: its own, and `ema` too where the checkpoint holds no average."""
    return {line["weights"]} if line.get("has_average", True) else {line["weights"], "ema"}


def best_result(lines: list[dict[str, Any]], config: Config) -> dict[str, Any] | None:
    """The line of evaluations.jsonl with the lowest word perplexity on validation, among those that compare.

    Those made with the config's own evaluation settings, averaged weights where it asks for both. The earliest of equals.
    """
    settings = config.evaluation
    kind = "raw" if settings.weights == "raw" or config.training.ema_decay is None else "ema"
    fitting = [
        line
        for line in lines
        if line["split"] == "validation"
        and line["word_perplexity"] is not None
        and is_scored_by(line, settings)
        and kind in kinds_scored(line)
    ]
    return min(fitting, key=lambda line: (line["word_perplexity"], line["step"]), default=None)


def best_step(run_directory: Path, config: Config | None = None) -> int | None:
    """Step of the best result on validation so far, by evaluations.jsonl; see `best_result`. config None: that of config.json."""
    lines = read_json_lines(Path(run_directory) / "evaluations.jsonl")
    best = best_result(lines, config or read_run_config(run_directory)) if lines else None
    return None if best is None else best["step"]


def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _record_config(path: Path, config: Config, step: int) -> None:
    """Write the resolved config; each later start that changed it is kept in its history."""
    resolved = config.as_json()
    history = []
    if path.exists():
        before = read_json(path)
        history = before["history"]
        if before["config"] == resolved:
            return
    history.append({"started_at": now(), "step": step, "config": resolved})
    write_json(path, {"config": resolved, "history": history})


class RunLog:
    """Writes one run's logs; made on the first rank only."""

    def __init__(self, config: Config, step: int, hosts: list[str], facts: dict[str, Any]):
        self.directory = Path(config.run.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        _record_config(self.directory / "config.json", config, step)
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        environment = {"python": platform.python_version(), "versions": versions, "git_revision": _git_revision(), "hosts": hosts, **facts}
        environment |= {"command": sys.argv, "started_at": now()}
        write_json(self.directory / "environment.json", environment)
        write_json(self.directory / "training.pid", {"pid": os.getpid(), "host": socket.gethostname(), "started_at": now()})
        self._drop_metrics_after(step)
        self._board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step + 1)

    def _drop_metrics_after(self, step: int) -> None:
        """Steps after the checkpoint that a killed run had logged will be done again: keep one line a step."""
        path = self.directory / "metrics.jsonl"
        lines = read_json_lines(path)
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            with atomic_file(path) as file:
                file.writelines((json.dumps(line) + "\n").encode() for line in kept)

    def metrics(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl and the same numbers in TensorBoard."""
        append_json_line(self.directory / "metrics.jsonl", line)
        for name, value in line.items():
            if name != "step" and isinstance(value, (int, float)):
                self._board.add_scalar(f"training/{name}", value, line["step"])

    def event(self, text: str, step: int) -> None:
        """A noteworthy fact, printed and kept in events.jsonl."""
        print(f"lm1b: {text}", flush=True)
        append_json_line(self.directory / "events.jsonl", {"at": now(), "step": step, "text": text})

    def close(self) -> None:
        self._board.close()
        (self.directory / "training.pid").unlink(missing_ok=True)
