"""One host of the cluster: run commands on it, look at its processes and its network interface, and do it harm."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lm1b.errors import UserError

INTERFACE = "eth0"
OF_THIS_MACHINE = ("SSH_AUTH_SOCK", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME")  # what they name is not there on another host
OF_A_RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Traffic:
    """Bytes that went through a host's interface, headers of Ethernet included."""

    sent: int
    received: int

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(self.sent - earlier.sent, self.received - earlier.received)


def system(*command: str) -> str:
    """Run a command of the system; what it printed. Raises CalledProcessError with what it said."""
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def in_network_of(pid: int, *command: str) -> str:
    """The same in the network of a process."""
    return system("nsenter", f"--target={pid}", "--net", "--", *command)


class Host:
    """A host that is up. number: from 1. pid: its first process as seen from outside. switch: the first process of the box."""

    def __init__(self, number: int, name: str, address: str, pid: int, switch: int, home: str, folder: Path, variables: dict[str, str]):
        self.number, self.name, self.address, self.pid = number, name, address, pid
        self._switch, self._home, self._folder, self._variables = switch, home, folder, variables
        self.port = f"port{number}"  # the other end of its cable, at the switch

    def __str__(self) -> str:
        return self.name

    def command(self, arguments: list[str], folder: Path | None = None) -> list[str]:
        """The command line that runs `arguments` on this host, in `folder` (of the host's own view)."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--"]
        return [*enter, "env", f"--chdir={folder or self._folder}", *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        """This process's environment as a user on that host would have it."""
        inherited = {name: value for name, value in os.environ.items() if name not in OF_THIS_MACHINE + OF_A_RANK}
        return {**inherited, "HOME": self._home, **self._variables, **more}

    def start(self, arguments: list[str], folder: Path | None = None, **options: Any) -> subprocess.Popen[str]:
        """Begin a command here; the process returned stands for it outside (`signal_command` reaches the command itself)."""
        where: dict[str, Any] = {"env": self.environment(), "stdin": subprocess.DEVNULL, "text": True, **options}
        return subprocess.Popen(self.command(arguments, folder), **where)

    def run(self, arguments: list[str], timeout: float = 600, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end; output and errors in one."""
        where: dict[str, Any] = {"env": self.environment(), "stdin": subprocess.DEVNULL, "text": True, "timeout": timeout}
        return subprocess.run(self.command(arguments, folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **where)

    def start_ssh_server(self, sshd: str) -> None:
        """It goes to the background once it listens. Raises CalledProcessError."""
        system(*self.command([sshd, "-f", "/run/sshd/config", "-E", "/run/sshd/log"], Path("/")))

    def traffic(self) -> Traffic:
        """What its interface has counted since the host was made."""
        (link,) = json.loads(in_network_of(self.pid, "ip", "-s", "-j", "link", "show", "dev", INTERFACE))
        return Traffic(link["stats64"]["tx"]["bytes"], link["stats64"]["rx"]["bytes"])

    def processes(self) -> list[psutil.Process]:
        """Its processes as seen from outside, without the first one and the ssh server that listens."""
        found, own = [], _pid_namespace(self.pid)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                listens = process.ppid() == self.pid and process.name() == "sshd"
                is_dead = process.status() == psutil.STATUS_ZOMBIE
                if process.pid != self.pid and not listens and not is_dead and _pid_namespace(process.pid) == own:
                    found.append(process)
        return found

    # Harm.

    def cut(self) -> None:
        """Pull the cable: nothing comes or goes, and nobody is told."""
        in_network_of(self._switch, "ip", "link", "set", self.port, "down")

    def send(self, number: int) -> None:
        """Send a signal to all of its processes but the first; SIGKILL ends its ssh server too."""
        listening = [child for child in psutil.Process(self.pid).children() if child.name() == "sshd"]
        for process in [*self.processes(), *listening]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def power_off(self) -> None:
        """The host is gone at one blow: its connections are not closed, they answer no more."""
        self.cut()
        os.kill(self.pid, signal.SIGKILL)

    def slow(self, rate: str) -> None:
        """Limit its link, both ways, from now on; as `1gbit`, `8kbit`."""
        for pid, device in ((self.pid, INTERFACE), (self._switch, self.port)):
            in_network_of(pid, "tc", "qdisc", "replace", "dev", device, "root", "handle", "10:", *limit(rate))


def are_idle(hosts: list[Host], seconds: float) -> bool:
    """Wait so long until none of them has anything to do but its ssh server; whether that came to be."""
    give_up_at = time.monotonic() + seconds
    while any(host.processes() for host in hosts):
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.2)
    return True


def limit(rate: str) -> list[str]:
    """tc's token bucket for a rate as `1gbit`: bursts of at most 4 ms, at least a few packets; a queue of 50 ms. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(k|m|g)?bit", rate.lower())
    if not match or float(match[1]) == 0:
        raise UserError(f"rate {rate!r}: expected a number and bit, kbit, mbit or gbit, as 1gbit")
    bits = float(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}.get(match[2], 1.0)
    burst = min(max(int(bits / 8 * 0.004), 5_000), 500_000)
    return ["tbf", "rate", f"{int(bits)}bit", "burst", str(burst), "latency", "50ms"]


def _pid_namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")


def signal_command(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to the command that `Host.start` has begun."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children():
            child.send_signal(number)


def signal_terminal(process: subprocess.Popen[str], number: int) -> None:
    """The same to all that the command runs in the foreground, as a terminal does at Ctrl-C; it was begun in a session of its own."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(child.pid) == process.pid:
                child.send_signal(number)
