"""Where a text's nats go, how sure a perplexity is, and whether two runs differ: from the nats of every token (scoring/token_nats.py).

1. `by_frequency`: ids in bands of how common they are in training (they run by falling count), `</S>` and `<UNK>` apart. Where words are
   spelled by pieces these are bands of pieces, and their perplexity is that of a piece.
2. `by_position`: words by their place in the sentence, with all of their pieces.
3. `confidence`: the 95 % interval of a perplexity, by the bootstrap over sentences: sentences are drawn with replacement, nats and
   predictions are summed and divided once (Efron 1979; percentiles).
4. `compare`: the same draws for two runs on the same text give the interval of the ratio of their perplexities; where 1 is outside of
   it, they differ.

It says how far the *text* lets one tell; what another seed would give it does not say.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lm1b.evaluation.scoring.token_nats import TokenNats
from lm1b.training.evaluations import perplexity

RANKS = (10, 100, 1_000, 10_000, 100_000)
POSITIONS = (1, 2, 5, 10, 20, 40)
RESAMPLES, SEED = 1_000, 1
TAILS = (2.5, 97.5)


class Part(NamedTuple):
    """A part of a text: how many predictions, what share of all nats, and its own perplexity."""

    name: str
    predictions: int
    share_of_nats: float
    perplexity: float


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def by_frequency(tokens: TokenNats) -> list[Part]:
    """Bands of words (or pieces), the commonest first, then `</S>` and `<UNK>`; bands without one of the text's are left out."""
    end, unknown = (tokens.ids_N == tokens.facts[name] for name in ("end_id", "unknown_id"))
    is_word = ~(end | unknown)
    bounds = [0, *RANKS, np.iinfo(np.int64).max]
    what = "words" if tokens.begins_N is None else "pieces"
    named = []
    for first, last in itertools.pairwise(bounds):
        name = f"{what} {first + 1:,} to {last:,}" if last in RANKS else f"{what} from {first + 1:,}"
        named.append((name, is_word & (tokens.ids_N >= first) & (tokens.ids_N < last)))
    return _parts(tokens, [*named, ("`</S>`", end), ("`<UNK>`", unknown)], np.ones(len(tokens.ids_N), np.int64))


def by_position(tokens: TokenNats) -> list[Part]:
    """Words by their place in the sentence, counted from 1; the sentence's end counts as a word."""
    starts = tokens.sentence_starts
    lengths = np.diff([*starts, len(tokens.ids_N)])
    words_N = np.cumsum(tokens.counts_N)  # so far, over the whole text
    places_N = words_N - np.repeat(words_N[starts] - 1, lengths)
    bounds = [0, *POSITIONS, np.iinfo(np.int64).max]
    named = []
    for before, last in itertools.pairwise(bounds):
        name = (
            f"word {last}" if before + 1 == last else f"words {before + 1} to {last}" if last in POSITIONS else f"words from {before + 1}"
        )
        named.append((name, (places_N > before) & (places_N <= last)))
    return _parts(tokens, named, tokens.counts_N)


def _parts(tokens: TokenNats, named: list[tuple[str, np.ndarray]], counts_N: np.ndarray) -> list[Part]:
    """counts_N: how many predictions each id is."""
    nats_N = tokens.nats_N.astype(np.float64)
    total = nats_N.sum()
    found = []
    for name, chosen_N in named:
        count = int(counts_N[chosen_N].sum())
        if count:
            nats = float(nats_N[chosen_N].sum())
            found.append(Part(name, count, nats / total, perplexity(nats, count)))
    return found


def _resampled(*sums_S: np.ndarray) -> Iterator[list[float]]:
    """Sums over as many sentences, drawn with replacement, as there are: of each array, for every resample. Seeded."""
    generator = np.random.default_rng(SEED)
    size = len(sums_S[0])
    for _ in range(RESAMPLES):
        times_S = np.bincount(generator.integers(0, size, size), minlength=size)
        yield [float(times_S @ sums) for sums in sums_S]


def _interval(value: float, values: list[float]) -> Interval:
    """value, values: nats a prediction."""
    low, high = np.percentile(values, TAILS)
    return Interval(perplexity(value, 1), perplexity(low, 1), perplexity(high, 1))


def confidence(tokens: TokenNats) -> Interval:
    """The text's word perplexity with its interval."""
    nats_S, counts_S = tokens.by_sentence(tokens.nats_N), tokens.by_sentence(tokens.counts_N)
    return _interval(nats_S.sum() / counts_S.sum(), [nats / count for nats, count in _resampled(nats_S, counts_S)])


def compare(one: TokenNats, other: TokenNats) -> Interval:
    """Perplexity of `other` divided by that of `one`, with its interval: the same sentences drawn for both.

    Raises ValueError where they are not of the same text and vocabulary.
    """
    if one.ids_key != other.ids_key:
        raise ValueError("not the same text and vocabulary")
    difference_S = other.by_sentence(other.nats_N) - one.by_sentence(one.nats_N)
    counts_S = one.by_sentence(one.counts_N)
    return _interval(difference_S.sum() / counts_S.sum(), [nats / count for nats, count in _resampled(difference_S, counts_S)])
