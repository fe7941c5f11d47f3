"""Training counts of a vocabulary's words, from a file or by Zipf's law: what tokens, rows and traffic are drawn and reckoned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lm1b.data.text.benchmark import VOCABULARY_SIZE
from lm1b.errors import UserError


def read_counts(path: Path | str | None, vocabulary: int | None = None) -> np.ndarray:
    """Counts of the `vocabulary` most frequent words by falling frequency, float64; a Zipf curve where path is None.

    vocabulary: None takes all words. Raises UserError where the file is no list of counts, or of fewer words.
    """
    if path is None:
        return 1e9 / np.arange(1, (vocabulary or VOCABULARY_SIZE) + 1)
    try:
        with open(path, "rb") as file:
            counts_V = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise UserError(f"{path}: expected a .npy file of word counts ({error})") from None
    if (
        counts_V.ndim != 1
        or counts_V.dtype.kind not in "iuf"
        or not np.isfinite(counts_V).all()
        or (counts_V < 0).any()
        or not counts_V.any()
    ):
        raise UserError(f"{path}: expected one count for each word, found {counts_V.dtype} {list(counts_V.shape)}")
    if vocabulary is not None and len(counts_V) < vocabulary:
        raise UserError(f"{path}: counts of {len(counts_V):,} words, but the measurement has {vocabulary:,}; measure with the same counts")
    counts_V = counts_V.astype(np.float64)
    if len(counts_V) == VOCABULARY_SIZE:
        counts_V[-1] = 0  # <S>, which is in the official vocabulary but never in the stream
    return np.sort(counts_V)[::-1][:vocabulary]
