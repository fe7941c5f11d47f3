"""Tokens read from a store as training reads them, beside those of the local folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lm1b.config import TokensConfig
from lm1b.data.batches import Batches
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.manifest import PAGE_BYTES
from lm1b.data.tokens.remote import open_tokens

URL = "s3://lm1b/tokens"
CACHE_BYTES = 6 * PAGE_BYTES


def remote(cache: Path, cache_bytes: int = CACHE_BYTES, url: str = URL) -> TokenDirectory:
    """The tokens at a URL, through a cache in this folder."""
    return open_tokens(TokensConfig(directory=url, cache_directory=str(cache), cache_bytes=cache_bytes))


def batches(tokens: TokenDirectory, block_tokens: int = 3000) -> Batches:
    """Those of training, in eight lanes."""
    return Batches(tokens.split("train"), end_id=tokens.vocabulary.end_id, lanes=8, steps=10, seed=3, block_tokens=block_tokens)


def assert_same_batches(folder: Path, tokens: TokenDirectory, steps: range) -> None:
    """The tokens give the batches that those of `folder` give."""
    here, there = batches(TokenDirectory.open(folder / "tokens")), batches(tokens)
    for step in steps:
        for expected, found in zip(here_at(here, step), here_at(there, step), strict=True):
            assert np.array_equal(expected, found), step


def here_at(made: Batches, step: int) -> tuple[np.ndarray, np.ndarray]:
    """A step's inputs and targets."""
    batch = made.at(step, 0, 8)
    return batch.inputs_TB, batch.targets_TB
