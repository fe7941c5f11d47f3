"""Writes what a training tells: config.json, environment.json, metrics.jsonl, events.jsonl, training.pid; TensorBoard and the services."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lm1b.config import Config
from lm1b.console import now, remark
from lm1b.errors import UserError, describe_os_error
from lm1b.files import append_json_line, atomic_file, read_json_lines, write_json
from lm1b.host_facts import program_facts
from lm1b.processes import RankProcess, write_processes
from lm1b.training.log.board import Board
from lm1b.training.log.services import Services
from lm1b.training.run_folder import RunFolder


def git_revision() -> str | None:
    """Of the repository that this package lies in, `-dirty` where it was changed since; None where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _record_config(folder: RunFolder, config: Config, step: int) -> None:
    """Write the resolved config; each later start that changed it is kept in its history. Raises UserError for what is not a run's."""
    resolved = config.as_json()
    history = []
    if folder.config.exists():
        before = folder.read_written_config()
        history = before["history"]
        if before["config"] == resolved:
            return
    history.append({"started_at": now(), "step": step, "config": resolved})
    write_json(folder.config, {"config": resolved, "history": history})


class RunLog:
    """Writes one run's logs; made on the first rank only, where a file that cannot be made is an OSError, a damaged one a UserError.

    After start-up a write error is not raised. It is kept in `problem`, logging ends, and the loop stops the run.
    """

    def __init__(self, config: Config, step: int, members: list[RankProcess], facts: dict[str, Any]):
        """step: that the run goes on from. members: the ranks' processes. facts: more of environment.json. Raises OSError, UserError."""
        self.folder = RunFolder(config.run.directory)
        self._step = step  # that was told of last
        self.problem: str | None = None
        self.folder.path.mkdir(parents=True, exist_ok=True)
        _record_config(self.folder, config, step)
        versions = program_facts()
        hosts = [member.host for member in members]
        environment = {"python": versions.pop("python"), "versions": versions, "git_revision": git_revision(), "hosts": hosts, **facts}
        environment |= {"command": sys.argv, "started_at": now()}
        write_json(self.folder.environment, environment)
        self._drop_metrics_after(step)
        _tell_no_tracebacks_of_tensorboard()
        self._board = Board(self.folder.tensorboard, purge_step=step + 1)
        self._board.layout()
        self._services = Services(config, self.folder.path, lambda text: self.event(text, self._step))
        write_processes(self.folder.pid, members, now())  # last: a start that is refused leaves no mark

    def _drop_metrics_after(self, step: int) -> None:
        """Steps after the checkpoint that a killed run had logged will be done again: keep one line a step."""
        path = self.folder.metrics
        lines = read_json_lines(path)
        for number, line in enumerate(lines, 1):
            if not isinstance(line.get("step"), int):
                raise UserError(f"{path}:{number}: names no step; remove the line to go on")
        kept = [line for line in lines if line["step"] <= step]
        if len(kept) < len(lines):
            with atomic_file(path) as file:
                file.writelines((json.dumps(line) + "\n").encode() for line in kept)

    @contextlib.contextmanager
    def _noting(self, place: Path) -> Generator[None]:
        """Around a write to `place`: the first that fails is kept as the log's problem."""
        try:
            yield
        except OSError as error:
            if self.problem is None:
                error.filename = error.filename or str(place)
                self.problem = describe_os_error(error)

    def metrics(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl and the same numbers in TensorBoard."""
        self._step = line["step"]
        if self.problem is None:
            with self._noting(self.folder.metrics):
                append_json_line(self.folder.metrics, line)
            self._services.metrics(line)
            with self._noting(self.folder.tensorboard):  # its writer is a thread of its own: what went wrong there is raised here, later
                self._board.metrics(line)

    def event(self, text: str, step: int, **more: Any) -> None:
        """A noteworthy fact, printed and kept in events.jsonl; more: further keys of its line."""
        remark(text, lasting=True, step=step, **more)
        self._keep(text, step, **more)

    def failed(self, problem: str, step: int) -> None:
        """The run ends by a mistake, which the command says: kept as its end."""
        self._keep(problem, step, ended="failed")

    def _keep(self, text: str, step: int, **more: Any) -> None:
        """A line of events.jsonl. How a run has ended is tried although some log cannot be written: it may be another file."""
        self._step = step
        if self.problem is None or "ended" in more:
            with self._noting(self.folder.events):
                append_json_line(self.folder.events, {"at": now(), "step": step, "text": text, **more})

    def close(self) -> None:
        """An orderly end: no process trains here any more."""
        self._services.close()
        with self._noting(self.folder.tensorboard):
            self._board.close()
        with self._noting(self.folder.pid):
            self.folder.pid.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise UserError where a log could not be written."""
        if self.problem is not None:
            raise UserError(f"{self.problem}; the run could not be logged and has stopped; make room, and the same command goes on")


def _tell_no_tracebacks_of_tensorboard() -> None:
    """Its writer's thread ends with a traceback where the disk is full, although the error is raised again for its caller."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not (isinstance(arguments.exc_value, OSError) and type(arguments.thread).__name__ == "_AsyncWriterThread"):
            before(arguments)

    if getattr(before, "__qualname__", "") != hook.__qualname__:
        threading.excepthook = hook
