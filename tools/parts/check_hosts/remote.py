"""Running lm1b/host_facts.py on another host, over ssh as the launcher does it, and saying in words why that failed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm1b import host_facts
from lm1b.errors import UserError

CONNECT_SECONDS, ANSWER_SECONDS = 5, 60.0
SILENT = f"no answer within {ANSWER_SECONDS:.0f} s: the host, or a file system there, hangs"
NO_FOLDER = 91  # exit status of ours: the working folder is not there
PROGRAM = Path(host_facts.__file__)
# What ssh says -> what is wrong and what to do, for a host's name and port.
REFUSALS = (
    ("connection refused", "ssh is refused on port {port}: start sshd there, or give its port with --ssh_port"),
    ("could not resolve", "this name is unknown: correct the hostfile, or add the host to DNS or /etc/hosts"),
    ("permission denied", "ssh wants a password: copy your public key there (ssh-copy-id {host})"),
    ("host key verification failed", "ssh does not know this host's key: accept it once (ssh {host}), or add it to ~/.ssh/known_hosts"),
    ("timed out", f"no answer to ssh on port {{port}} within {CONNECT_SECONDS} s: is the host up, and the port open?"),
    ("no route to host", "no route to this host: is it up and on this network?"),
)


class Unreachable(UserError):
    """A host on which nothing could be run; the text says why and what to do."""


@dataclass(frozen=True)
class Remote:
    """A host of the hostfile: how to reach it, and what to run there with."""

    host: str
    ssh_port: int | None = None
    python: str = sys.executable
    folder: str = field(default_factory=os.getcwd)
    exports: dict[str, str] = field(default_factory=dict)

    def _command(self, arguments: list[str]) -> list[str]:
        """As pdsh has the launcher's: the same folder and the same Python. The program comes through stdin."""
        port = ["-p", str(self.ssh_port)] if self.ssh_port else []
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.exports.items())
        there = f"cd {shlex.quote(self.folder)} || exit {NO_FOLDER}; exec env {variables} {shlex.join([self.python, '-', *arguments])}"
        options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
        return ["ssh", *options, *port, "--", self.host, there]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the program there, with arguments of `host_facts.main`."""
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with open(PROGRAM, encoding="utf-8") as program:
            return subprocess.Popen(self._command(list(arguments)), stdin=program, **pipes)

    def ask(self, *arguments: str) -> dict[str, Any]:
        """What the program prints. Raises Unreachable. `seconds` and `asked_at` of the answer: by this host's clock."""
        started_at = time.time()
        process = self.start(*arguments)
        try:
            output, errors = process.communicate(timeout=ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Unreachable(SILENT) from None
        return {**self.answer(process.returncode, output, errors), "seconds": time.time() - started_at, "asked_at": started_at}

    def answer(self, status: int, output: str, errors: str) -> dict[str, Any]:
        """The JSON in what was printed. Raises Unreachable where there is none."""
        for line in reversed(output.splitlines()):
            if (found := _object_in(line)) is not None:
                return found
        raise Unreachable(self._why(status, errors))

    def _why(self, status: int, errors: str) -> str:
        if status == NO_FOLDER:
            return f"{self.folder} is not there, where the launcher goes: put the repository at the same path on every host"
        if status in (126, 127):
            return f"{self.python} is not there, which the launcher starts: install at the same path on every host"
        if status == 255:
            for sign, words in REFUSALS:
                if sign in errors.lower():
                    return words.format(host=self.host, port=self.ssh_port or 22)
        last = re.sub(r"\s+", " ", (errors.strip().splitlines() or ["no word of why"])[-1])
        return f"ssh ended with status {status}: {last[:200]}"


def _object_in(line: str) -> dict[str, Any] | None:
    """The JSON object that a line is; None for anything else: a shell's start-up files may print."""
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(line), dict):
            return found
    return None


def listening(process: subprocess.Popen[str], remote: Remote, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
    """What a program that goes on says first: see `host_facts.listen`. Raises Unreachable; where it says nothing in time, it is killed."""
    assert process.stdout
    assert process.stderr
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        for line in iter(process.stdout.readline, ""):
            if (found := _object_in(line)) is not None:
                return found
        status, errors = process.wait(), process.stderr.read()
    finally:
        timer.cancel()
    if status == -signal.SIGKILL:
        raise Unreachable(SILENT)
    return remote.answer(status, "", errors)
