"""Commands without their imports: `ForkedProcess` is `subprocess.Popen` for `[sys.executable, "script.py", ...]`, or "-c".

It runs in a fork of a process that has torch and DeepSpeed already (fork_server.py). What it runs, reads and writes is the same; the six
seconds of processor time that a training's imports take are not spent. Tests whose subject is a launcher, what is imported, other code
on one rank, or a process's own beginning use the real thing.

One server for each process of tests, started when it is first needed.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

SERVER = Path(__file__).with_name("fork_server.py")
START_SECONDS = 120.0


@functools.cache
def _server() -> str:
    """Start it. -> its socket's path."""
    folder = tempfile.TemporaryDirectory(prefix="lm1b-forks-")
    path = str(Path(folder.name) / "socket")
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    # In a session of its own: a test's Ctrl-C is for its own processes.
    server = subprocess.Popen([sys.executable, str(SERVER), path], stdin=subprocess.PIPE, env=variables, start_new_session=True)

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        folder.cleanup()

    atexit.register(end)
    deadline = time.monotonic() + START_SECONDS
    while not Path(path).exists():
        assert server.poll() is None, "the fork server has ended"
        assert time.monotonic() < deadline, "the fork server does not start"
        time.sleep(0.02)
    return path


class ForkedProcess:
    """The part of `subprocess.Popen` that the tests need. script: relative to cwd."""

    def __init__(
        self,
        script: str,
        arguments: list[str],
        *,
        env: dict[str, str],
        cwd: Path,
        stdout: IO[Any],
        stderr: IO[Any],
        stdin: IO[Any] | None = None,
    ) -> None:
        """stdin: nothing to read where it is None."""
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(_server())
        request = {"script": script, "arguments": arguments, "environment": env, "folder": str(cwd)}
        with open(os.devnull) as nothing:
            descriptors = [each.fileno() for each in (stdin or nothing, stdout, stderr)]
            socket.send_fds(self._answers, [json.dumps(request).encode() + b"\n"], descriptors)
        self._lines = self._answers.makefile("rb", buffering=0)  # no line may lie in a buffer where select() does not see it
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(["fork"], timeout or 0.0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._answers.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit status, None while it is at work."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(self.pid, signal.SIGKILL)
            self.wait()


Process = ForkedProcess | subprocess.Popen[Any]


def end_of_all(processes: Sequence[Process], timeout: float) -> list[int]:
    """Exit statuses, within `timeout` seconds altogether; none is left at work, whatever happens. Raises subprocess.TimeoutExpired."""
    deadline = time.monotonic() + timeout
    try:
        return [process.wait(max(0.0, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def run_forked(
    script: str, arguments: list[str], environments: list[dict[str, str]], cwd: Path, stdin: IO[Any] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with text, stdout and stderr apart; with several environments, of that many processes at once.

    Its status is the first one that is not 0.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        files = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        statuses = end_of_all([ForkedProcess(script, arguments, env=env, cwd=cwd, **files) for env in environments], timeout)
        texts = [read_again(file) for file in (stdout, stderr)]
    return subprocess.CompletedProcess([script, *arguments], next(filter(None, statuses), 0), *texts)


class Ended(NamedTuple):
    """One rank that has ended."""

    pid: int
    returncode: int
    stdout: str
    stderr: str


def run_each(
    commands: list[list[str]], environments: list[dict[str, str]], folders: list[Path], timeout: float = 240, unforked: int | None = None
) -> list[Ended]:
    """The same of ranks that have a command, a folder and files of their own. unforked: a rank that is to have imports of its own."""
    with contextlib.ExitStack() as files:
        outputs = [[files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2)] for _ in commands]
        processes: list[Process] = []
        for rank, (command, env, folder, (stdout, stderr)) in enumerate(zip(commands, environments, folders, outputs, strict=True)):
            where = {"env": env, "cwd": folder, "stdout": stdout, "stderr": stderr}
            if rank == unforked:
                processes.append(subprocess.Popen([sys.executable, *command], stdin=subprocess.DEVNULL, **where))
            else:
                processes.append(ForkedProcess(command[0], command[1:], **where))
        statuses = end_of_all(processes, timeout)
        return [
            Ended(process.pid, status, *map(read_again, both)) for process, status, both in zip(processes, statuses, outputs, strict=True)
        ]


def read_again(file: IO[str]) -> str:
    """All that has been written to a file, as text."""
    file.seek(0)
    return file.read()
