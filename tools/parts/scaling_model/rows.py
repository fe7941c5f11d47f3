"""How many distinct table rows a step touches, expected exactly from unigram counts: sums over the vocabulary, nothing drawn.

A word of probability p is among n tokens with probability 1 - (1-p)^n, and among the samples with E = 1 - (1-P)^m, where P is
the sampler's proposal (lm1b/model/sampler.py) and m the number of draws after which S distinct ids are expected. Tokens
count as independent draws, as in tools/benchmark.py; running text repeats its words, so that it touches fewer rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lm1b.errors import UserError


@dataclass(frozen=True)
class TouchedRows:
    """Expected numbers of distinct rows in one step, of one rank unless said otherwise.

    inputs: input rows it asks for. samples: output rows that all ranks ask for. others: targets that are not among the samples.
    all_inputs, all_others: the same of all ranks' tokens together. busiest_input, busiest_output: how many times the mean of the
    requested rows the owner that is asked for most has, since row r belongs to rank r mod N and frequent words come first.
    late_inputs, late_outputs: those of inputs and outputs that some rank has touched in the step before too, so that they cannot be
    fetched ahead (lm1b/training/step/rows.py); busiest_late_*: as above, of them.
    """

    inputs: float
    samples: float
    others: float
    all_inputs: float
    all_others: float
    busiest_input: float
    busiest_output: float
    late_inputs: float
    late_outputs: float
    busiest_late_input: float
    busiest_late_output: float

    @property
    def outputs(self) -> float:
        return self.samples + self.others


class Words:
    """A vocabulary's unigram distribution by falling frequency, beside the sampler's."""

    def __init__(self, counts_V: np.ndarray, num_samples: int) -> None:
        """Raises UserError where the sampler would refuse so many samples."""
        self.size, self.num_samples = len(counts_V), num_samples
        if num_samples != self.size and num_samples > self.size / 2:
            raise UserError(f"{num_samples} samples of {self.size} words: expected at most half the vocabulary, or all of it")
        self._log_absent_V = np.log1p(-np.minimum(counts_V / counts_V.sum(), 1 - 1e-16))
        self.sampled_V = self._sampled()
        self._known: dict[tuple[int, int], TouchedRows] = {}

    def touched(self, tokens: int, ranks: int) -> TouchedRows:
        """tokens: of one rank in one step."""
        if (tokens, ranks) not in self._known:
            self._known[tokens, ranks] = self._touched(tokens, ranks)
        return self._known[tokens, ranks]

    def _touched(self, tokens: int, ranks: int) -> TouchedRows:
        inputs_V, others_V = self._present(tokens), self._present(tokens) * (1 - self.sampled_V)
        everywhere_V = self._present(tokens * ranks)
        # Samples and tokens of two steps are drawn apart from each other: a row is late by the product of the two probabilities.
        late_inputs_V = inputs_V * everywhere_V
        late_outputs_V = (self.sampled_V + others_V) * (self.sampled_V + everywhere_V * (1 - self.sampled_V))
        return TouchedRows(
            float(inputs_V.sum()),
            float(self.num_samples),
            float(others_V.sum()),
            float(everywhere_V.sum()),
            float((everywhere_V * (1 - self.sampled_V)).sum()),
            _busiest(inputs_V, ranks),
            _busiest(self.sampled_V + others_V, ranks),
            float(late_inputs_V.sum()),
            float(late_outputs_V.sum()),
            _busiest(late_inputs_V, ranks),
            _busiest(late_outputs_V, ranks),
        )

    def _present(self, tokens: int) -> np.ndarray:
        return -np.expm1(tokens * self._log_absent_V)

    def _sampled(self) -> np.ndarray:
        """E of every id, with the number of draws that makes their sum S."""
        if self.num_samples == self.size:
            return np.ones(self.size)
        log_missed_V = np.log1p(-np.log1p(1.0 / np.arange(1, self.size + 1)) / math.log(self.size + 1))
        low, high = 0.0, float(self.num_samples)
        while -np.expm1(high * log_missed_V).sum() < self.num_samples:
            low, high = high, 2 * high
        while high - low > 1e-3:
            middle = (low + high) / 2
            low, high = (middle, high) if -np.expm1(middle * log_missed_V).sum() < self.num_samples else (low, middle)
        return -np.expm1(high * log_missed_V)


def _busiest(requested_V: np.ndarray, ranks: int) -> float:
    """Rows asked of the busiest owner over the mean of all owners."""
    asked = np.bincount(np.arange(len(requested_V)) % ranks, weights=requested_V, minlength=ranks)
    return float(asked.max() / asked.mean())
