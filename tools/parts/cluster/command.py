"""Run a command on the first of several hosts that live on this machine, for as long as it takes.

    python tools/cluster.py run --hosts 2 --rate 1gbit -- deepspeed launch/train.py --config configs/irnn_news.json

Each host has a network interface, processes, /tmp, /dev/shm and HOME of its own and an ssh server; they share the folder in which the
command is started. `deepspeed` is given the hostfile, and launches over ssh as on any cluster. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType

from lm1b.errors import UserError
from parts.cluster.cluster import Cluster
from parts.cluster.host import Host, signal_command, signal_terminal
from parts.cluster.traffic import traffic_table

PATIENCE_SECONDS = 45.0  # after a signal: DeepSpeed's launcher gives its ranks 30 to save


class Signalled(Exception):
    """This tool was sent a signal that asks it to end."""

    def __init__(self, number: int):
        self.number = number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--hosts", type=int, default=2, help="how many (2)")
    parser.add_argument("--slots", type=int, default=1, help="ranks a host (1)")
    parser.add_argument("--rate", help="of every host's link, both ways, as 1gbit; as fast as memory where not given")
    parser.add_argument("--delay", help="of every host's link, each way, as 1ms; where the kernel has netem")
    parser.add_argument("--shared", type=Path, default=Path.cwd(), metavar="FOLDER", help="what all hosts share (the present folder)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- command", help="what to run on the first host")


def with_hostfile(command: list[str], hostfile: str) -> list[str]:
    """The command as it is run: DeepSpeed's launcher is told of the hosts where the user has not."""
    named = any(word in ("-H", "--hostfile") or word.startswith("--hostfile=") for word in command)
    if Path(command[0]).name != "deepspeed" or named:
        return command
    return [command[0], "--hostfile", hostfile, *command[1:]]


def run(arguments: argparse.Namespace) -> int:
    """The command's status."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        example = "deepspeed launch/train.py --config configs/irnn_news.json"
        raise UserError(f"no command given: python tools/cluster.py run --hosts 2 -- {example}")
    with _signals_raise():
        try:
            with Cluster(
                arguments.hosts, workplace=arguments.shared, slots=arguments.slots, rate=arguments.rate, delay=arguments.delay
            ) as cluster:
                return _run(cluster, with_hostfile(command, cluster.hostfile))
        except Signalled as signalled:
            _say(f"{signal.Signals(signalled.number).name}: all taken down")
            return 128 + signalled.number


def _run(cluster: Cluster, command: list[str]) -> int:
    """Run the command on the first host, passing signals on to it; its status."""
    host = cluster.host(1)
    link = f"links at {cluster.rate}" if cluster.rate else "links of no set speed"
    _say(f"{len(cluster.hosts)} hosts, {link}; they share {cluster.workplace}", *cluster.notes)
    _say(f"{host}$ {shlex.join(command)}")
    started_at = time.monotonic()
    folder = Path.cwd()
    process = host.start(command, folder, start_new_session=True)
    try:
        status = process.wait()
    except Signalled as signalled:
        _say(f"{signal.Signals(signalled.number).name}: passed on; waiting until all hosts are done (once more: end at once)")
        status = _stop(host, process, signalled.number)
    if not cluster.settle(PATIENCE_SECONDS):
        left = [f"{process.pid} on {host}" for host in cluster.hosts for process in host.processes()]
        _say(f"still at work after the command's end, ended with the cluster: processes {', '.join(left)}")
    _say(f"status {status} after {time.monotonic() - started_at:.0f} s", *traffic_table(cluster))
    return status


def _stop(host: Host, process: subprocess.Popen[str], number: int) -> int:
    """What a terminal does at Ctrl-C, or `kill` to the command alone; its status."""
    (signal_terminal if number == signal.SIGINT else signal_command)(process, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE_SECONDS)
    return 128 + number


@contextlib.contextmanager
def _signals_raise() -> Generator[None]:
    def receive(number: int, frame: FrameType | None) -> None:
        raise Signalled(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _say(*lines: str) -> None:
    for line in lines:
        print(f"cluster: {line}", flush=True)
