"""Which table rows travel between ranks in a step, and how: requests, rows that come, gradients that go back.

Row r of a table lives on rank r % N, at place r // N there. Each exchange is of all tables at once:

1. `request_rows` tells the owners which distinct rows each rank wants (counts, then ids; of the samples nothing, since every
   rank knows them). That is the host's work: how much travels is known before a device is told to send it.
2. `bring_rows` brings them in the compute precision: all of a `Route`, or at first the part that no rank's present step touches
   (`split_routes`) and the rest after its update.
3. `GradientExchange` sends the rows' gradients back; their owners sum them over ranks, in rank order and in float32.

With N = 1 nothing is sent. Example with N = 2, ids [4, 1, 7]: rank 0 is asked for its place 2, rank 1 for its places 0 and 3.

U distinct ids of a request, D width of a row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from lm1b.distributed import Ranks, all_to_all, exchange
from lm1b.model.row_formats import Packed, Plain, RowFormat

# Elements worked on at a time: with a handful of float32 temporaries this stays within a core's second-level cache.
_BLOCK_ELEMENTS = 1 << 16
# On a GPU small blocks would only cost launches.
_BLOCK_ELEMENTS_GPU = 1 << 24
_ALIGNMENT = 8  # bytes; a rank's section of any dtype starts at a multiple


def block_rows(table: Tensor) -> int:
    """How many rows of `table` are worked on at a time."""
    return max(1, (_BLOCK_ELEMENTS if table.device.type == "cpu" else _BLOCK_ELEMENTS_GPU) // table.shape[1])


@dataclass(frozen=True)
class Route:
    """Rows of one table that travel. At the owner: places of its rows; at the rank that asks: where they go.

    shared_places: taken by every rank. asked_places: what each rank takes beside them. positions: of the rows that each rank sends
    here, their place among this rank's U; the shared ones first. All int64.
    """

    shared_places: Tensor
    asked_places: list[Tensor]
    positions: list[Tensor]

    @property
    def num_given(self) -> list[int]:
        """Rows that this rank, as their owner, exchanges with each rank."""
        return [len(self.shared_places) + len(places) for places in self.asked_places]

    @property
    def num_taken(self) -> list[int]:
        """Rows that this rank, who asked for them, exchanges with each rank."""
        return [len(positions) for positions in self.positions]

    def moved(self, move: Callable[[Tensor], Tensor]) -> Route:
        """The same, every tensor as `move` gives it."""
        return Route(move(self.shared_places), [move(each) for each in self.asked_places], [move(each) for each in self.positions])


class RowRequest:
    """Which rows this rank wants, and which are wanted of it.

    ids_U: int64, distinct; the first num_shared are the same on every rank. On several ranks both parts must be grouped by owner,
    rank 0's first. updated_places: int64, distinct, this rank's rows that any rank wants. Made on the host; see `moved`.
    """

    def __init__(self, ids_U: Tensor, num_shared: int, ranks: Ranks, asked_places: list[Tensor] | None = None) -> None:
        """asked_places: what each rank asks of this one, beside the shared ones; None alone. See `request_rows`."""
        self.ids_U, self.ranks = ids_U, ranks
        self._route: Route | None = None
        if asked_places is None:
            self.updated_places = ids_U
            return
        places_U, owner_U = torch.div(ids_U, ranks.size, rounding_mode="floor"), ids_U % ranks.size
        shared: list[int] = torch.bincount(owner_U[:num_shared], minlength=ranks.size).tolist()
        wanted: list[int] = torch.bincount(owner_U[num_shared:], minlength=ranks.size).tolist()
        positions_U = torch.arange(len(ids_U))
        parts = zip(positions_U[:num_shared].split(shared), positions_U[num_shared:].split(wanted), strict=True)
        self._route = Route(places_U[:num_shared].split(shared)[ranks.rank], asked_places, [torch.cat(part) for part in parts])
        shared_places = self._route.shared_places
        once, asked_index = torch.unique(torch.cat(asked_places), return_inverse=True)
        self.asked_index = asked_index.split([len(places) for places in asked_places])
        self.updated_places = torch.cat([shared_places, once])

    @property
    def route(self) -> Route:
        """Alone on one rank all rows are its own, and go from it to itself."""
        return self._route or Route(self.ids_U[:0], [self.ids_U], [torch.arange(len(self.ids_U), device=self.ids_U.device)])

    def moved(self, move: Callable[[Tensor], Tensor]) -> RowRequest:
        """The same, every tensor as `move` gives it: on the device that holds the rows."""
        other = copy.copy(self)
        other.ids_U, other.updated_places = move(self.ids_U), move(self.updated_places)
        if self._route is not None:
            other._route, other.asked_index = self._route.moved(move), tuple(move(each) for each in self.asked_index)
        return other


def request_rows(wants: Sequence[tuple[Tensor, int]], ranks: Ranks, group: ProcessGroup | None = None) -> list[RowRequest]:
    """Tell the owners what is wanted of each of several tables. A collective on several ranks, of tensors on the host.

    wants: of each table (ids_U, num_shared) as `RowRequest` takes them. group: one that sends what is on the host.
    """
    if ranks.size == 1:
        return [RowRequest(ids_U, num_shared, ranks) for ids_U, num_shared in wants]
    own = [ids_U[num_shared:] for ids_U, num_shared in wants]
    counts_wanted = torch.stack([torch.bincount(ids % ranks.size, minlength=ranks.size) for ids in own], dim=1)
    counts_asked = torch.empty_like(counts_wanted)
    all_to_all(counts_asked, counts_wanted, group=group)
    wanted: list[list[int]] = counts_wanted.tolist()
    asked: list[list[int]] = counts_asked.tolist()
    by_table = [torch.div(ids, ranks.size, rounding_mode="floor").split([row[i] for row in wanted]) for i, ids in enumerate(own)]
    sent = torch.cat([places[rank] for rank in range(ranks.size) for places in by_table]).to(torch.int32)
    received = torch.empty(sum(map(sum, asked)), dtype=torch.int32)
    all_to_all(received, sent, [sum(row) for row in asked], [sum(row) for row in wanted], group=group)
    parts = received.long().split([count for row in asked for count in row])
    return [RowRequest(ids_U, num_shared, ranks, list(parts[i :: len(wants)])) for i, (ids_U, num_shared) in enumerate(wants)]


def split_routes(
    routes: Sequence[Route], touched: Sequence[Tensor], ranks: Ranks, group: ProcessGroup | None = None
) -> tuple[list[Route], list[Route]]:
    """Each route's rows that are not touched, and those that are. A collective on several ranks.

    touched: of each route, bool by place, which of this rank's rows; owners tell those who ask, a byte a row.
    """
    given = [[torch.cat([route.shared_places, places]) for places in route.asked_places] for route in routes]
    sent = torch.cat([touched[i][given[i][rank]] for rank in range(ranks.size) for i in range(len(routes))]).to(torch.uint8)
    taken = [[route.num_taken[rank] for route in routes] for rank in range(ranks.size)]
    received = sent
    if ranks.size > 1:
        received = torch.empty(sum(map(sum, taken)), dtype=torch.uint8, device=ranks.device)
        num_given = [sum(route.num_given[rank] for route in routes) for rank in range(ranks.size)]
        all_to_all(received, sent, [sum(row) for row in taken], num_given, group=group)
    masks = received.bool().split([count for row in taken for count in row])
    halves: list[list[Route]] = []
    for wanted in (False, True):
        half = []
        for i, (route, is_touched) in enumerate(zip(routes, touched, strict=True)):
            asked = [places[is_touched[places] == wanted] for places in route.asked_places]
            positions = [at[mask == wanted] for at, mask in zip(route.positions, masks[i :: len(routes)], strict=True)]
            half.append(Route(route.shared_places[is_touched[route.shared_places] == wanted], asked, positions))
        halves.append(half)
    return halves[0], halves[1]


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


@dataclass(frozen=True)
class Bringing:
    """Rows of one table to be brought: from `rows` (its owner's part, float32) by `dtype` into rows_UD (float32)."""

    rows: Tensor
    dtype: torch.dtype
    rows_UD: Tensor


def bring_rows(brought: Sequence[Bringing], routes: Sequence[Route], ranks: Ranks, group: ProcessGroup | None = None) -> None:
    """Bring the rows of each table's route to their places. A collective, one exchange; alone on one rank nothing is sent."""
    if ranks.size == 1:
        for each, route in zip(brought, routes, strict=True):
            put_rows(each, route.asked_places[0], route.positions[0])
        return
    formats = [Plain(each.dtype) for each in brought]
    widths = [each.rows.shape[1] for each in brought]
    sent = _Parcels([route.num_given for route in routes], formats, widths, ranks.device)
    for i, (each, route, form) in enumerate(zip(brought, routes, formats, strict=True)):
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
    for i, (each, route, form) in enumerate(zip(brought, routes, formats, strict=True)):
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


def put_rows(into: Bringing, places: Tensor, positions: Tensor) -> None:
    """rows_UD[positions[i]] = rows[places[i]] by the dtype in which rows travel, for every i. In blocks, as `take_rows`."""
    block = block_rows(into.rows)
    for start in range(0, len(places), block):
        rows = into.rows.index_select(0, places[start : start + block]).to(into.dtype).float()
        into.rows_UD.index_copy_(0, positions[start : start + block], rows)


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
            # Of room made for more rows than were asked for, the rest has no gradient.
            yield from zip(request.ids_U.split(block), each.gradient_UD[: len(request.ids_U)].split(block), strict=True)
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
