"""Processes that are warm and take turns: what is compared is measured side by side, while only one of them works.

The coordinator starts workers (alone, or several ranks through the `deepspeed` launcher); each connects to a socket in a private
folder and does what it is told, one JSON line a command, one JSON line an answer. A worker that waits uses no processor.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from lm1b.errors import UserError

START_SECONDS, ANSWER_SECONDS = 180.0, 600.0


class Workers:
    """Some processes that were started together; `ask` has them all do the same."""

    def __init__(self, command: Sequence[str], count: int, threads: int) -> None:
        """Start them; they are waited for by the first answer. count: how many will connect. threads: of each.

        command: gets `--socket PATH` appended.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="lm1b-turns-")
        path = str(Path(self._folder.name) / "socket")
        self._log = open(Path(self._folder.name) / "log", "w+b")  # noqa: SIM115
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(count)
        self._listener.settimeout(1.0)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [*command, "--socket", path], stdout=self._log, stderr=self._log, env=environment, process_group=0, stdin=subprocess.DEVNULL
        )
        self._count, self._deadline = count, time.monotonic() + START_SECONDS
        self._files: list[IO[str]] = []

    def _connect(self) -> None:
        while len(self._files) < self._count:
            connection = self._accept()
            connection.settimeout(ANSWER_SECONDS)
            self._files.append(connection.makefile("rw"))

    def _accept(self) -> socket.socket:
        while True:
            try:
                return self._listener.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None or time.monotonic() > self._deadline:
                    raise self._failure() from None

    def ask(self, what: str, **arguments: Any) -> list[dict[str, Any]]:
        """Every process does it at the same time. -> their answers, by rank."""
        self.tell(what, **arguments)
        return self.answers()

    def tell(self, what: str, **arguments: Any) -> None:
        """As `ask`, but they are not waited for: `answers` must follow."""
        self._connect()
        try:
            for file in self._files:
                file.write(json.dumps({"what": what, **arguments}) + "\n")
                file.flush()
        except OSError:
            raise self._failure() from None

    def answers(self) -> list[dict[str, Any]]:
        """To what they were told last, by rank."""
        try:
            answers = [json.loads(file.readline()) for file in self._files]
        except (OSError, ValueError):
            raise self._failure() from None
        return sorted(answers, key=lambda answer: answer["rank"])

    def _failure(self) -> UserError:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        status = self._process.poll()
        self.close()
        return UserError(f"a benchmark's process has ended (status {status}): " + (lines[-1] if lines else "it said nothing"))

    def close(self) -> None:
        """End the processes; again does nothing."""
        self._listener.close()
        for file in self._files:
            file.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def serve(path: str, rank: int, actions: dict[str, Callable[..., dict[str, Any]]]) -> None:
    """A worker's life: do what comes over the socket at `path` until it is closed."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    file = connection.makefile("rw")
    for line in file:
        command = json.loads(line)
        answer = actions[command.pop("what")](**command)
        file.write(json.dumps({"rank": rank, **answer}) + "\n")
        file.flush()
