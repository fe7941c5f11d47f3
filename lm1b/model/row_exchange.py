"""Table rows that travel: from their owners to the rank that asks, and the gradients of those rows back.

Row r of a table lives on rank r % N, at place r // N there. Which rows are asked for is known (row_requests.py). Each exchange is of
all tables at once:

1. `allocate_rows` makes room for the rows of a request, one float32 tensor rows_UD a table.
2. `fetch_rows` fills it, the rows sent in the compute precision: all of a `Route`, or at first the part that no rank's present step
   touches and the rest after its update.
3. `GradientExchange` sends the rows' gradients back; their owners sum them over ranks, in rank order and in float32.

With N = 1 nothing is sent. Example with N = 2, ids [4, 1, 7]: rank 0 sends its row of place 2, rank 1 those of places 0 and 3; the
gradients of the last two go back to rank 1.

U distinct ids of a request, D width of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from lm1b.distributed import Ranks, exchange
from lm1b.model.row_formats import Packed, Plain, RowFormat
from lm1b.model.row_requests import Route, RowRequest
from lm1b.model.tables import VocabularyTable, block_rows

_ALIGNMENT = 8  # bytes; a rank's section of any dtype starts at a multiple


@dataclass(frozen=True)
class RowFetch:
    """Rows of one table to be fetched: from `rows` (its owner's part, float32) by `dtype` into rows_UD (float32)."""

    rows: Tensor
    dtype: torch.dtype
    rows_UD: Tensor


def allocate_rows(
    wanted: Sequence[tuple[VocabularyTable, RowRequest, torch.dtype]], room: Sequence[int], *, copied_to: torch.device | None = None
) -> list[RowFetch]:
    """Room for the requested rows of each table.

    room: of each table, for how many rows at least; what is not asked for stays 0. copied_to: the device that they will be copied to,
    where the tables are in the host's memory and it computes.
    """
    fetches = []
    assert copied_to is None or all(table.rows.device.type == "cpu" for table, _, _ in wanted), "only the host's memory can be pinned"
    is_pinned = copied_to is not None and copied_to.type == "cuda"
    for (table, request, dtype), most in zip(wanted, room, strict=True):
        num_rows = len(request.ids_U)
        rows_UD = torch.empty(max(num_rows, most), table.width, device=table.rows.device, pin_memory=is_pinned)
        if len(rows_UD) > num_rows:
            rows_UD[num_rows:] = 0.0
        fetches.append(RowFetch(table.rows, dtype, rows_UD))
    return fetches


def fetch_rows(fetches: Sequence[RowFetch], routes: Sequence[Route], ranks: Ranks, group: ProcessGroup | None = None) -> None:
    """Bring the rows of each table's route to their places. A collective, one exchange; alone on one rank nothing is sent."""
    if ranks.size == 1:
        for each, route in zip(fetches, routes, strict=True):
            if route.is_in_order:
                take_rows(each.rows, route.asked_places[0], each.rows_UD, each.dtype)
            else:
                put_rows(each, route.asked_places[0], route.positions[0])
        return
    formats = [Plain(each.dtype) for each in fetches]
    widths = [each.rows.shape[1] for each in fetches]
    sent = _Parcels([route.num_given for route in routes], formats, widths, ranks.device)
    for i, (each, route, form) in enumerate(zip(fetches, routes, formats, strict=True)):
        # Shared rows are read from the table once.
        num_shared, row_bytes = len(route.shared_places), form.row_bytes(widths[i])
        first, _ = sent.of(i, 0).cut(num_shared, row_bytes)
        take_rows(each.rows, route.shared_places, first.rows(form.dtype))
        for rank, places in enumerate(route.asked_places):
            shared, own = sent.of(i, rank).cut(num_shared, row_bytes)
            if rank:
                shared.bytes.copy_(first.bytes)
            take_rows(each.rows, places, own.rows(form.dtype))
    received = _Parcels([route.num_taken for route in routes], formats, widths, ranks.device)
    sent.send(received, ranks, group)
    for i, (each, route, form) in enumerate(zip(fetches, routes, formats, strict=True)):
        block = block_rows(each.rows)
        for rank, positions in enumerate(route.positions):
            for start in range(0, len(positions), block):
                here = positions[start : start + block]
                each.rows_UD.index_copy_(0, here, form.read(received.of(i, rank), start, start + len(here)))


def take_rows(source: Tensor, places: Tensor, result: Tensor, through: torch.dtype | None = None) -> None:
    """result[i] = source[places[i]] for every place, rounded to `through` on its way. In blocks: no second large tensor, few misses."""
    block = block_rows(source)
    for start in range(0, len(places), block):
        rows = source.index_select(0, places[start : start + block])
        result[start : start + len(rows)] = rows if through is None else rows.to(through)


def put_rows(fetch: RowFetch, places: Tensor, positions: Tensor) -> None:
    """rows_UD[positions[i]] = rows[places[i]] by the dtype in which rows travel, for every i. In blocks, as `take_rows`."""
    block = block_rows(fetch.rows)
    for start in range(0, len(places), block):
        rows = fetch.rows.index_select(0, places[start : start + block]).to(fetch.dtype).float()
        fetch.rows_UD.index_copy_(0, positions[start : start + block], rows)


@dataclass(frozen=True)
class RowGradient:
    """The gradient of one table's requested rows, float32 [U, D], and the format in which it travels."""

    request: RowRequest
    gradient_UD: Tensor
    format: RowFormat


class GradientExchange:
    """Gradients of requested rows on their way to the owners, of several tables in one exchange. A collective when made.

    With N = 1 nothing is sent, and the gradients are used as they are.
    """

    def __init__(self, gradients: Sequence[RowGradient], ranks: Ranks, group: ProcessGroup | None = None) -> None:
        self.gradients, self.ranks = gradients, ranks
        if ranks.size == 1:
            return
        routes = [each.request.route for each in gradients]
        formats, widths = [each.format for each in gradients], [each.gradient_UD.shape[1] for each in gradients]
        sent = _Parcels([route.num_taken for route in routes], formats, widths, ranks.device)
        for i, (each, route) in enumerate(zip(gradients, routes, strict=True)):
            block = block_rows(each.gradient_UD)
            for rank, positions in enumerate(route.positions):
                for start in range(0, len(positions), block):
                    here = positions[start : start + block]
                    each.format.write(sent.of(i, rank), start, each.gradient_UD.index_select(0, here), each.request.ids_U[here])
        self._received = _Parcels([route.num_given for route in routes], formats, widths, ranks.device)
        sent.send(self._received, ranks, group)

    def sums(self, table: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(places, their gradients, float32) of one table, a block of `updated_places` at a time: summed over ranks, in rank order."""
        each, block = self.gradients[table], block_rows(self.gradients[table].gradient_UD)
        request = each.request
        if self.ranks.size == 1:
            yield from zip(request.ids_U.split(block), each.gradient_UD.split(block), strict=True)
            return
        received = [self._received.of(table, rank) for rank in range(self.ranks.size)]
        num_shared = len(request.route.shared_places)
        for start in range(0, num_shared, block):
            stop = min(start + block, num_shared)
            total = each.format.read(received[0], start, stop)
            for packed in received[1:]:
                total += each.format.read(packed, start, stop)
            yield request.route.shared_places[start:stop], total
        places = request.updated_places[num_shared:]
        totals = torch.zeros(len(places), each.gradient_UD.shape[1], device=each.gradient_UD.device)
        # One rank after another: a rank's ids are distinct, so each row's sum has one fixed order.
        for index, packed in zip(request.asked_index, received, strict=True):
            totals.index_add_(0, index, each.format.read(packed, num_shared, packed.num_rows))
        yield from zip(places.split(block), totals.split(block), strict=True)


class _Parcels:
    """The bytes that go to, or come from, each rank: its rows of one table after another."""

    def __init__(self, counts: list[list[int]], formats: Sequence[RowFormat], widths: list[int], device: torch.device) -> None:
        """counts: of each table, rows for each rank."""
        row_bytes = [form.row_bytes(width) for form, width in zip(formats, widths, strict=True)]
        by_rank = list(zip(*counts, strict=True))
        sizes = [[-(-count * size // _ALIGNMENT) * _ALIGNMENT for count, size in zip(row, row_bytes, strict=True)] for row in by_rank]
        self._sizes = [sum(row) for row in sizes]
        self._bytes = torch.empty(sum(self._sizes), dtype=torch.uint8, device=device)
        starts = iter(accumulate((size for row in sizes for size in row), initial=0))
        self._packed = [
            [
                Packed(self._bytes[start : start + count * row_bytes[i]], count, widths[i])
                for i, (count, start) in enumerate(zip(row, starts, strict=False))
            ]
            for row in by_rank
        ]

    def of(self, table: int, rank: int) -> Packed:
        """A rank's rows of a table."""
        return self._packed[rank][table]

    def send(self, received: _Parcels, ranks: Ranks, group: ProcessGroup | None) -> None:
        """Let every rank have its part, and take theirs. A collective."""
        exchange(list(received._bytes.split(received._sizes)), list(self._bytes.split(self._sizes)), ranks, group)
