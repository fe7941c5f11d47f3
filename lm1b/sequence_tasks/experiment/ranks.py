"""The ranks that a launcher has started for the tasks' runs: how they meet, and how they end together.

Files are atomic and a run goes on from its own, so that any rank may end anywhere: at a signal at once, with its launcher too, and
with one line that names the guilty where another one has gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Generator
from types import FrameType

import torch

from lm1b.console import say_error
from lm1b.devices import best_device
from lm1b.distributed import Ranks, share_of_cores, single_process
from lm1b.launchers import here
from lm1b.peers import naming_the_guilty
from lm1b.sequence_tasks.config import TaskExperiment
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.same_everywhere import check_program
from lm1b.training.stopping import Launcher

GO_ON = "the same command goes on from there"
WATCH_SECONDS = 1.0


def _end_on_signal(number: int, frame: FrameType | None) -> None:
    if here().rank == 0:
        with contextlib.suppress(OSError):
            say_error(f"stopped ({signal.Signals(number).name}); {GO_ON}", 128 + number)
    os._exit(128 + number)


def _end_with_launcher(launcher: Launcher) -> None:
    """The launcher of ranks that train on alone has been killed: nobody else would end them."""
    while not launcher.has_gone():
        time.sleep(WATCH_SECONDS)
    os._exit(1)


@contextlib.contextmanager
def ranks_together() -> Generator[Ranks]:
    """The ranks, under DeepSpeed, until the block ends. Raises UserError on all of them alike; any other error ends them all."""
    launcher = Launcher()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_on_signal)
    ranks = start_ranks()
    threading.Thread(target=_end_with_launcher, args=(launcher,), daemon=True).start()
    try:
        with naming_the_guilty(ranks.peers, lambda: GO_ON):
            torch.set_num_threads(share_of_cores(ranks))
            yield ranks
    finally:
        stop_ranks()


@contextlib.contextmanager
def ranks_of(configs: list[TaskExperiment]) -> Generator[Ranks]:
    """The ranks of a launcher, which run the same program, or a process on its own. Raises UserError where their programs differ."""
    if here().size == 1:
        yield single_process(best_device())
        return
    with ranks_together() as ranks:
        for config in configs:
            check_program(ranks, config)
        yield ranks
