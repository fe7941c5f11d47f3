"""From token shards to training steps: a pure function of (seed, step), so nothing is replayed on resume.

1. Every shard is cut after sentences into blocks of about `block_tokens` tokens.
2. Epoch e visits all blocks in an order hashed from (seed, e); this makes one stream of all training tokens.
3. The stream is cut into `lanes` contiguous lanes of `steps_per_epoch * steps` tokens.
4. A step takes the next `steps` tokens of every lane as targets; the inputs are the tokens before them in the stream, and
   `</S>` before the very first.
5. Fewer than lanes x steps tokens at the end of the epoch's stream are not visited in that epoch.

With 2 lanes of 2 steps over the stream  a b . c d e . f .  (`.` is `</S>`): lane 0 is `a b . c`, lane 1 `d e . f`;
step 0 has targets (a b) and (d e) after inputs (. a) and (c d); step 1 has targets (. c) and (. f); the last `.` is dropped.

Shapes: T steps of truncated backpropagation, B lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lm1b.data.tokens.directory import TokenSplit
from lm1b.errors import UserError
from lm1b.randomness import derive_key, permutation

LOOK_EVERY, LOOK_AHEAD = 128, 512  # steps: how often, and how far, a split that wants to know is told what is read next


@dataclass(frozen=True)
class Batch:
    """One step's tokens of some lanes. inputs_TB, targets_TB: int64 (T, B). starts_epoch: the state is zero before this step."""

    inputs_TB: np.ndarray
    targets_TB: np.ndarray
    epoch: int
    starts_epoch: bool


@dataclass(frozen=True)
class _EpochOrder:
    """An epoch's blocks in visiting order: block i covers stream positions starts[i] to starts[i + 1]."""

    epoch: int
    blocks: np.ndarray
    starts: np.ndarray


def cut_into_blocks(sentence_ends: np.ndarray, block_tokens: int) -> np.ndarray:
    """Exclusive ends of blocks of whole sentences, int64: each ends at the first sentence end `block_tokens` or more after its start.

    What is left at the end makes a block of its own where it is half a block or more, else it joins the last one.
    """
    ends: list[int] = []
    start = 0
    total = int(sentence_ends[-1]) if len(sentence_ends) else 0
    while total - start >= block_tokens + block_tokens // 2:
        start = int(sentence_ends[np.searchsorted(sentence_ends, start + block_tokens)])
        ends.append(start)
    if start < total:
        ends.append(total)
    return np.array(ends, dtype=np.int64)


def steps_per_epoch(split: TokenSplit, lanes: int, steps: int) -> int:
    """How many batches of lanes x steps tokens an epoch has. Raises UserError where the split does not fill one."""
    if split.num_tokens < lanes * steps:
        raise UserError(
            f"the {split.name} split has {split.num_tokens} tokens, fewer than batches.lanes x batches.steps "
            f"(={lanes} x {steps} = {lanes * steps}): use fewer lanes or more text"
        )
    return split.num_tokens // (lanes * steps)


