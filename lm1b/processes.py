"""Processes of a run by host and id: who they are, whether they are alive, and that an id still means the same process."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from lm1b.errors import UserError
from lm1b.files import read_json, write_json

SAME_PROCESS_SECONDS = 5.0  # start times of one process differ by less, even where the clock was set meanwhile

Condition = Literal["alive", "stopped", "gone", "elsewhere"]


def host_name() -> str:
    """This host's name, for the run's records."""
    return socket.gethostname()


@dataclass(frozen=True)
class RankProcess:
    """The process that is one rank of a run. created_at: seconds since 1970, by the host's own clock."""

    rank: int
    host: str
    pid: int
    created_at: float

    @staticmethod
    def here(rank: int) -> RankProcess:
        """This very process."""
        return RankProcess(rank, host_name(), os.getpid(), psutil.Process().create_time())

    @staticmethod
    def from_json(value: Any) -> RankProcess | None:
        """What `as_json` gave, or None for anything else."""
        if not isinstance(value, dict):
            return None
        rank, host, pid, created_at = (value.get(key) for key in ("rank", "host", "pid", "created_at"))
        if not (isinstance(rank, int) and isinstance(host, str) and isinstance(pid, int) and isinstance(created_at, (int, float))):
            return None
        return RankProcess(rank, host, pid, created_at) if pid > 0 else None

    def as_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return asdict(self)

    @property
    def is_here(self) -> bool:
        """Whether its host is this one."""
        return self.host == host_name()

    def condition(self) -> Condition:
        """What has become of it: `stopped` is SIGSTOP's doing; `elsewhere`, on another host, cannot be told from here."""
        if not self.is_here:
            return "elsewhere"
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created_at) > SAME_PROCESS_SECONDS:
                return "gone"  # its id has been given to another process
            status = process.status()
        except psutil.NoSuchProcess:
            return "gone"
        except psutil.AccessDenied:
            return "alive"
        if status in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return "gone"
        return "stopped" if status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP) else "alive"

    def send(self, signal_number: int) -> bool:
        """Send a signal; False where the process is gone, on another host or not ours."""
        if self.condition() not in ("alive", "stopped"):
            return False
        try:
            os.kill(self.pid, signal_number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})"


def write_processes(path: Path, members: list[RankProcess], started_at: str) -> None:
    """Say in a JSON file which processes are the ranks of a run; members in rank order."""
    write_json(path, {"started_at": started_at, "ranks": [member.as_json() for member in members]})


def read_processes(path: Path) -> list[RankProcess]:
    """What `write_processes` wrote; empty where there is no such file, or a half-written one."""
    try:
        mark = read_json(path)
    except (UserError, OSError):
        return []
    listed = mark.get("ranks") if isinstance(mark, dict) else None
    found = [RankProcess.from_json(value) for value in (listed if isinstance(listed, list) else [])]
    return [member for member in found if member]
