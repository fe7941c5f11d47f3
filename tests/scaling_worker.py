"""One of several real ranks: counts what the collectives of real training steps send. `python scaling_worker.py config.json steps`.

Tokens are drawn from a Zipf curve over the vocabulary. Bytes sent by this rank in a step, mean over the steps, by kind of
collective, go to config.json.RANK.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lm1b.config import load_config
from lm1b.data.batches import Batch
from lm1b.model.language_model import LanguageModel
from lm1b.model.sampler import LogUniform, Sampler
from lm1b.model.tables import Tables
from lm1b.training.engine.engine import Engine
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.engine.settings import language_model_settings
from lm1b.training.step.training_step import TrainingStep

VOCABULARY = 3000


class DrawnBatches:
    """Independent tokens of a Zipf curve."""

    end_id = 0

    def __init__(self, lanes: int, steps: int) -> None:
        self.shape = (steps + 1, lanes)
        self.cumulative_V = np.cumsum(1.0 / np.arange(1, VOCABULARY + 1))

    def at(self, step: int, first_lane: int, num_lanes: int) -> Batch:
        draws = np.random.default_rng(step).random(self.shape) * self.cumulative_V[-1]
        tokens = np.searchsorted(self.cumulative_V, draws, side="right")[:, first_lane : first_lane + num_lanes].astype(np.int64)
        return Batch(tokens[:-1], tokens[1:], epoch=0, starts_epoch=step == 0)


def count_sent(sent: Counter[str], rank: int, size: int) -> None:
    """From now on every collective adds to `sent` the bytes that this rank puts on the wire."""

    def crossing(output: torch.Tensor, given: torch.Tensor, receives: Any = None, sends: Any = None, **_: Any) -> float:
        own = (sends or [len(given) // size] * size)[rank]
        return (len(given) - own) * given[:1].numel() * given.element_size() if len(given) else 0

    def reduced(tensor: torch.Tensor, *_: Any, **__: Any) -> float:
        return 2 * (size - 1) / size * tensor.numel() * tensor.element_size()

    def gathered(output_tensor: torch.Tensor, input_tensor: torch.Tensor, **_: Any) -> float:
        return (size - 1) * input_tensor.numel() * input_tensor.element_size()

    def wrap(name: str, kind: str, num_bytes: Callable[..., float]) -> None:
        real = getattr(dist, name)

        def counted(*arguments: Any, **keywords: Any) -> Any:
            sent[kind] += num_bytes(*arguments, **keywords)
            return real(*arguments, **keywords)

        setattr(dist, name, counted)

    def messages(operations: list[dist.P2POp]) -> float:
        return sum(each.tensor.numel() * each.tensor.element_size() for each in operations if each.op is dist.isend)

    wrap("batch_isend_irecv", "all_to_all", messages)
    wrap("all_to_all_single", "all_to_all", crossing)
    wrap("all_reduce", "all_reduce", reduced)
    wrap("all_gather_into_tensor", "all_gather", gathered)


def main() -> None:
    config, steps = load_config(sys.argv[1], []), int(sys.argv[2])
    sent: Counter[str] = Counter()
    # Before DeepSpeed is imported, which keeps some of these functions.
    count_sent(sent, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    ranks = start_ranks()
    model = LanguageModel(config.model, config.run.seed)
    core_parameters = sum(parameter.numel() for parameter in model.parameters())
    engine = Engine(model, language_model_settings(config, ranks), config.training.precision, ranks)
    tables = Tables.create(config, VOCABULARY, ranks)
    sampler = Sampler(LogUniform(VOCABULARY), config.softmax.samples, config.run.seed)
    batches = DrawnBatches(config.batches.lanes, config.batches.steps)
    # The last is not taken: rows of each step after these are asked for, as in a long run.
    step = TrainingStep(config, engine, tables, sampler, batches, ranks, total_steps=steps + 1)  # type: ignore[arg-type]
    engine.prime(step.zero_loss)
    engine.start_ema()
    sent.clear()
    for _ in range(steps):
        assert step.run().applied
    report = {"core_parameters": core_parameters, **{kind: total / steps for kind, total in sent.items()}}
    Path(f"{sys.argv[1]}.{ranks.rank}").write_text(json.dumps(report))
    step.close()
    del engine, step
    stop_ranks()


if __name__ == "__main__":
    main()
