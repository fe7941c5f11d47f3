"""What the ranks know of each other when one of them fails: every survivor ends with one line that names the rank at fault.

1. At the start each rank writes into the rendezvous store who it is (host and process id), and reads who the others are.
2. A rank whose work ends with an error writes that into the store, hangs up on the others, so that those who wait for it in a
   collective notice at once, and looks for `ANSWER_SECONDS` who else has written.
3. Who has not written is dead or hangs: on the same host the process table tells which. Who has written an error that
   is not one of communication is the cause of all the others'.

A user's mistake that one rank alone has found, as a file that its host lacks, goes the same way, but only the first rank says it, and
whose it is. What a rank finds before they meet it brings to that meeting (`leave_to_the_first`).

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
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn

import psutil
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lm1b.console import say_error
from lm1b.errors import AgreedError, UserError, describe_os_error, in_one_line, in_words
from lm1b.launchers import Place, here
from lm1b.processes import RankProcess, host_name

TIME_LIMIT_VARIABLE, DEFAULT_TIME_LIMIT = "LM1B_TIMEOUT_SECONDS", "60"

FIRST_RANK_SECONDS = 20.0  # how long a rank with a mistake waits for the first to come; it imports the same at the same time
ANSWER_SECONDS = 10.0  # how long a rank that has failed waits for the others to say that they have failed too
SETTLE_SECONDS = 1.0  # a rank that has just gone may have written before; its word is on the way
POLL_SECONDS = 0.1
PREFIX = "lm1b_peers"  # of our keys in the store
COMMUNICATION = re.compile(
    r"gloo|nccl|connection (closed|reset|refused|was)|broken pipe|timed out waiting|application timeout|socket|recvvalue|sendbytes", re.I
)


def is_communication_error(error: BaseException) -> bool:
    """Whether an error says only that another rank could not be reached."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and COMMUNICATION.search(str(error)) is not None


def time_limit() -> timedelta:
    """How long a collective waits for the other ranks. Raises UserError where the environment says something else than seconds."""
    text = os.environ.get(TIME_LIMIT_VARIABLE, DEFAULT_TIME_LIMIT)
    try:
        return timedelta(seconds=max(1.0, float(text)))
    except (ValueError, OverflowError):
        raise UserError(f"{TIME_LIMIT_VARIABLE}={text}: expected a number of seconds") from None


def meet(place: Place) -> Store:
    """The store that the ranks meet at, which the first one keeps. Raises DistError or ValueError where they do not."""
    os.environ.update(place.variables())  # what torch and DeepSpeed read
    store, _, _ = next(rendezvous("env://", timeout=time_limit()))
    store.set_timeout(time_limit())
    return store


def leave_to_the_first(place: Place, message: str) -> None:
    """Bring a mistake of this rank's user to where the ranks meet, for the first to say; returns when that has ended.

    Where the first does not come, it has found a mistake itself, most often this one, and said it.
    """
    with contextlib.suppress(dist.DistError, RuntimeError, ValueError, OSError):
        give_up_at = time.monotonic() + min(FIRST_RANK_SECONDS, time_limit().total_seconds())
        while not _listens(place):
            if time.monotonic() > give_up_at:
                return
            time.sleep(POLL_SECONDS)
        greetings = PrefixStore(PREFIX, meet(place))
        greetings.set(f"who/{place.rank}", json.dumps({"mistake": f"{message} (rank {place.rank} on {host_name()})"}))
        # Not before the first: a launcher ends the others as soon as one has ended.
        greetings.wait(["nothing"], timedelta(seconds=ANSWER_SECONDS))


def _listens(place: Place) -> bool:
    try:
        socket.create_connection((place.master_address or "127.0.0.1", place.master_port), timeout=1.0).close()
    except OSError:
        return False
    return True


class _Word(NamedTuple):
    """What a rank that has failed says: its own error, None for a lost connection; whether that is a mistake of the user."""

    error: str | None
    is_mistake: bool


