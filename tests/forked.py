"""Commands without their imports: `ForkedProcess` is `subprocess.Popen` for `[sys.executable, "script.py", ...]`, or "-c".

It runs in a fork of a process that has torch and DeepSpeed already (fork_server.py). What it runs, reads and writes is the same; eight
seconds of processor time are not spent. Tests whose subject is a launcher, what is imported, or a process's own beginning use the real
thing.

One server for each process of tests, started when it is first needed.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

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
        stdout: IO[bytes],
        stderr: IO[bytes],
        stdin: IO[bytes] | None = None,
    ) -> None:
        """stdin: nothing to read where it is None."""
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(_server())
        request = {"script": script, "arguments": arguments, "environment": env, "folder": str(cwd)}
        with open(os.devnull) as nothing:
            descriptors = [each.fileno() for each in (stdin or nothing, stdout, stderr)]
            socket.send_fds(self._answers, [json.dumps(request).encode() + b"\n"], descriptors)
        self._lines = self._answers.makefile()
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._answers.settimeout(timeout)
            try:
                self.returncode = int(self._lines.readline())
            except TimeoutError:
                raise subprocess.TimeoutExpired(["fork"], timeout or 0.0) from None
            self._lines.close()
            self._answers.close()
        return self.returncode

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def run_forked(
    script: str, arguments: list[str], environments: list[dict[str, str]], cwd: Path, stdin: IO[str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` with text, stdout and stderr apart; with several environments, of that many processes at once.

    Its status is the first one that is not 0.
    """
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        files = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        processes = [ForkedProcess(script, arguments, env=env, cwd=cwd, **files) for env in environments]
        try:
            statuses = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                process.kill()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess([script, *arguments], next(filter(None, statuses), 0), *texts)
