"""Processes that work side by side on one machine: a bounded number of tasks in flight, clean ends.

With one process everything runs in this one. Workers are spawned (a fork would copy other libraries' threads half-alive), leave
Ctrl-C to the parent, and end by themselves when the parent has gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, connection, get_context, parent_process, resource_tracker
from typing import Any, TypeVar

from lm1b.errors import UserError
from lm1b.memory import keep_freed_memory

Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _interrupts_held() -> Generator[None]:
    """Ctrl-C waits for the end of the block; a process that is started inside it never gets one."""
    resource_tracker.ensure_running()  # it would let signals through in the middle of the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(prepare: Callable[[], object] | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    if prepare:
        prepare()


class Workers:
    """`num_processes` processes, or with 1 this one itself; use as a context manager.

    prepare: called in each process that is started, not in this one. if_killed: what the user is told where one is killed from outside.
    """

    def __init__(self, num_processes: int, *, prepare: Callable[[], object] | None = None, if_killed: str = "run it again") -> None:
        self.num_processes = num_processes
        self._if_killed = if_killed
        keep_freed_memory()
        self._others = set(active_children())
        self._pool = None
        if num_processes > 1:
            self._pool = ProcessPoolExecutor(num_processes, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(prepare,))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, fault: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if fault is not None and not issubclass(fault, UserError | OSError):
            # Who presses Ctrl-C does not want to wait, nor does a rank whose peer has died: files are atomic, so a worker may be
            # stopped anywhere.
            for process in set(active_children()) - self._others:
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """`function(*task)` for every task, in whatever order they end; one more task than processes is in flight.

        The first exception of a task is raised here; later tasks are not begun.
        """
        if self._pool is None:
            for task in tasks:
                yield function(*task)
            return
        pending: set[Future[Result]] = set()
        try:
            for task in tasks:
                with _interrupts_held():  # submitting is what starts a process
                    pending.add(self._pool.submit(function, *task))
                if len(pending) > self.num_processes:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise UserError(f"a process at work was killed, perhaps for want of memory; {self._if_killed}") from None
        finally:
            for future in pending:
                future.cancel()
