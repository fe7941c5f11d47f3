"""A step for a device that computes by itself: its tensors never meet the host's, and nobody asks it for a number.

torch's `meta` device stands for it: its tensors have shapes and no numbers, so whatever would wait for one raises, and so do operations
that only know the result's shape once they have the numbers. The code takes the same branches as on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_settings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lm1b.config import Config, parse_config
from lm1b.data.batches import Batch
from lm1b.distributed import Ranks, single_process
from lm1b.model.full_softmax import full_softmax_part
from lm1b.model.language_model import LanguageModel
from lm1b.model.sampler import make_sampler
from lm1b.model.tables import Tables
from lm1b.training.step.rows import RowPipeline
from lm1b.training.timing import Waiting

META = torch.device("meta")
WORDS = 241


class NeverMixed(TorchDispatchMode):
    """Fails where an operation takes tensors of the host and of the device together, but for copies to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._to_copy.default:
            devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()}
            assert len(devices) < 2, f"{func} mixes {devices}"
        return func(*args, **(kwargs or {}))


class MadeUpBatches:
    """Tokens that differ from step to step, so that the number of distinct ones does."""

    end_id = 0

    def at(self, step: int, first_lane: int, num_lanes: int) -> Batch:
        tokens = np.random.default_rng(step).zipf(1.5, (11, num_lanes)).clip(max=WORDS - 1).astype(np.int64)
        return Batch(tokens[:-1], tokens[1:], 0, step == 0)


def config_of(**sections: Any) -> Config:
    return parse_config(tiny_settings(Path("unused"), "run", **sections))


class OneStep:
    """The pieces of a training step around the engine, on a device."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        sampler = make_sampler(config.softmax, np.arange(WORDS, 0, -1), 1)
        with torch.device(ranks.device):
            self.model = LanguageModel(config.model, 1, initialize=False, softmax=config.softmax, vocabulary_size=WORDS)
        self.tables = Tables.create(config, WORDS, ranks)
        batches: Any = MadeUpBatches()
        self.rows = RowPipeline(config, self.tables, sampler, batches, ranks, torch.float32)
        self.state = self.model.zero_state(config.batches.lanes, ranks.device)

    def run(self, step: int) -> list[tuple[int, ...]]:
        """-> the shapes that forward and backward see."""
        rows = self.rows.take(step, is_last=False)
        resets_TB = rows.plan.inputs_TB == 0 if self.config.batches.state == "reset" else None
        parts = self.model(
            rows.input_rows_UD,
            rows.plan.input_positions_TB,
            rows.output(self.ranks),
            rows.plan.target_positions_TB,
            self.state,
            step=step,
            resets_TB=resets_TB,
        )
        (parts.nats / self.config.batches.lanes).float().backward()
        self.state = parts.state
        assert len(rows.gradients()) == len(rows.leaves)
        if not self.config.communication.tables_on_host:  # then the gradients go to the host, and numbers cannot leave this device
            self.rows.apply(rows, Waiting(self.ranks.device), learning_rate=0.1, gradient_scale=1.0)
        return [tuple(leaf.shape) for leaf in rows.leaves]


@pytest.mark.parametrize("cell", [{"cell": "irnn"}, {"cell": "lstm"}, {"cell": "lstm", "recurrent_projection": 16, "projection": None}])
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"dropout": 0.2, "layers": 2}},
        {"batches": {"state": "reset"}},
        {"model": {"embedding": 16, "tie_tables": True}},
        {"softmax": {"kind": "full"}},
        {"softmax": {"kind": "full"}, "model": {"embedding": 16, "tie_tables": True}},
        {"communication": {"tables_on_host": True, "overlap": False}},
    ],
    ids=["sampled", "dropout", "reset", "tied", "full", "full tied", "tables on host"],
)
def test_nobody_asks_the_device_and_its_shapes_never_change(cell: dict[str, Any], sections: dict[str, dict[str, Any]]) -> None:
    config = config_of(**{**sections, "model": {**cell, **sections.get("model", {})}})
    steps = OneStep(config, single_process(META))
    with NeverMixed():
        shapes = [steps.run(step) for step in range(3)]
    steps.rows.close()
    assert shapes[0] == shapes[1] == shapes[2]
    here = OneStep(config, single_process())
    own = [here.run(step) for step in range(3)]
    assert len({tuple(shape) for shape in own}) > 1, "on the host rows are as many as are wanted, so this test can fail"


def test_the_adaptive_softmax_asks() -> None:
    """How many targets a cluster has decides its shapes: see training_step.py."""
    steps = OneStep(config_of(softmax={"kind": "adaptive", "cutoffs": [60]}), single_process(META))
    with pytest.raises(NotImplementedError, match="meta"):
        steps.run(0)
    steps.rows.close()


def test_exact_evaluation_asks_nothing() -> None:
    hidden_NP, rows_VP, bias_V = torch.empty(50, 8, device=META), torch.empty(WORDS, 8, device=META), torch.empty(WORDS, device=META)
    with NeverMixed():
        part = full_softmax_part(hidden_NP, rows_VP, bias_V, torch.empty(50, dtype=torch.int64, device=META), 100)
        assert part.nats().shape == (50,)


def test_the_device_stands_for_one_that_is_asked() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(torch.empty((), device=META))
    with pytest.raises(NotImplementedError):
        torch.nonzero(torch.empty(3, device=META))
    with NeverMixed(), pytest.raises(AssertionError, match="mixes"):
        _ = torch.empty(3, device=META) + torch.ones(3)
