"""Small scorers of random weights, and what they are to find: one position at a time, in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lm1b.config import ModelConfig
from lm1b.distributed import single_process
from lm1b.evaluation.trained.scorer import Scorer
from lm1b.model.language_model import LanguageModel
from lm1b.model.output_layer import TableOutput


def brute_force_nats(
    model: LanguageModel, input_rows_VD: Tensor, output_rows_VP: Tensor, bias_V: Tensor, sequence: list[int], end: int
) -> float:
    """Nats of one sequence from zero state, one position at a time, everything in float64."""
    model = model.double()
    state = model.zero_state(1, "cpu")
    total, before = 0.0, end
    for token in sequence:
        hidden_1P, state = model.hidden(input_rows_VD[before].double().view(1, 1, -1), state)
        logits_V = output_rows_VP.double() @ hidden_1P.flatten() + bias_V.double()
        total -= float(torch.log_softmax(logits_V, 0)[token].detach())
        before = token
    return total


def made_scorer(seed: int, size: int, *, block: int = 7, cell: str = "lstm", end: int = 1) -> tuple[Scorer, Tensor]:
    """A random model over `size` words, and its input table."""
    config = ModelConfig(cell=cell, layers=2, embedding=4, hidden=6, projection=3)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    input_rows_VD, output_rows_VP, bias_V = (torch.randn(size, width, generator=generator) for width in (4, 3, 1))
    alone = single_process()
    output = TableOutput(output_rows_VP, bias_V.flatten(), alone, block)
    return Scorer(LanguageModel(config, seed), np.arange(size), input_rows_VD, output, end, alone), input_rows_VD
