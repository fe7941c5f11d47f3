"""Why and when a training is to stop before its end: a signal, or a launcher that has gone.

A rank asks for the stop, the next step's all-reduce tells all, and all save and end in order.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil

from lm1b.distributed import Ranks, all_gather_objects

SAME_SIGNAL_SECONDS = 5.0  # the launcher passes Ctrl-C on a second time: within this it counts as the same
NODE_LAUNCHER, RUNNER = "deepspeed.launcher.launch", "deepspeed.launcher.runner"
RANK_STARTERS = ("mpirun", "mpiexec", "orterun", "orted", "prterun", "prted", "hydra_pmi_proxy", "slurmstepd")  # of MPI and SLURM
SHELLS = ("sh", "bash", "dash", "zsh", "ksh")

Ending = Literal["finished", "stopped", "launcher gone", "logging failed"]


class Launcher:
    """The launcher above this process, as it was when this was made: the process of this host, and for DeepSpeed's who started that.

    Ranks of a launcher that has been killed would train on with nobody to end them. A process that was started in another way
    (a user's shell) has none: it outlives its parent where the user wants that.
    """

    def __init__(self) -> None:
        self._parent: psutil.Process | None = None
        self._above: list[tuple[psutil.Process, int]] = []  # process, its parent's id
        try:
            parent = psutil.Process(os.getppid())
            if not _starts_ranks(parent):
                return
            self._parent = parent
            if NODE_LAUNCHER not in parent.cmdline()[:4]:
                return
            above = parent.parent()
            if above is None:
                return
            if _is_runner(above):
                self._above = [(parent, above.pid)]
            elif _is_remote(above):  # several hosts: a connection from the first one keeps it
                self._above = [(parent, above.pid)]
                remote = above.parent()
                if remote is not None and _name(above) in SHELLS:
                    self._above.append((above, remote.pid))
        except psutil.Error:
            return

    def has_gone(self) -> bool:
        """Whether any of the processes that were above this one has ended. A few reads of /proc."""
        if self._parent is None:
            return False
        try:
            return os.getppid() != self._parent.pid or any(process.ppid() != pid for process, pid in self._above)
        except psutil.NoSuchProcess:
            return True


def _name(process: psutil.Process) -> str:
    return process.name().split(":")[0]


def _starts_ranks(process: psutil.Process) -> bool:
    """Whether it is a launcher's process that starts a host's ranks."""
    words = process.cmdline()[:4]
    by_python = {NODE_LAUNCHER, "torch.distributed.run"} & set(words) or any(Path(word).name == "torchrun" for word in words[:2])
    return bool(by_python) or process.name() in RANK_STARTERS


def _is_runner(process: psutil.Process) -> bool:
    words = process.cmdline()[:4]
    return RUNNER in words or any(Path(word).name in ("deepspeed", "ds") for word in words[:2])


def _is_remote(process: psutil.Process) -> bool:
    if _name(process).startswith("sshd"):
        return True
    above = process.parent()
    return _name(process) in SHELLS and "-c" in process.cmdline() and above is not None and _name(above).startswith("sshd")


class StopSignal:
    """SIGINT, SIGTERM and a lost terminal ask for a save after the present step; a second one, later than a few seconds, ends at once."""

    def __init__(self, launcher: Launcher | None = None) -> None:
        self._launcher = launcher or Launcher()
        self._first_at: float | None = None
        self._reason: dict[str, str] | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # ignored under nohup: the user means it to go on
            signal.signal(signal.SIGHUP, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._first_at is None:
            self._first_at = time.monotonic()
            self._ask("stopped", f"stopped on request ({signal.Signals(number).name})")
        elif time.monotonic() - self._first_at > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)

    def _ask(self, ending: Ending, text: str) -> None:
        self._reason = self._reason or {"ending": ending, "text": text}

    def failed(self, problem: str) -> None:
        """The run's logs cannot be written: ask for a stop, since a run that cannot be followed is nobody's wish."""
        self._ask("logging failed", f"stopped because its logs cannot be written ({problem})")

    @property
    def requested(self) -> bool:
        """Whether this rank has a reason to stop; looked at once a step."""
        if self._reason is None and self._launcher.has_gone():
            self._ask("launcher gone", "stopped because its launcher has gone")
        return self._reason is not None

    def agreed(self, ranks: Ranks) -> tuple[Ending, str]:
        """How the run ended, by the first rank that had a reason. Every rank calls it, after the run has stopped short."""
        reasons = [reason for reason in all_gather_objects(self._reason, ranks) if reason]
        # Whatever else happens at the same time, who asked by a signal wants the run to stay stopped.
        reasons.sort(key=lambda reason: reason["ending"] != "stopped")
        assert reasons, "a run stops short only where a rank has asked for it"
        return reasons[0]["ending"], reasons[0]["text"]


def ignore_signals() -> None:
    """The run has been saved and ends: a signal that comes late, as the launcher's own, must not change its status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def default_signals(at_hangup: Any) -> None:
    """The training is over and only waits for something else: Ctrl-C and SIGTERM mean what they mean to any program.

    at_hangup: what SIGHUP did before the training, which is nothing under nohup.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, at_hangup)
