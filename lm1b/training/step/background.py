"""Jobs that run one after another in a thread beside the steps, with a process group of their own.

Collectives of two threads in one process group could meet the wrong ones of another rank; in a group of their own, and in the
order in which every rank's steps submit them, they cannot. The group is gloo's, for what is on the host, and NCCL never sees the
jobs: where the tables are in a GPU's memory, they only plan.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.distributed as dist

from lm1b.devices import computes_apart
from lm1b.distributed import Ranks
from lm1b.peers import time_limit
from lm1b.training.engine.process_group import at_the_end

T = TypeVar("T")


class Background:
    """`submit` gives a job to the thread; where is_on is False, and on one rank without a GPU, it is done at once by the caller itself.

    group: for the jobs' collectives; None is the default one. Every rank makes one at the same time, and submits the same jobs.
    After a job that has failed no other is begun: each raises the same error, whichever of them is asked for first.
    """

    def __init__(self, ranks: Ranks, *, is_on: bool) -> None:
        self.is_on = is_on and (ranks.size > 1 or computes_apart(ranks.device))
        self._problem: BaseException | None = None
        self.group: dist.ProcessGroup | None = None
        self._pool: ThreadPoolExecutor | None = None
        if ranks.size > 1 and (is_on or computes_apart(ranks.device)):
            group = dist.new_group(timeout=time_limit(), backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self.group = group
        if self.is_on:
            self._pool = ThreadPoolExecutor(1, "lm1b_rows", initializer=_begin_thread, initargs=(ranks.device,))
        if self._pool is not None or self.group is not None:
            at_the_end(self.close)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Do it after the jobs before it; result() waits, and raises what the job has raised. Without a thread it is done here."""
        if self._pool is not None:
            return self._pool.submit(self._unless_failed, job)
        done: Future[T] = Future()
        done.set_result(job())
        return done

    def _unless_failed(self, job: Callable[[], T]) -> T:
        if self._problem is not None:
            raise self._problem
        try:
            return job()
        except BaseException as error:
            self._problem = error
            raise

    def close(self) -> None:
        """Wait for the last job and end thread and group. Every rank calls it; again does nothing."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
        if self.group is not None:
            dist.destroy_process_group(self.group)
            self.group = None


def _begin_thread(device: torch.device) -> None:
    """Settings that a thread has of its own."""
    torch.set_flush_denormal(True)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # else pinned memory would be made through the first GPU of the host, by every rank
