"""Which words stand in for the whole vocabulary in the training loss: S distinct ids drawn by a proposal.

1. One draw gives id k with probability P(k). `LogUniform`: log((k+2)/(k+1)) / log(V+1); ids run by falling training count, so this
   is close to Zipf's law (the proposal of the LM1B recipe; Jozefowicz 2016, arXiv 1602.02410). `Unigram`: the training count to a
   power (Mikolov 2013, arXiv 1310.4546).
2. Draws go on until S distinct ids have been seen; that took n draws.
3. E(k) = 1 - (1 - P(k))^n is how often id k is expected among the samples; logits are corrected by -log E(k).

Draw number i of a step is a pure function of (seed, step, i): the same on every rank and micro-batch, so nobody sends samples and
no random state exists. It is computed on the host: another device's exp may round another way and so draw another id.

>>> sampler = Sampler(LogUniform(793_471), 8_192, seed=1)
>>> samples = sampler.draw(step=0)     # samples.num_draws is about 16,000
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lm1b.config import SoftmaxConfig
from lm1b.errors import UserError
from lm1b.randomness import derive_key, uniform


@dataclass(frozen=True)
class Samples:
    """A step's samples.

    ids_S: int64, distinct, ascending, on the host. num_draws: n, the draws it took; see `Sampler.log_expected`.
    """

    ids_S: Tensor
    num_draws: int


class Proposal(Protocol):
    """A distribution over V ids, none of them impossible."""

    vocabulary_size: int

    def ids(self, numbers_n: np.ndarray) -> np.ndarray:
        """The ids, int64, that numbers uniform in (0, 1), float64, draw."""
        ...

    def probability(self, ids: Tensor) -> Tensor:
        """P(id) of int64 ids, any shape, on the host -> float64, same shape."""
        ...


class LogUniform:
    """P(k) = log((k+2)/(k+1)) / log(V+1)."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size

    def ids(self, numbers_n: np.ndarray) -> np.ndarray:
        """See `Proposal.ids`: exp(u log(V+1)) lies in [k+1, k+2) with probability P(k)."""
        numbers = np.exp(numbers_n * math.log(self.vocabulary_size + 1))
        return np.clip(numbers.astype(np.int64) - 1, 0, self.vocabulary_size - 1)

    def probability(self, ids: Tensor) -> Tensor:
        """See `Proposal.probability`."""
        return torch.log1p(1.0 / (ids.to(torch.float64) + 1.0)) / math.log(self.vocabulary_size + 1)


class Unigram:
    """P(k) proportional to count(k)^power. A word of count 0 (`<S>`) is taken for one of count 1: a correction by -log 0 would be none."""

    def __init__(self, counts_V: np.ndarray, power: float) -> None:
        """counts_V: int64, of training."""
        self.vocabulary_size = len(counts_V)
        cumulative_V = np.cumsum(np.maximum(counts_V, 1).astype(np.float64) ** power)
        self._cumulative_V = cumulative_V / cumulative_V[-1]
        self._probability_V = torch.from_numpy(np.diff(self._cumulative_V, prepend=0.0))

    def ids(self, numbers_n: np.ndarray) -> np.ndarray:
        """See `Proposal.ids`."""
        return np.searchsorted(self._cumulative_V, numbers_n, side="right").clip(max=self.vocabulary_size - 1)

    def probability(self, ids: Tensor) -> Tensor:
        """See `Proposal.probability`."""
        return self._probability_V[ids]


def make_sampler(softmax: SoftmaxConfig, counts_V: np.ndarray, seed: int) -> Sampler | None:
    """The sampler that a config asks for; None where its softmax needs none. counts_V: int64, training counts by id. Raises UserError."""
    if softmax.kind != "sampled":
        return None
    proposal = LogUniform(len(counts_V)) if softmax.proposal == "log_uniform" else Unigram(counts_V, softmax.unigram_power)
    return Sampler(proposal, softmax.samples, seed)


class Sampler:
    """Draws S distinct of V ids. S = V (for tests and tiny vocabularies) takes them all, with E = 1."""

    def __init__(self, proposal: Proposal, num_samples: int, seed: int) -> None:
        """Raises UserError where S > V/2 without S = V: nearly every id would be drawn, at great cost."""
        vocabulary_size = proposal.vocabulary_size
        if num_samples > vocabulary_size / 2 and num_samples != vocabulary_size:
            raise UserError(
                f"softmax.samples (={num_samples}) must be at most half the vocabulary (={vocabulary_size} words); "
                "take fewer, or use softmax.kind=full"
            )
        self.proposal = proposal
        self.vocabulary_size = vocabulary_size
        self.num_samples = num_samples
        self.seed = seed
        # Only how many draws are made at a time: what is drawn does not depend on it.
        self._draws_at_a_time = 2 * num_samples + 64

    def draw(self, step: int) -> Samples:
        """The samples of a step, on the host. A pure function of (seed, step)."""
        if self.num_samples == self.vocabulary_size:
            return Samples(torch.arange(self.vocabulary_size), self.vocabulary_size)
        key = derive_key(self.seed, "sampler", step)
        while True:
            ids_S, num_draws = _first_distinct(self._ids_drawn(key, self._draws_at_a_time), self.num_samples)
            if num_draws:
                break
            self._draws_at_a_time += self._draws_at_a_time // 4 + 64
        return Samples(torch.from_numpy(ids_S), num_draws)

    def log_expected(self, ids: Tensor, num_draws: int) -> Tensor:
        """log E(id) after `num_draws` draws. ids: int64, any shape, on the host -> float32, same shape; zeros where S = V."""
        if self.num_samples == self.vocabulary_size:
            return torch.zeros(ids.shape)
        return torch.log(-torch.expm1(num_draws * torch.log1p(-self.proposal.probability(ids)))).to(torch.float32)

    def _ids_drawn(self, key: int, count: int) -> np.ndarray:
        """The first `count` draws of a step, int64."""
        return self.proposal.ids(uniform(key, torch.arange(count)).numpy())


def _first_distinct(draws: np.ndarray, num_distinct: int) -> tuple[np.ndarray, int]:
    """The first `num_distinct` distinct ids among `draws`, ascending, and how many draws they took; 0 where there are fewer."""
    # One sort of (id, place) packed into an int64: the first of each run of equal ids is that id's first draw.
    place_bits = max(1, int(len(draws) - 1).bit_length())
    packed = np.sort((draws << place_bits) | np.arange(len(draws)))
    ids = packed >> place_bits
    is_first = np.empty(len(ids), dtype=bool)
    is_first[0] = True
    np.not_equal(ids[1:], ids[:-1], out=is_first[1:])
    first_places = packed[is_first] & ((1 << place_bits) - 1)
    if len(first_places) < num_distinct:
        return ids[:0], 0
    last_place = int(np.partition(first_places, num_distinct - 1)[num_distinct - 1])
    return ids[is_first][first_places <= last_place], last_place + 1
