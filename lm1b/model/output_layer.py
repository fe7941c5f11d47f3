"""What turns hidden vectors into exact probabilities of words, when a trained model is asked: table rows, or the adaptive softmax.

Every rank has the hidden vectors of all positions; each has rows of its own (`TableOutput`), or all weights (`AdaptiveOutput`).

N positions, P hidden width, V vocabulary, L of its rows on this rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lm1b.distributed import Ranks, all_reduce_sum
from lm1b.model.adaptive import AdaptiveSoftmax
from lm1b.model.full_softmax import VOCABULARY_BLOCK, full_softmax_part, places_of_targets


class OutputLayer(Protocol):
    """An exact softmax over the whole vocabulary."""

    def nats(self, hidden_NP: Tensor, targets_N: Tensor) -> Tensor:
        """-log p(target) of each position, float64 [N], on every rank. targets_N: int64 ids. A collective."""
        ...

    def logits(self, hidden_P: Tensor) -> Tensor:
        """Of every word, float32 [V], up to a constant; on one rank alone."""
        ...


@dataclass(frozen=True)
class TableOutput:
    """Rows of the output table (row r on rank r % ranks) in the computing precision, their bias in float32."""

    rows_LP: Tensor
    bias_L: Tensor
    ranks: Ranks
    vocabulary_block: int = VOCABULARY_BLOCK

    def nats(self, hidden_NP: Tensor, targets_N: Tensor) -> Tensor:
        """See `OutputLayer.nats`."""
        part = full_softmax_part(hidden_NP, self.rows_LP, self.bias_L, places_of_targets(targets_N, self.ranks), self.vocabulary_block)
        return part.reduce(self.ranks).nats()

    def logits(self, hidden_P: Tensor) -> Tensor:
        """See `OutputLayer.logits`."""
        return (self.rows_LP @ hidden_P).float() + self.bias_L.float()


@dataclass(frozen=True)
class AdaptiveOutput:
    """The adaptive softmax of a model; each rank scores its share of the positions."""

    softmax: AdaptiveSoftmax
    ranks: Ranks

    def nats(self, hidden_NP: Tensor, targets_N: Tensor) -> Tensor:
        """See `OutputLayer.nats`."""
        nats_N = torch.zeros(len(targets_N), dtype=torch.float64, device=hidden_NP.device)
        own = slice(self.ranks.rank, None, self.ranks.size)
        nats_N[own] = self.softmax(hidden_NP[own], targets_N[own])
        return all_reduce_sum(nats_N, self.ranks)

    def logits(self, hidden_P: Tensor) -> Tensor:
        """See `OutputLayer.logits`."""
        return self.softmax.log_probabilities(hidden_P.unsqueeze(0))[0]
