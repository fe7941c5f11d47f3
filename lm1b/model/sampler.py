"""Which words stand in for the whole vocabulary in the training loss: S distinct ids of a log-uniform proposal.

1. One draw gives id k with probability P(k) = log((k+2)/(k+1)) / log(V+1): ids run by falling training count, so this
   is close to Zipf's law (the proposal of the LM1B recipe; Jozefowicz 2016, arXiv 1602.02410).
2. Draws go on until S distinct ids have been seen; that took n draws.
3. E(k) = 1 - (1 - P(k))^n is how often id k is expected among the samples; logits are corrected by -log E(k).

Draw number i of a step is a pure function of (seed, step, i): the same on every rank, micro-batch and device, so
nobody sends samples and no random state exists.

>>> sampler = LogUniformSampler(793_471, 8_192, seed=1)
>>> samples = sampler.draw(step=0, device=torch.device("cpu"))     # samples.num_draws is about 16,000
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lm1b.errors import UserError
from lm1b.randomness import derive_key, uniform


@dataclass(frozen=True)
class Samples:
    """A step's samples.

    ids_S: int64, distinct, ascending. num_draws: n, the draws it took; see `LogUniformSampler.log_expected`.
    """

    ids_S: Tensor
    num_draws: int


class LogUniformSampler:
    """Draws S distinct of V ids. S = V (for tests and tiny vocabularies) takes them all, with E = 1."""

    def __init__(self, vocabulary_size: int, num_samples: int, seed: int) -> None:
        """Raises UserError where S > V/2 without S = V: nearly every id would be drawn, at great cost."""
        if num_samples > vocabulary_size / 2 and num_samples != vocabulary_size:
            raise UserError(
                f"softmax.samples (={num_samples}) must be at most half the vocabulary (={vocabulary_size} words); "
                "take fewer, or use softmax.kind=full"
            )
        self.vocabulary_size = vocabulary_size
        self.num_samples = num_samples
        self.seed = seed
        # Only how many draws are made at a time: what is drawn does not depend on it.
        self._draws_at_a_time = 2 * num_samples + 64

    def draw(self, step: int, device: torch.device | str) -> Samples:
        """The samples of a step, on `device`. A pure function of (seed, step)."""
        if self.num_samples == self.vocabulary_size:
            everything = torch.arange(self.vocabulary_size, device=device)
            return Samples(everything, self.vocabulary_size)
        # Always computed on the CPU: another device's exp may round another way and so draw another id.
        key = derive_key(self.seed, "sampler", step)
        while True:
            ids_S, num_draws = _first_distinct(self._ids_drawn(key, self._draws_at_a_time), self.num_samples)
            if num_draws:
                break
            self._draws_at_a_time += self._draws_at_a_time // 4 + 64
        return Samples(torch.from_numpy(ids_S).to(device), num_draws)

    def log_expected(self, ids: Tensor, num_draws: int) -> Tensor:
        """log E(id) after `num_draws` draws. ids: int64, any shape -> float32, same shape and device; zeros where S = V."""
        if self.num_samples == self.vocabulary_size:
            return torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        probability = torch.log1p(1.0 / (ids.to(torch.float64) + 1.0)) / math.log(self.vocabulary_size + 1)
        return torch.log(-torch.expm1(num_draws * torch.log1p(-probability))).to(torch.float32)

    def _ids_drawn(self, key: int, count: int) -> np.ndarray:
        """The first `count` draws of a step, int64. exp(u log(V+1)) lies in [k+1, k+2) with probability P(k)."""
        numbers = np.exp(uniform(key, torch.arange(count)).numpy() * math.log(self.vocabulary_size + 1))
        return np.clip(numbers.astype(np.int64) - 1, 0, self.vocabulary_size - 1)


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
