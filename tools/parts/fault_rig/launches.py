"""Processes of the program that the rig starts, watches and ends: every launch is a session of its own, so none is overlooked."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from lm1b.launchers import without_place
from parts.fault_rig.points import Order
from parts.harness.launching import REPOSITORY, ranks_command

TRAIN, EVALUATE, PREPROCESS = "launch/train.py", "launch/evaluate.py", "launch/preprocess.py"
VICTIM = Path(__file__).with_name("victim.py")
POLL_SECONDS = 0.02
GONE_SECONDS = 110.0  # the ranks' own time limit of 60 s, the launcher's 30 s until it kills, and some
END_SECONDS = 300.0  # a launch that nobody disturbs

_running: list[Launch] = []


class Failure(Exception):
    """Something that was expected of the program did not happen; the text says what."""


class Launch:
    """One start of an entry point of the program, with all the processes that come of it. Its output goes to `log`.

    order: by way of victim.py, which is told so. ranks: as many, by the real launcher on a port of its own; None: one process.
    """

    def __init__(
        self,
        program: str,
        arguments: list[str],
        log: Path,
        order: Order | None = None,
        *,
        ranks: int | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        assert order is None or order.program == program
        script = str(VICTIM) if order else program
        command = ranks_command(ranks, script, *arguments) if ranks else [sys.executable, script, *arguments]
        self.program, self.log = program, log
        own = without_place(os.environ)
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
        own |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": path, **(variables or {})}
        own |= order.environment() if order else {}
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            output.write(f"$ {' '.join(command)}\n".encode())
            output.flush()
            self._process = subprocess.Popen(
                command, env=own, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.pid = self._process.pid
        _running.append(self)

    @property
    def status(self) -> int | None:
        """Exit status of the process that was started, None while it runs."""
        return self._process.poll()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def said(self) -> list[str]:
        """The program's own lines."""
        return [line for line in self.output().replace("\r", "\n").splitlines() if line.startswith("lm1b:")]

    def members(self) -> list[psutil.Process]:
        """Every living process of the launch, orphans too."""
        self._process.poll()  # or it would stay as a zombie
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(process.pid) == self.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """The living ranks."""
        found = {}
        for process in self.members():
            with contextlib.suppress(psutil.Error, ValueError):
                if any(part.startswith("--local_rank=") for part in process.cmdline()):
                    found[int(process.environ()["RANK"])] = process
        return found

    def wait_until(self, condition: Callable[[], bool], seconds: float = END_SECONDS) -> bool:
        """Wait for a condition; False where the launch ended first or the time is up."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            if self.status is not None:
                return condition()
            time.sleep(POLL_SECONDS)
        return False

    def finish(self) -> int | None:
        """Wait for an end that nobody forces. -> exit status, None where some of it had to be killed."""
        self.wait_until(lambda: False)
        return self.status if self.wait_gone(GONE_SECONDS if self.status is not None else 0.0) else None

    def finish_well(self) -> None:
        """The same. Raises Failure where its status is not 0."""
        if (status := self.finish()) != 0:
            raise Failure(f"{self.program} did not go on to the end (status {status}): {self.last_words()}")

    def last_words(self) -> str:
        """The program's last line, or whatever stands last, for a message."""
        lines = self.said() or [line for line in self.output().splitlines() if line.strip()]
        return lines[-1][:300]

    def wait_gone(self, seconds: float = GONE_SECONDS) -> bool:
        """Wait until no process of the launch is left. False where some had to be killed when the time was up."""
        deadline = time.monotonic() + seconds
        while self.members():
            if time.monotonic() > deadline:
                self.end()
                return False
            time.sleep(5 * POLL_SECONDS)
        if self in _running:
            _running.remove(self)
        return True

    def end(self) -> None:
        """Kill what is left of the launch."""
        while members := self.members():
            for process in members:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)
            time.sleep(POLL_SECONDS)
        if self in _running:
            _running.remove(self)


def end_all() -> None:
    """Kill every process that the rig has started and that still runs."""
    for launch in list(_running):
        launch.end()
