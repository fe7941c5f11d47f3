"""Vocabulary tables: input rows, output rows and output bias, cut by rows over the ranks, with sparse Adagrad.

Row r lives on rank r % N, at place r // N there, in float32 beside its accumulator. A training step:

1. `request_inputs` and `request_outputs` find the distinct ids that this rank needs, and `RowRequest` tells the owners
   (one exchange of ids, whatever the number of tables that are cut alike; none for the samples, which every rank knows).
2. `table.fetch(request, dtype)` brings the rows, sent in the compute precision, as one float32 tensor rows_UD.
3. Autograd leaves the gradient of those rows in rows_UD.grad, summed over micro-batches.
4. `table.apply(request, gradient_UD, ...)` sends it back the same way; the owners sum over ranks, in rank order and in
   float32, and update just these rows and accumulators, a cache's worth at a time.

With N = 1 nothing is sent. Example with N = 2, ids [4, 1, 7]: rank 0 is asked for its place 2, rank 1 for its places 0 and 3.

U distinct ids of this rank's request, D width of a row, N ranks or positions (as said).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate

import torch
from torch import Tensor

from lm1b.distributed import Ranks, all_to_all
from lm1b.model.huge_pages import lasting_zeros
from lm1b.model.sampler import Samples
from lm1b.randomness import derive_key, uniform

# Elements worked on at a time: with a handful of float32 temporaries this stays within a core's second-level cache.
_BLOCK_ELEMENTS = 1 << 16
# On a GPU small blocks would only cost launches.
_BLOCK_ELEMENTS_GPU = 1 << 24


def _block_rows(table: Tensor) -> int:
    """How many rows of `table` are worked on at a time."""
    return max(1, (_BLOCK_ELEMENTS if table.device.type == "cpu" else _BLOCK_ELEMENTS_GPU) // table.shape[1])


class RowRequest:
    """Which rows this rank wants, and which are wanted of it. A collective when made on several ranks.

    ids_U: int64, distinct, on ranks.device; the first num_shared are the same on every rank, which then need not tell each other.
    On several ranks both parts are grouped by owner, rank 0's ids first: rows and gradients travel as they lie.
    """

    def __init__(self, ids_U: Tensor, ranks: Ranks, num_shared: int = 0) -> None:
        self.ids_U = ids_U
        self.ranks = ranks
        # In which dtype each table's rows came: its gradient goes back in the same.
        self.wire_dtypes: dict[str, torch.dtype] = {}
        if ranks.size == 1:
            self.updated_places = ids_U
            return
        owner_U = ids_U % ranks.size
        places_U = torch.div(ids_U, ranks.size, rounding_mode="floor")
        counts_wanted = torch.bincount(owner_U[num_shared:], minlength=ranks.size)
        counts_asked = torch.empty_like(counts_wanted)
        all_to_all(counts_asked, counts_wanted)
        shared: list[int] = torch.bincount(owner_U[:num_shared], minlength=ranks.size).tolist()
        wanted: list[int] = counts_wanted.tolist()
        asked: list[int] = counts_asked.tolist()
        # Places of the rows that each rank wants of this one, beside the shared ones.
        asked_places = torch.empty(sum(asked), dtype=torch.int64, device=ids_U.device)
        all_to_all(asked_places, places_U[num_shared:].contiguous(), asked, wanted)
        self._asked_places = asked_places.split(asked)
        self._shared_places = places_U[:num_shared].split(shared)[ranks.rank]
        once, asked_index = torch.unique(asked_places, return_inverse=True)
        self._asked_index = asked_index.split(asked)
        self.updated_places = torch.cat([self._shared_places, once])
        # Rows exchanged with each rank, shared ones first: coming as rows and going back as gradients, and the other way round.
        self._num_wanted = [a + b for a, b in zip(shared, wanted, strict=True)]
        self._num_asked = [len(self._shared_places) + n for n in asked]
        ends_shared, ends_wanted = list(accumulate(shared)), list(accumulate(wanted, initial=num_shared))[1:]
        self._segments = [
            (slice(end_shared - num_a, end_shared), slice(end_wanted - num_b, end_wanted))
            for end_shared, num_a, end_wanted, num_b in zip(ends_shared, shared, ends_wanted, wanted, strict=True)
        ]

    def bring(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """rows: this rank's part of a table, float32 -> rows_UD float32 that went through `dtype`. A collective."""
        rows_UD = torch.empty(len(self.ids_U), rows.shape[1], device=rows.device)
        if self.ranks.size == 1:
            _take_rows(rows, self.ids_U, rows_UD, dtype)
            return rows_UD
        sent = torch.empty(sum(self._num_asked), rows.shape[1], dtype=dtype, device=rows.device)
        num_shared, first = len(self._shared_places), sent.split(self._num_asked)[0]
        _take_rows(rows, self._shared_places, first[:num_shared], dtype)
        for part, places in zip(sent.split(self._num_asked), self._asked_places, strict=True):
            if part is not first:
                part[:num_shared] = first[:num_shared]
            _take_rows(rows, places, part[num_shared:], dtype)
        received = sent.new_empty(rows_UD.shape)
        all_to_all(received, sent, self._num_wanted, self._num_asked)
        for part, (shared, wanted) in zip(received.split(self._num_wanted), self._segments, strict=True):
            rows_UD[shared] = part[: shared.stop - shared.start]
            rows_UD[wanted] = part[shared.stop - shared.start :]
        return rows_UD

    def gradient_sums(self, gradient_UD: Tensor, dtype: torch.dtype, block: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Gradients of the wanted rows, float32 -> (places, those rows' gradients, float32), `block` of `updated_places` at a time.

        Summed over ranks in rank order. What travels is in `dtype`. A collective: it is run through to its end on every rank.
        """
        if self.ranks.size == 1:
            yield from zip(self.ids_U.split(block), gradient_UD.split(block), strict=True)
            return
        sent = torch.empty(gradient_UD.shape, dtype=dtype, device=gradient_UD.device)
        for part, (shared, wanted) in zip(sent.split(self._num_wanted), self._segments, strict=True):
            part[: shared.stop - shared.start] = gradient_UD[shared]
            part[shared.stop - shared.start :] = gradient_UD[wanted]
        received = sent.new_empty(sum(self._num_asked), gradient_UD.shape[1])
        all_to_all(received, sent, self._num_asked, self._num_wanted)
        num_shared, parts = len(self._shared_places), received.split(self._num_asked)
        for start in range(0, num_shared, block):
            end = min(start + block, num_shared)
            total = parts[0][start:end].to(torch.float32, copy=True)
            for part in parts[1:]:
                total += part[start:end]
            yield self._shared_places[start:end], total
        places = self.updated_places[num_shared:]
        totals = torch.zeros(len(places), gradient_UD.shape[1], device=gradient_UD.device)
        # One rank after another: a rank's ids are distinct, so each row's sum has one fixed order.
        for index, part in zip(self._asked_index, parts, strict=True):
            totals.index_add_(0, index, part[num_shared:].to(torch.float32))
        yield from zip(places.split(block), totals.split(block), strict=True)


def _take_rows(source: Tensor, places: Tensor, result: Tensor, through: torch.dtype) -> None:
    """result[i] = source[places[i]], rounded to `through` on its way. In blocks: no second large tensor, and few cache misses."""
    block = _block_rows(source)
    for start in range(0, len(places), block):
        result[start : start + block] = source.index_select(0, places[start : start + block]).to(through)


class VocabularyTable:
    """One table, cut by rows. Not a module and no parameter of DeepSpeed's (see design: state per rank falls as 1/N).

    rows, accumulators: float32 [rows of this rank, width], contiguous; `local_ids()` says which ids they are. Rows start
    uniform in +-initial_scale * sqrt(3 / width), keyed (seed, name, id, column), so the cut does not change them.
    """

    def __init__(
        self,
        name: str,
        num_rows: int,
        width: int,
        *,
        seed: int,
        initial_scale: float,
        initial_accumulator: float,
        ranks: Ranks,
    ) -> None:
        """width 1 is a bias; initial_scale 0 starts with zeros."""
        self.name = name
        self.num_rows = num_rows
        self.width = width
        self.ranks = ranks
        # Told of (name, places) before they change: whoever is still copying the table keeps them (a checkpoint being saved).
        self.before_update: Callable[[str, Tensor], None] | None = None
        num_local = len(range(ranks.rank, num_rows, ranks.size))
        self.rows = lasting_zeros(num_local, width, ranks.device)
        self.accumulators = lasting_zeros(num_local, width, ranks.device).fill_(initial_accumulator)
        if initial_scale:
            self._initialize(derive_key(seed, "table", name), initial_scale * math.sqrt(3.0 / width))

    def _initialize(self, key: int, limit: float) -> None:
        """Fill the rows block by block, so that no second table ever exists."""
        columns = torch.arange(self.width, device=self.rows.device)
        ids = self.local_ids()
        block = _block_rows(self.rows)
        for start in range(0, len(ids), block):
            counters = ids[start : start + block, None] * self.width + columns
            self.rows[start : start + block] = (uniform(key, counters) * 2.0 - 1.0) * limit

    def local_ids(self) -> Tensor:
        """Ids of this rank's rows in order, int64, on its device."""
        # A table of fewer rows than ranks leaves the last ranks without any.
        return torch.arange(min(self.ranks.rank, self.num_rows), self.num_rows, self.ranks.size, device=self.rows.device)

    def fetch(self, request: RowRequest, dtype: torch.dtype) -> Tensor:
        """The requested rows rows_UD, float32, rounded to `dtype` whether they travel or not. A collective."""
        request.wire_dtypes[self.name] = dtype
        return request.bring(self.rows, dtype)

    def apply(
        self,
        request: RowRequest,
        gradient_UD: Tensor,
        *,
        learning_rate: float,
        epsilon: float = 1e-10,
        gradient_scale: float = 1.0,
    ) -> None:
        """One Adagrad update (Duchi 2011) of the requested rows, whoever asked for them. A collective.

        gradient_UD: float32, this rank's gradient of the rows it fetched; it may be overwritten. It travels in the dtype of the last
        fetch (float32 for float16); its sum over ranks is multiplied by gradient_scale.
        """
        if self.before_update is not None:
            self.before_update(self.name, request.updated_places)
        wire_dtype = request.wire_dtypes.get(self.name, torch.float32)
        # A sum over all tokens of a step can be beyond float16's 65,504, while bfloat16 has float32's range.
        wire_dtype = torch.float32 if wire_dtype == torch.float16 else wire_dtype
        for places, gradient in request.gradient_sums(gradient_UD, wire_dtype, _block_rows(self.rows)):
            self._update(places, gradient.mul_(gradient_scale), learning_rate, epsilon)

    def _update(self, places: Tensor, gradient: Tensor, learning_rate: float, epsilon: float) -> None:
        accumulators = self.accumulators.index_select(0, places).addcmul_(gradient, gradient)
        self.accumulators.index_copy_(0, places, accumulators)
        rows = self.rows.index_select(0, places).addcdiv_(gradient, accumulators.sqrt_().add_(epsilon), value=-learning_rate)
        self.rows.index_copy_(0, places, rows)


def request_inputs(inputs_N: Tensor, ranks: Ranks) -> tuple[RowRequest, Tensor]:
    """Ask for the distinct ids among `inputs_N` (int64, any shape). Returns the request and each input's place in it."""
    keys_U, positions = torch.unique(_keys(inputs_N, ranks), return_inverse=True)
    return RowRequest(_ids(keys_U, ranks), ranks), positions


def request_outputs(samples: Samples, targets_N: Tensor, ranks: Ranks) -> tuple[RowRequest, Tensor]:
    """Ask for the samples, grouped by owner and rising, and after them for the targets that are none of them, likewise.

    targets_N: int64, any shape. Returns the request and each target's place in it: < S if and only if it was sampled.
    """
    num_samples = len(samples.ids_S)
    keys_S, target_keys_N = _keys(samples.ids_S, ranks), _keys(targets_N, ranks)
    if ranks.size > 1:
        keys_S = keys_S.sort().values
    places = torch.searchsorted(keys_S, target_keys_N).clamp_(max=num_samples - 1)
    is_sampled = keys_S[places] == target_keys_N
    others, places_of_others = torch.unique(target_keys_N[~is_sampled], return_inverse=True)
    places[~is_sampled] = places_of_others + num_samples
    return RowRequest(_ids(torch.cat([keys_S, others]), ranks), ranks, num_samples), places


def _keys(ids: Tensor, ranks: Ranks) -> Tensor:
    """Integers that sort by owner first and by id then: owner * 2^32 + place there."""
    return ids if ranks.size == 1 else (ids % ranks.size << 32) + torch.div(ids, ranks.size, rounding_mode="floor")


def _ids(keys: Tensor, ranks: Ranks) -> Tensor:
    """The ids that `_keys` made these keys of."""
    return keys if ranks.size == 1 else (keys & (1 << 32) - 1) * ranks.size + (keys >> 32)
