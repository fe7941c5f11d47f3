"""Batches: a pure function of (seed, step) that visits every target once an epoch."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm1b.data.batches import Batches, cut_into_blocks, cut_into_lanes
from lm1b.data.tokens.directory import TokenSplit, write_shard
from lm1b.data.tokens.manifest import SplitShards
from lm1b.errors import UserError

END, UNKNOWN = 0, 1


def made_split(folder: Path, lengths_of_shards: list[list[int]]) -> TokenSplit:
    """Shards of sentences of the given lengths; every word is a token of its own (2, 3, 4, ...)."""
    infos, word = [], 2
    for number, lengths in enumerate(lengths_of_shards):
        stream: list[int] = []
        for length in lengths:
            stream += [*range(word, word + length), END]
            word += length
        infos.append(write_shard(folder, f"train-{number:05d}", np.array(stream, dtype=np.uint16), END, UNKNOWN))
    return TokenSplit("train", folder, SplitShards.of(infos), np.dtype(np.uint16))


def epoch_of(batches: Batches, epoch: int, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """The epoch's inputs and targets, lane by lane: (lanes, lane tokens) each."""
    steps = [batches.at(epoch * batches.steps_per_epoch + step, 0, lanes) for step in range(batches.steps_per_epoch)]
    assert [batch.starts_epoch for batch in steps] == [True] + [False] * (len(steps) - 1)
    assert {batch.epoch for batch in steps} == {epoch}
    return np.concatenate([batch.inputs_TB for batch in steps]).T, np.concatenate([batch.targets_TB for batch in steps]).T


sentences = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=25), min_size=1, max_size=4)


@given(sentences, st.integers(1, 4), st.integers(1, 5), st.integers(1, 30), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_every_target_once_an_epoch(lengths: list[list[int]], lanes: int, steps: int, block_tokens: int, epoch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        split = made_split(Path(folder), lengths)
        if split.num_tokens < lanes * steps:
            return
        batches = Batches(split, end_id=END, lanes=lanes, steps=steps, seed=1, block_tokens=block_tokens)
        inputs, targets = epoch_of(batches, epoch, lanes)
        assert targets.size + batches.dropped_tokens_per_epoch == split.num_tokens
        assert batches.dropped_tokens_per_epoch < lanes * steps
        words = targets[targets != END]
        assert len(set(words.tolist())) == len(words)
        # One stream: each input is the target before it, over lanes too, and the very first is </S>.
        assert np.concatenate([[END], targets.ravel()[:-1]]).tolist() == inputs.ravel().tolist()


def test_the_stream_is_the_text_in_whole_blocks(tmp_path: Path) -> None:
    split = made_split(tmp_path, [[4] * 40, [4] * 40])
    batches = Batches(split, end_id=END, lanes=2, steps=4, seed=1, block_tokens=20)
    stream = epoch_of(batches, 0, 2)[1].ravel()
    blocks = [stream[start : start + 20] for start in range(0, len(stream), 20)]
    text = np.concatenate([split.tokens(0), split.tokens(1)])
    known = {tuple(text[start : start + 20]) for start in range(0, len(text), 20)}
    assert {tuple(block) for block in blocks} == known
    assert stream.tolist() != text.tolist(), "the order is shuffled"


def test_epochs_and_seeds_differ_and_repeat(tmp_path: Path) -> None:
    split = made_split(tmp_path, [[5] * 200])

    def stream(seed: int, epoch: int) -> list[int]:
        return epoch_of(Batches(split, end_id=END, lanes=4, steps=3, seed=seed, block_tokens=30), epoch, 4)[1].ravel().tolist()

    assert stream(1, 0) == stream(1, 0)
    assert stream(1, 0) != stream(1, 1)
    assert stream(1, 0) != stream(2, 0)


def test_any_order_of_asking_and_any_cut_over_ranks_gives_the_same(tmp_path: Path) -> None:
    split = made_split(tmp_path, [[5] * 100, [7] * 50])
    batches = Batches(split, end_id=END, lanes=6, steps=5, seed=3, block_tokens=64)
    other = Batches(split, end_id=END, lanes=6, steps=5, seed=3, block_tokens=64)
    for step in (40, 3, 90, 4, 0):
        whole = batches.at(step, 0, 6)
        parts = [other.at(step, first, 2) for first in (4, 0, 2)]
        targets_TB = np.concatenate([parts[1].targets_TB, parts[2].targets_TB, parts[0].targets_TB], axis=1)
        assert (whole.targets_TB == targets_TB).all()
        assert whole.targets_TB.dtype == whole.inputs_TB.dtype == np.int64
        assert whole.targets_TB.shape == (5, 6)


def test_too_little_text_for_one_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has 6 tokens, fewer than batches\.lanes x batches\.steps \(=4 x 2 = 8\)"):
        Batches(made_split(tmp_path, [[5]]), end_id=END, lanes=4, steps=2, seed=1, block_tokens=10)


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 100))
@settings(deadline=None, max_examples=100)
def test_blocks_are_whole_sentences_of_about_the_length(lengths: list[int], block_tokens: int) -> None:
    ends = np.cumsum(np.array(lengths, dtype=np.int64))
    cuts = cut_into_blocks(ends, block_tokens)
    assert set(cuts.tolist()) <= set(ends.tolist())
    assert (cuts[-1:] == ends[-1:]).all()
    sizes = np.diff(cuts, prepend=0)
    assert (sizes > 0).all()
    assert (sizes <= max(block_tokens + 40, 1.5 * block_tokens)).all()
    assert (sizes[:-1] >= block_tokens).all()


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 12))
@settings(deadline=None, max_examples=100)
def test_lanes_hold_everything_and_are_nearly_equal(lengths: list[int], lanes: int) -> None:
    ends = np.cumsum(np.array(lengths, dtype=np.int64))
    tokens = np.arange(sum(lengths))
    views = cut_into_lanes(tokens, ends, lanes)
    assert np.concatenate([*views, []]).tolist() == tokens.tolist()
    assert len(views) <= lanes
    assert all(len(view) for view in views)
    assert all(view[-1] + 1 in ends for view in views)
    if lengths:
        assert max(map(len, views)) <= sum(lengths) / lanes + max(lengths)
