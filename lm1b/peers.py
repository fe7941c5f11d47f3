"""What the ranks know of each other when one of them fails: every survivor ends with one line that names the rank at fault.

1. At the start each rank writes into the rendezvous store who it is (host and process id), and reads who the others are.
2. A rank whose work ends with an error writes that into the store, hangs up on the others, so that those who wait for it in a
   collective notice at once, and looks for `ANSWER_SECONDS` who else has written.
3. Who has not written is dead or hangs: on the same host the process table tells which. Who has written an error that
   is not one of communication is the cause of all the others'.

A killed rank is noticed at once, since its connections are closed; one that hangs after the process group's time limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from typing import NoReturn

import psutil
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from lm1b.console import say_error
from lm1b.errors import UserError, describe_os_error, in_one_line
from lm1b.launchers import here
from lm1b.processes import RankProcess

ANSWER_SECONDS = 10.0  # how long a rank that has failed waits for the others to say that they have failed too
SETTLE_SECONDS = 1.0  # a rank that has just gone may have written before; its word is on the way
POLL_SECONDS = 0.1
COMMUNICATION = re.compile(
    r"gloo|nccl|connection (closed|reset|refused|was)|broken pipe|timed out waiting|application timeout|socket|recvvalue|sendbytes", re.I
)


def is_communication_error(error: BaseException) -> bool:
    """Whether an error says only that another rank could not be reached."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and COMMUNICATION.search(str(error)) is not None


class Peers:
    """All ranks of a process group. Every rank makes one after the store is up; it waits for the others' names."""

    def __init__(self, store: Store, rank: int, size: int):
        self.rank, self.size = rank, size
        self._store = PrefixStore("lm1b_peers", store)
        self._store.set(f"who/{rank}", json.dumps(RankProcess.here(rank).as_json()))
        members = [RankProcess.from_json(json.loads(self._store.get(f"who/{other}"))) for other in range(size)]
        assert all(members)
        self.members: list[RankProcess] = [member for member in members if member]
        self._said: dict[int, str | None] = {}  # what each rank that failed has written: its own error, or None for a lost connection

    def cause(self, error: BaseException) -> str | None:
        """Tell the others of this rank's error and find out whose fault it is: a sentence, or None where it is this rank's own."""
        own = None if is_communication_error(error) else _in_words(error)
        self._said[self.rank] = own
        threading.Thread(target=self._exchange, daemon=True).start()  # the store may hang, with the rank that keeps it
        _hang_up(here().master_port)
        self._wait(own is not None)
        return None if own is not None else self._sentence()

    def _exchange(self) -> None:
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._store.set(f"failed/{self.rank}", json.dumps({"error": self._said[self.rank]}))
            while len(self._said) < self.size:
                for other in set(range(self.size)) - self._said.keys():
                    if self._store.check([f"failed/{other}"]):
                        self._said[other] = json.loads(self._store.get(f"failed/{other}"))["error"]
                time.sleep(POLL_SECONDS)

    def _silent(self) -> list[RankProcess]:
        return [member for member in self.members if member.rank not in self._said]

    def _wait(self, is_own: bool) -> None:
        """Until every other rank has written or is known to be gone or stopped; the store's keeper stays for the others' sake."""
        give_up_at = time.monotonic() + ANSWER_SECONDS
        settled_at: float | None = None
        while time.monotonic() < give_up_at:
            known = all(member.condition() in ("gone", "stopped") for member in self._silent())
            guilty = any(self._said.values())
            if known or (guilty and self.rank != 0) or (is_own and self.rank != 0):
                settled_at = settled_at or time.monotonic()
                if time.monotonic() - settled_at > SETTLE_SECONDS:
                    return
            else:
                settled_at = None
            time.sleep(POLL_SECONDS)

    def _sentence(self) -> str:
        for rank, text in sorted(self._said.items()):
            if text:
                return f"{self.members[rank]} has failed: {text}"
        silent = self._silent()
        if not silent:
            return "the ranks have lost the connection to each other, though all of them are alive"
        if silent[0].rank == 0:
            silent = silent[:1]  # it keeps the store: without it nobody can be heard
        words = {"gone": "has died", "stopped": "is stopped and does not answer", "alive": "does not answer"}
        return " and ".join(f"{member} {words.get(member.condition(), 'has died or cannot be reached')}" for member in silent)


def _in_words(error: BaseException) -> str:
    """An error in one line, a system's in the words of `run_command`."""
    if isinstance(error, OSError) and error.errno is not None:
        return describe_os_error(error)
    return in_one_line(error)


def _hang_up(store_port: int) -> None:
    """Close this process's connections to other ranks, except those to the store: who waits at the other end notices at once.

    The process group itself cannot be asked to: its destructor waits for operations that a lost rank will never finish.
    """
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.Process().net_connections("tcp"):
            ports = (connection.laddr.port, connection.raddr.port) if connection.raddr else ()
            if connection.fd >= 0 and ports and store_port not in ports:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as line:
                    line.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def naming_the_guilty(peers: Peers | None, where_to_go_on: Callable[[], str]) -> Generator[None]:
    """Around the ranks' work: an error that is not a UserError ends this process, status 1, and so it does the others.

    The rank whose own error it is prints its traceback; every other one prints one line that names that rank. A UserError passes:
    all ranks have agreed on it. where_to_go_on: a few words for the end of that line. peers None: a process on its own.
    """
    try:
        yield
    except (UserError, SystemExit):
        raise
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BaseException as error:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the launcher's SIGTERM comes a second after the first rank's end
        cause = peers.cause(error) if peers else None
        if cause is not None and peers is not None:
            _end(f"{cause}, so rank {peers.rank} ends too; {where_to_go_on()}", 1)
        if isinstance(error, OSError) and error.errno is not None:
            _end(describe_os_error(error), 2)
        traceback.print_exception(error)
        name = str(peers.members[peers.rank]) if peers else "the process"
        _end(f"{name} has failed, see above; {where_to_go_on()}", 1)


def _end(message: str, status: int) -> NoReturn:
    """One line, then the end without the interpreter's own: threads of a broken process group would hang or abort it."""
    with contextlib.suppress(OSError):
        say_error(message, status)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)