class Peers:
    """All ranks of a run. Every rank makes one after the store is up; it waits for the others' names.

    Raises AgreedError on all of them where a rank has brought a mistake instead, see `leave_to_the_first`.
    """

    def __init__(self, store: Store, rank: int, size: int):
        self.rank, self.size = rank, size
        self._store = PrefixStore(PREFIX, store)
        self._store.set(f"who/{rank}", json.dumps(RankProcess.here(rank).as_json()))
        greetings: list[dict[str, Any]] = [json.loads(self._store.get(f"who/{other}")) for other in range(size)]
        mistakes = [greeting["mistake"] for greeting in greetings if "mistake" in greeting]
        if mistakes:
            self._let_all_hear(size - len(mistakes))
            raise AgreedError(mistakes[0])
        self.members = [RankProcess(**greeting) for greeting in greetings]
        self._said: dict[int, _Word] = {}  # by rank, of those that have failed

    def _let_all_hear(self, num_ranks: int) -> None:
        """The first rank waits until so many have read what it keeps for them."""
        give_up_at = time.monotonic() + ANSWER_SECONDS
        num_heard = self._store.add("heard", 1)
        while self.rank == 0 and num_heard < num_ranks and time.monotonic() < give_up_at:
            time.sleep(POLL_SECONDS)
            num_heard = self._store.add("heard", 0)

    def cause(self, error: BaseException) -> str | None:
        """Tell the others of this rank's error and find out whose fault it is: a sentence, or None where it is this rank's own."""
        own = None if is_communication_error(error) else _said_of(error)
        self._said[self.rank] = _Word(own, isinstance(error, UserError))
        threading.Thread(target=self._exchange, daemon=True).start()  # the store may hang, with the rank that keeps it
        _hang_up(here().master_port)
        self._wait()
        return None if own is not None else self._sentence()

    def mistake(self) -> str | None:
        """After `cause`: the user's mistake that ends the ranks, and whose it is; None where something else does."""
        errors = [(rank, word) for rank, word in sorted(self._said.items()) if word.error]
        if not errors or not all(word.is_mistake for _, word in errors):
            return None
        rank, word = errors[0]
        return f"{word.error} ({self.members[rank]})" if rank else word.error

    @property
    def says_mistakes(self) -> bool:
        """Whether it is this rank that says the mistake: the first, or where that has gone whoever has found it."""
        return self.rank == 0 or (0 not in self._said and self._said[self.rank].is_mistake)

    def _exchange(self) -> None:
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._store.set(f"failed/{self.rank}", json.dumps(self._said[self.rank]._asdict()))
            while len(self._said) < self.size:
                for other in set(range(self.size)) - self._said.keys():
                    if self._store.check([f"failed/{other}"]):
                        self._said[other] = _Word(**json.loads(self._store.get(f"failed/{other}")))
                time.sleep(POLL_SECONDS)

    def _silent(self) -> list[RankProcess]:
        return [member for member in self.members if member.rank not in self._said]

    def _wait(self) -> None:
        """Until every other rank has written or is known to be gone or stopped, or whose fault it is has been found.

        The store's keeper stays for the others' sake, and they for its sake where it is to say a mistake: their launcher would end it.
        """
        give_up_at = time.monotonic() + ANSWER_SECONDS
        settled_at: float | None = None
        while time.monotonic() < give_up_at:
            known = all(member.condition() in ("gone", "stopped") for member in self._silent())
            words = list(self._said.values())
            waits_for_first = 0 not in self._said and any(word.is_mistake for word in words)
            if known or (any(word.error for word in words) and self.rank != 0 and not waits_for_first):
                settled_at = settled_at or time.monotonic()
                if time.monotonic() - settled_at > SETTLE_SECONDS:
                    return
            else:
                settled_at = None
            time.sleep(POLL_SECONDS)

    def _sentence(self) -> str:
        for rank, word in sorted(self._said.items()):
            if word.error:
                return f"{self.members[rank]} has failed: {word.error}"
        silent = self._silent()
        if not silent:
            return "the ranks have lost the connection to each other, though all of them are alive"
        if silent[0].rank == 0:
            silent = silent[:1]  # it keeps the store: without it nobody can be heard
        words = {"gone": "has died", "stopped": "is stopped and does not answer", "alive": "does not answer"}
        return " and ".join(f"{member} {words.get(member.condition(), 'has died or cannot be reached')}" for member in silent)


def _said_of(error: BaseException) -> str:
    """An error in one line, a system's and a user's in the words of `run_command`."""
    if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno is not None):
        return in_words(error)
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
    """Around the ranks' work: an error of one ends this process, and so it does the others.

    The rank whose own error it is prints its traceback; every other one prints one line that names that rank; their status is 1. A mistake
    of the user is said by the first rank alone, status 2; an AgreedError passes. where_to_go_on: a few words for the end of a line.
    peers None: a process on its own, where every UserError passes.
    """
    try:
        yield
    except SystemExit:
        raise
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except BaseException as error:
        if isinstance(error, AgreedError) or (isinstance(error, UserError) and peers is None):
            raise
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # the launcher's SIGTERM comes a second after the first rank's end
        cause = peers.cause(error) if peers else None
        mistake = peers.mistake() if peers else None
        if mistake is not None and peers is not None:
            _end(mistake if peers.says_mistakes else None, 2)
        if cause is not None and peers is not None:
            _end(f"{cause}, so rank {peers.rank} ends too; {where_to_go_on()}", 1)
        if isinstance(error, OSError) and error.errno is not None:
            _end(describe_os_error(error), 2)
        traceback.print_exception(error)
        name = str(peers.members[peers.rank]) if peers else "the process"
        _end(f"{name} has failed, see above; {where_to_go_on()}", 1)


def _end(message: str | None, status: int) -> NoReturn:
    """One line, then the end without the interpreter's own: threads of a broken process group would hang or abort it."""
    with contextlib.suppress(OSError):
        if message is not None:
            say_error(message, status)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)
