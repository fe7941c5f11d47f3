"""Made-up text in the benchmark's layout: two training files and two held-out ones, words drawn by falling frequency."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TRAINING_FOLDER
from parts.harness.counts import read_counts

WORDS_A_LINE, BYTES_A_LINE = 25, 160  # of a corpus drawn by counts
HELD_OUT_BYTES = 300_000


def write_corpus(
    folder: Path,
    seed: int,
    *,
    words: int = 200,
    first: int = 1,
    lengths: tuple[int, int] = (4, 14),
    sentences: int = 1500,
    held_out: int = 75,
) -> Path:
    """Word n of `words` is drawn as often as 1 / (n + first). sentences: of both training files; held_out: of each such file. -> folder."""
    generator = random.Random(seed)
    names = [f"w{number}" for number in range(words)]
    weights = list(itertools.accumulate(1 / (number + first) for number in range(words)))
    for path, is_training in _files(folder):
        count = sentences // 2 if is_training else held_out
        _write(path, (" ".join(generator.choices(names, cum_weights=weights, k=generator.randint(*lengths))) for _ in range(count)))
    return folder


def write_corpus_by_counts(folder: Path, counts: Path | str | None, megabytes: int) -> Path:
    """So many megabytes of training text, its words drawn by training counts (see read_counts). -> folder."""
    cumulative_V = np.cumsum(read_counts(counts))
    generator = np.random.default_rng(1)
    for path, is_training in _files(folder):
        num_lines = (megabytes * 1_000_000 // 2 if is_training else HELD_OUT_BYTES) // BYTES_A_LINE
        ids = np.searchsorted(cumulative_V, generator.random((num_lines, WORDS_A_LINE)) * cumulative_V[-1], side="right")
        _write(path, (" ".join(f"w{word:x}" for word in line) for line in ids.tolist()))
    return folder


def _files(folder: Path) -> list[tuple[Path, bool]]:
    """-> (path, whether it is a training file)."""
    training = [(folder / TRAINING_FOLDER / f"news.en-0000{number}-of-00003", True) for number in (1, 2)]
    return [*training, *((folder / HELD_OUT_FOLDER / f"news.en.heldout-0000{number}-of-00002", False) for number in (0, 1))]


def _write(path: Path, sentences: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{sentence}\n" for sentence in sentences))
