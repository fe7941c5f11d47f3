"""The adaptive softmax (Grave 2017, arXiv 1609.04309): exact, and cheaper than the full one, for up to 100,000 words.

1. Ids run by falling training count. Those below the first cutoff have logits of their own in the head, beside one logit a cluster.
2. A cluster of rarer words has narrower rows: log p(word) = log p(its cluster) + log p(word in the cluster).
3. So a position computes the head and at most one cluster. All of them take part in every backward pass, if only with no positions:
   DeepSpeed stops where a parameter gets a gradient on one rank and none on another.

The weights are dense and belong to the core: copied to every rank, updated whole. That is what limits the vocabulary.

N positions, P hidden width, V vocabulary, C clusters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lm1b.config import SoftmaxConfig
from lm1b.errors import UserError
from lm1b.model.initial_weights import glorot_uniform
from lm1b.randomness import derive_key

LARGEST_VOCABULARY = 100_000


def adaptive_cutoffs(softmax: SoftmaxConfig, vocabulary_size: int) -> list[int]:
    """Ids at which the clusters begin, rising."""
    return softmax.cutoffs or sorted({max(1, vocabulary_size // 20), max(1, vocabulary_size // 4)})


class AdaptiveSoftmax(nn.Module):
    """Torch's AdaptiveLogSoftmaxWithLoss with a bias in the head: its weights, and losses of which no cluster is ever left out."""

    def __init__(self, width: int, vocabulary_size: int, softmax: SoftmaxConfig) -> None:
        """width: of what it reads (P). Raises UserError for a vocabulary too large, and for cutoffs that do not cut it."""
        super().__init__()
        if vocabulary_size > LARGEST_VOCABULARY:
            raise UserError(
                f"softmax.kind=adaptive keeps its rows in the dense core, at most {LARGEST_VOCABULARY:,} words; this vocabulary has "
                f"{vocabulary_size:,}: use softmax.kind=sampled, or raise vocabulary.minimum_count"
            )
        cutoffs = adaptive_cutoffs(softmax, vocabulary_size)
        if cutoffs[-1] >= vocabulary_size:
            raise UserError(f"softmax.cutoffs (={cutoffs}) must be below the vocabulary's size (={vocabulary_size})")
        narrowest = int(width // softmax.cluster_factor ** len(cutoffs))
        if narrowest < 1:
            raise UserError(
                f"softmax.cluster_factor (={softmax.cluster_factor:g}) leaves no width for cluster {len(cutoffs)} of rows {width} wide; "
                "take fewer softmax.cutoffs or a smaller factor"
            )
        self.clusters = nn.AdaptiveLogSoftmaxWithLoss(width, vocabulary_size, cutoffs, softmax.cluster_factor, head_bias=True)

    @property
    def vocabulary_size(self) -> int:
        """V."""
        return self.clusters.n_classes

    def initialize(self, seed: int) -> None:
        """Weights uniform with Glorot's limit, keyed by (seed, name); bias 0."""
        with torch.no_grad():
            for name, parameter in self.clusters.named_parameters():
                if parameter.dim() == 1:
                    parameter.zero_()
                else:
                    parameter.copy_(glorot_uniform(derive_key(seed, "weight", f"adaptive.{name}"), parameter.shape))

    def nats(self, hidden_NP: Tensor, targets_N: Tensor) -> Tensor:
        """Sum over positions of -log p(target), float64, no dimensions, with gradient. See `forward`."""
        return self(hidden_NP, targets_N).sum()

    def forward(self, hidden_NP: Tensor, targets_N: Tensor) -> Tensor:
        """-log p(target) of each position, float64 [N], with gradient. hidden_NP: the computing dtype; targets_N: int64 ids."""
        layers: Any = self.clusters
        head_NK = layers.head(hidden_NP).float().log_softmax(1)
        columns_N, in_cluster_N = targets_N, torch.zeros(len(targets_N), dtype=torch.float64, device=hidden_NP.device)
        for number, tail in enumerate(layers.tail):
            low, high = layers.cutoffs[number : number + 2]  # the last one is V
            here = torch.nonzero((targets_N >= low) & (targets_N < high)).flatten()
            inside = tail(hidden_NP[here]).float().log_softmax(1)
            in_cluster_N = in_cluster_N.index_add(0, here, inside.gather(1, (targets_N[here] - low).unsqueeze(1)).squeeze(1).double())
            columns_N = columns_N.index_fill(0, here, layers.shortlist_size + number)
        return -(head_NK.gather(1, columns_N.unsqueeze(1)).squeeze(1).double() + in_cluster_N)

    def log_probabilities(self, hidden_NP: Tensor) -> Tensor:
        """log p of every word, float32 [N, V]."""
        layers: Any = self.clusters
        head_NK = layers.head(hidden_NP).float().log_softmax(1)
        parts = [head_NK[:, : layers.shortlist_size]]
        for number, tail in enumerate(layers.tail):
            parts.append(tail(hidden_NP).float().log_softmax(1) + head_NK[:, layers.shortlist_size + number, None])
        return torch.cat(parts, 1)