class Batches:
    """The training split as steps.

    split: the tokens. end_id: id of `</S>`. lanes (B), steps (T), block_tokens: as in the config's `batches`.
    tokens_per_step: lanes x steps. steps_per_epoch. dropped_tokens_per_epoch: what an epoch does not visit, fewer than a step's.
    Raises UserError where the split does not fill one step.
    """

    def __init__(self, split: TokenSplit, *, end_id: int, lanes: int, steps: int, seed: int, block_tokens: int) -> None:
        self.steps_per_epoch = steps_per_epoch(split, lanes, steps)
        self._tokens = [split.tokens(index) for index in range(len(split.shards))]
        self.end_id = end_id
        self._lanes, self._steps, self._seed = lanes, steps, seed
        self.tokens_per_step = lanes * steps
        self.dropped_tokens_per_epoch = split.num_tokens - self.steps_per_epoch * self.tokens_per_step
        self._cut(split, block_tokens)
        self._order: _EpochOrder | None = None
        self._split = split
        self._told: set[int] = set()  # first lanes of those who have taken a step

    def _cut(self, split: TokenSplit, block_tokens: int) -> None:
        """Every block's shard, first token and length."""
        shards, starts, lengths = [], [], []
        for index in range(len(split.shards)):
            ends = cut_into_blocks(split.sentence_ends(index), block_tokens)
            shards.append(np.full(len(ends), index))
            starts.append(np.concatenate([[0], ends[:-1]]) if len(ends) else ends)
            lengths.append(np.diff(ends, prepend=0))
        self._block_shards = np.concatenate(shards)
        self._block_starts = np.concatenate(starts)
        self._block_lengths = np.concatenate(lengths)

    def _order_of(self, epoch: int) -> _EpochOrder:
        """The epoch's order; the last one asked for is kept."""
        if self._order is None or self._order.epoch != epoch:
            blocks = permutation(derive_key(self._seed, "block_order", epoch), len(self._block_lengths)).numpy()
            starts = np.concatenate([[0], np.cumsum(self._block_lengths[blocks])])
            self._order = _EpochOrder(epoch, blocks, starts)
        return self._order

    def _parts(self, order: _EpochOrder, position: int, block: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Places of `count` stream tokens from `position` on, the first in the order's `block`-th block: (shard, first, number)."""
        while count:
            chosen = order.blocks[block]
            inside = position - order.starts[block]
            here = min(count, int(self._block_lengths[chosen] - inside))
            yield int(self._block_shards[chosen]), int(self._block_starts[chosen] + inside), here
            position, count, block = position + here, count - here, block + 1

    def _copy(self, order: _EpochOrder, position: int, block: int, out: np.ndarray) -> None:
        """Copy stream tokens from `position` on, which lies in the order's `block`-th block, into `out`."""
        filled = 0
        for shard, first, count in self._parts(order, position, block, len(out)):
            out[filled : filled + count] = self._tokens[shard][first : first + count]
            filled += count

    def _look_ahead(self, step: int, first_lane: int, num_lanes: int) -> None:
        """Tell the split what these lanes read from `step` on, over the epoch's end too."""
        last = step + LOOK_AHEAD
        while step < last:
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            order, steps = self._order_of(epoch), min(last - step, self.steps_per_epoch - step_in_epoch)
            for lane in range(first_lane, first_lane + num_lanes):
                position = (lane * self.steps_per_epoch + step_in_epoch) * self._steps
                block = int(np.searchsorted(order.starts, position, side="right")) - 1
                for shard, first, count in self._parts(order, position, block, steps * self._steps):
                    self._split.prefetch(shard, first, first + count)
            step += steps

    def at(self, step: int, first_lane: int, num_lanes: int) -> Batch:
        """The batch of `step` (from 0, over all epochs) for lanes first_lane .. first_lane + num_lanes - 1."""
        assert 0 <= first_lane <= self._lanes - num_lanes, "lanes out of range"
        if self._split.can_prefetch and (step % LOOK_EVERY == 0 or first_lane not in self._told):
            self._told.add(first_lane)
            self._look_ahead(step, first_lane, num_lanes)
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        order = self._order_of(epoch)
        lane_tokens = self.steps_per_epoch * self._steps
        positions = np.arange(first_lane, first_lane + num_lanes) * lane_tokens + step_in_epoch * self._steps - 1
        blocks = np.searchsorted(order.starts, np.maximum(positions, 0), side="right") - 1
        window_BT = np.empty((num_lanes, self._steps + 1), dtype=np.int64)
        for row, (position, block) in enumerate(zip(positions.tolist(), blocks.tolist(), strict=True)):
            if position < 0:
                window_BT[row, 0] = self.end_id
                self._copy(order, 0, block, window_BT[row, 1:])
            else:
                self._copy(order, position, block, window_BT[row])
        window_TB = np.ascontiguousarray(window_BT.T)
        return Batch(window_TB[:-1], window_TB[1:], epoch, step_in_epoch == 0)


def cut_into_lanes(tokens: np.ndarray, sentence_ends: np.ndarray, lanes: int) -> list[np.ndarray]:
    """Cut a stream at sentence ends into at most `lanes` contiguous views, nearly equal in tokens; nothing is dropped or empty.

    tokens: (n,) ids. sentence_ends: int64, exclusive, the last one n. Fewer views than `lanes` where there are fewer sentences.
    """
    total = len(tokens)
    if not total:
        return []
    wanted = np.arange(1, lanes) * total / lanes
    after = np.minimum(np.searchsorted(sentence_ends, wanted), len(sentence_ends) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(wanted - sentence_ends[before] < sentence_ends[after] - wanted, before, after)
    cuts = np.unique(np.concatenate([[0], sentence_ends[nearest], [total]]))
    return [tokens[start:stop] for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)]
