"""CPU time of this process's threads, by what they are: the step's own, the one that fetches rows, gloo's, OpenMP's."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from pathlib import Path

import psutil

NAMED = 4  # the largest; the rest is `others`


class ThreadTime:
    """CPU seconds of every thread between `start` and `stop`, summed over as many such intervals. Linux counts hundredths of a second."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._before: dict[int, float] = {}

    def start(self) -> None:
        self._before = _by_thread()

    def stop(self) -> None:
        after, names = _by_thread(), {thread.native_id: thread.name for thread in threading.enumerate()}
        for thread, seconds in after.items():
            self._seconds[_kind(thread, names)] += seconds - self._before.get(thread, 0.0)

    def mean(self, count: int) -> dict[str, float]:
        """Seconds of one of `count` intervals by kind of thread, the largest first; `others` is what is not named."""
        found = {name: seconds / count for name, seconds in self._seconds.items() if name == "main" or seconds > 0}
        largest = sorted(found, key=lambda name: (name != "main", -found[name]))
        named = {name: round(found[name], 5) for name in largest[:NAMED]}
        rest = sum(found[name] for name in largest[NAMED:])
        return named | ({"others": round(rest, 5)} if rest else {})


def _by_thread() -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}


def _kind(thread: int, names: dict[int | None, str]) -> str:
    """What a thread is for: Python's name without its number, else the system's. Those of OpenMP are called as their process."""
    if thread == os.getpid():
        return "main"
    if thread in names:
        return names[thread].rstrip("0123456789").rstrip("_-") or names[thread]
    name = _system_name(thread)
    if "gloo" in name:
        return "gloo"
    return "OpenMP" if name == _system_name(os.getpid()) else name


def _system_name(thread: int) -> str:
    with contextlib.suppress(OSError):  # it may have ended
        return Path(f"/proc/self/task/{thread}/comm").read_text().strip()
    return "ended"
