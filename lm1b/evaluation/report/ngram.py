"""Honest baselines on a run's own tokens: an add-one unigram and an interpolated Kneser-Ney trigram, in numpy.

1. Both predict what the network predicts: every word and the `</S>` of every sentence; `<UNK>` is a word like another.
2. The trigram's history never crosses a sentence end. A sentence starts with the history `</S>` alone, so its first word
   is predicted by the bigram `</S> w` and its second by the trigram `</S> w1 w2`.
3. Counts below the highest order are Kneser and Ney's (1995): in how many different contexts was it seen? A bigram that
   starts with `</S>` has no left context, so it keeps its real count (as Chen and Goodman 1998 and usual tools do).
4. One discount at every order; what it frees goes to the next lower order, and at the bottom to the uniform 1/V.

>>> model = KneserNeyTrigram.fit([np.array([3, 4, 0, 3, 5, 0])], vocabulary_size=7, end_id=0)
>>> model.nats(np.array([3, 4, 0]))         # three predictions: 3 after </S>, 4 after </S> 3, </S> after 3 4

Letters: N positions, K distinct n-grams, C distinct contexts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

DISCOUNT = 0.75
MAX_VOCABULARY = 1 << 21  # three ids must fit into 63 bits
MAX_TRAINING_TOKENS = 150_000_000  # some 6 GB while fitting
SCORED_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class AddOneUnigram:
    """P(w) = (count(w) + 1) / (N + V). log_probabilities_V: float64 (V,), nats."""

    log_probabilities_V: np.ndarray

    @classmethod
    def fit(cls, pieces: Iterable[np.ndarray], vocabulary_size: int) -> AddOneUnigram:
        """Count token ids. pieces: integer arrays (n,)."""
        counts_V = np.zeros(vocabulary_size, np.int64)
        for tokens in pieces:
            counts_V += np.bincount(tokens, minlength=vocabulary_size)
        return cls(np.log(counts_V + 1.0) - np.log(float(counts_V.sum()) + vocabulary_size))

    def nats(self, tokens_N: np.ndarray) -> np.ndarray:
        """-log P of each token, float64 (N,)."""
        return -self.log_probabilities_V[tokens_N]


@dataclass(frozen=True)
class _Order:
    """The n-grams of one order: sorted int64 keys with counts, and for each context its total and its number of types."""

    keys_K: np.ndarray
    counts_K: np.ndarray
    contexts_C: np.ndarray
    totals_C: np.ndarray
    types_C: np.ndarray

    @classmethod
    def build(cls, keys_K: np.ndarray, counts_K: np.ndarray, vocabulary_size: int) -> _Order:
        contexts_K = keys_K // vocabulary_size
        firsts_C = np.flatnonzero(np.diff(contexts_K, prepend=-1))
        types_C = np.diff(firsts_C, append=len(keys_K))
        totals_C = np.add.reduceat(counts_K, firsts_C) if len(firsts_C) else np.zeros(0, np.int64)
        return cls(keys_K, counts_K, contexts_K[firsts_C], totals_C, types_C)

    def interpolate(self, keys_N: np.ndarray, lower_N: np.ndarray, vocabulary_size: int) -> np.ndarray:
        """P of this order from that of the order below, float64 (N,); an unseen context leaves it as it is."""
        counts_N = _look_up(self.keys_K, self.counts_K, keys_N)
        contexts_N = keys_N // vocabulary_size
        totals_N = _look_up(self.contexts_C, self.totals_C, contexts_N)
        freed_N = DISCOUNT * _look_up(self.contexts_C, self.types_C, contexts_N)
        probabilities_N = (np.maximum(counts_N - DISCOUNT, 0.0) + freed_N * lower_N) / np.maximum(totals_N, 1)
        return np.where(totals_N > 0, probabilities_N, lower_N)


def _look_up(keys_K: np.ndarray, values_K: np.ndarray, wanted_N: np.ndarray) -> np.ndarray:
    """The values of `wanted_N` among sorted distinct keys, 0 where missing."""
    if len(keys_K) == 0:
        return np.zeros(len(wanted_N), np.int64)
    places_N = np.minimum(np.searchsorted(keys_K, wanted_N), len(keys_K) - 1)
    return np.where(keys_K[places_N] == wanted_N, values_K[places_N], 0)


def _count(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys in rising order and how often each occurs. Sorts `keys` in place: they may be most of the memory."""
    keys.sort()
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[firsts], np.diff(firsts, append=len(keys))


def _histories(tokens_N: np.ndarray, end_id: int) -> tuple[np.ndarray, np.ndarray]:
    """The token before each (`</S>` for the first), and the one before that (-1 where it lies in another sentence)."""
    before_N = np.empty(len(tokens_N), np.int64)
    before_N[:1] = end_id
    before_N[1:] = tokens_N[:-1]
    earlier_N = np.empty_like(before_N)
    earlier_N[:1] = end_id
    earlier_N[1:] = before_N[:-1]
    earlier_N[before_N == end_id] = -1
    return before_N, earlier_N


