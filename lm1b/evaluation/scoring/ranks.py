"""Who scores: this process alone, or one of the ranks that a launcher has started, which hold the vocabulary's rows between them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

from lm1b.devices import chosen_device
from lm1b.distributed import Ranks, single_process
from lm1b.launchers import here
from lm1b.model.products import keep_float32_exact
from lm1b.peers import naming_the_guilty
from lm1b.training.engine.process_group import start_ranks, stop_ranks


@contextlib.contextmanager
def evaluating_ranks(device: str | None) -> Generator[Ranks]:
    """This process alone on `device` (None: a GPU if there is one), or one of the ranks that a launcher has started.

    Ranks hold the vocabulary's rows between them and score the same positions. Raises UserError for a GPU that is not there.
    """
    computes_on = chosen_device(device)
    keep_float32_exact()
    if here().size == 1:
        yield single_process(computes_on)
        return
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # what `best_device` and DeepSpeed go by
    ranks = start_ranks()
    try:
        with naming_the_guilty(ranks.peers, lambda: "run the same command again"):
            yield ranks
    finally:
        stop_ranks()
