"""What a rank should send in a step by the scaling model: the sum over a step's collectives, without headers of the network."""

from __future__ import annotations

import numpy as np

from lm1b.config import Config
from parts.scaling_model.layouts import collectives
from parts.scaling_model.measured import Measured
from parts.scaling_model.rows import Words


def expected_sent_bytes(config: Config, precision: str, counts_V: np.ndarray, core_parameters: int, ranks: int) -> float:
    """Bytes of one rank and step, mean over ranks.

    counts_V: training counts by falling frequency. Tokens count as independent draws: running text repeats its words and sends a
    little less.
    """
    model = config.model
    entry = Measured(
        precision=precision,  # type: ignore[arg-type]
        vocabulary=len(counts_V),
        ranks=ranks,
        lanes=config.batches.lanes,
        steps=config.batches.steps,
        samples=config.softmax.samples,
        embedding=model.embedding,
        output_width=model.output_width,
        core_parameters=core_parameters,
        step_seconds=1.0,
    )
    rows = Words(counts_V, config.softmax.samples).touched(config.batches.lanes * config.batches.steps // ranks, ranks)
    return sum(each.sent_bytes(ranks) for each in collectives("sharded", entry, rows, ranks))