@dataclass(frozen=True)
class KneserNeyTrigram:
    """Interpolated Kneser-Ney, one discount. Memory: some 40 bytes a training token while fitting."""

    vocabulary_size: int
    end_id: int
    unigram_V: np.ndarray
    bigrams: _Order
    trigrams: _Order

    @classmethod
    def fit(cls, pieces: Iterable[np.ndarray], vocabulary_size: int, end_id: int) -> KneserNeyTrigram:
        """Count n-grams. pieces: integer arrays (n,) of whole sentences, each ending with `end_id`.

        Raises ValueError where there is no token or where ids do not fit.
        """
        if vocabulary_size > MAX_VOCABULARY:
            raise ValueError(f"`vocabulary_size` (={vocabulary_size}) must be at most {MAX_VOCABULARY}")
        size = np.int64(vocabulary_size)
        trigram_parts, start_counts_V = [], np.zeros(vocabulary_size, np.int64)
        for piece in pieces:
            tokens_N = piece.astype(np.int64)
            before_N, earlier_N = _histories(tokens_N, end_id)
            inside_N = earlier_N >= 0
            trigram_parts.append(((earlier_N * size + before_N) * size + tokens_N)[inside_N])
            start_counts_V += np.bincount(tokens_N[~inside_N], minlength=vocabulary_size)
        if not start_counts_V.any():
            raise ValueError("no training tokens")
        trigram_keys_K, trigram_counts_K = _count(np.concatenate(trigram_parts))
        del trigram_parts
        bigram_keys_K, bigram_counts_K = _count(trigram_keys_K % (size * size))
        # Trigrams never hold </S> in the middle, so these keys are new; </S>'s place among the ids is anywhere.
        starts = np.flatnonzero(start_counts_V)
        bigram_keys_K = np.concatenate([bigram_keys_K, end_id * size + starts])
        bigram_counts_K = np.concatenate([bigram_counts_K, start_counts_V[starts]])
        order = np.argsort(bigram_keys_K, kind="stable")
        bigrams = _Order.build(bigram_keys_K[order], bigram_counts_K[order], vocabulary_size)
        contexts_V = np.bincount(bigram_keys_K % size, minlength=vocabulary_size)
        freed = DISCOUNT * np.count_nonzero(contexts_V)
        unigram_V = (np.maximum(contexts_V - DISCOUNT, 0.0) + freed / vocabulary_size) / contexts_V.sum()
        trigrams = _Order.build(trigram_keys_K, trigram_counts_K, vocabulary_size)
        return cls(vocabulary_size, end_id, unigram_V, bigrams, trigrams)

    def nats(self, tokens_N: np.ndarray) -> np.ndarray:
        """-log P of each token of whole sentences, float64 (N,)."""
        tokens_N = tokens_N.astype(np.int64)
        before_N, earlier_N = _histories(tokens_N, self.end_id)
        nats_N = np.empty(len(tokens_N))
        for start in range(0, len(tokens_N), SCORED_AT_A_TIME):
            part = slice(start, start + SCORED_AT_A_TIME)
            nats_N[part] = -np.log(self.probabilities(earlier_N[part], before_N[part], tokens_N[part]))
        return nats_N

    def probabilities(self, earlier_N: np.ndarray, before_N: np.ndarray, words_N: np.ndarray) -> np.ndarray:
        """P(word | earlier, before), float64 (N,); earlier = -1: the history is `before` alone. Arguments: int64 (N,)."""
        size = np.int64(self.vocabulary_size)
        lower_N = self.unigram_V[words_N]
        lower_N = self.bigrams.interpolate(before_N * size + words_N, lower_N, self.vocabulary_size)
        # A negative key is in no table, so a history of one word keeps the bigram's probability.
        keys_N = np.where(earlier_N >= 0, (earlier_N * size + before_N) * size + words_N, -size)
        return self.trigrams.interpolate(keys_N, lower_N, self.vocabulary_size)


def fit_baselines(
    pieces: Callable[[], Iterable[np.ndarray]], num_tokens: int, vocabulary_size: int, end_id: int
) -> tuple[AddOneUnigram, KneserNeyTrigram | None]:
    """Both baselines of a training split; no trigram above MAX_TRAINING_TOKENS, where it would not fit into memory.

    pieces: gives the split's token arrays, whole sentences each, anew at every call.
    """
    unigram = AddOneUnigram.fit(pieces(), vocabulary_size)
    if num_tokens > MAX_TRAINING_TOKENS or vocabulary_size > MAX_VOCABULARY:
        return unigram, None
    return unigram, KneserNeyTrigram.fit(pieces(), vocabulary_size, end_id)
