"""Which table rows a step needs, and which of them each rank asks of each other: known on the host, before a device is told anything.

Row r of a table lives on rank r % N, at place r // N there.

1. `distinct_inputs`, `distinct_outputs` and, for tied tables, `distinct_shared` find the distinct ids of this rank's tokens, grouped by
   owner, and where each token is among them.
2. `request_rows` tells the owners (counts, then places; of the samples nothing, since every rank knows them).
3. `split_routes` cuts what is asked for in two: the rows that no rank's present step touches, and those that it does.

Example with N = 2: the ids 4, 1, 7 in this order are asked for as [4, 1, 7] (rank 0's first): of rank 0 its place 2, of rank 1 its
places 0 and 3; the token 7 is at position 2 among them.

*id*: of a word. *place*: of its row at the owner. *position*: among the U distinct ids of this rank's request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from lm1b.distributed import Ranks, all_to_all
from lm1b.model.sampler import Samples


def distinct_inputs(inputs_N: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The distinct ids among `inputs_N` (int64, any shape), grouped by owner, and each input's position among them."""
    keys_U, positions = torch.unique(_keys(inputs_N, ranks), return_inverse=True)
    return _ids(keys_U, ranks), positions


def distinct_outputs(samples: Samples, targets_N: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The samples, grouped by owner and rising, and after them the targets that are none of them, likewise; each target's position there.

    targets_N: int64, any shape. A position is < S if and only if the target was sampled.
    """
    num_samples = len(samples.ids_S)
    keys_S, target_keys_N = _keys(samples.ids_S, ranks), _keys(targets_N, ranks)
    if ranks.size > 1:
        keys_S = keys_S.sort().values
    positions = torch.searchsorted(keys_S, target_keys_N).clamp_(max=num_samples - 1)
    is_sampled = keys_S[positions] == target_keys_N
    others, positions_of_others = torch.unique(target_keys_N[~is_sampled], return_inverse=True)
    positions[~is_sampled] = positions_of_others + num_samples
    return _ids(torch.cat([keys_S, others]), ranks), positions


def distinct_shared(samples: Samples, inputs_N: Tensor, targets_N: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """For tied tables: as `distinct_outputs`, the inputs taken for targets too. -> ids, each input's position, each target's."""
    ids_U, positions = distinct_outputs(samples, torch.cat([inputs_N.flatten(), targets_N.flatten()]), ranks)
    return ids_U, positions[: inputs_N.numel()], positions[inputs_N.numel() :]


def _keys(ids: Tensor, ranks: Ranks) -> Tensor:
    """Integers that sort by owner first and by id then: owner * 2^32 + place there."""
    return ids if ranks.size == 1 else (ids % ranks.size << 32) + ids // ranks.size


def _ids(keys: Tensor, ranks: Ranks) -> Tensor:
    """The ids that `_keys` made these keys of."""
    return keys if ranks.size == 1 else (keys & (1 << 32) - 1) * ranks.size + (keys >> 32)


@dataclass(frozen=True)
class Route:
    """Rows of one table that travel. At the owner: places of its rows; at the rank that asks: where they go.

    shared_places: taken by every rank. asked_places: what each rank takes beside them. positions: of the rows that each rank sends
    here; the shared ones first. All int64. is_in_order: these positions are 0, 1, 2, ..., as alone on one rank those of a whole request
    are.
    """

    shared_places: Tensor
    asked_places: list[Tensor]
    positions: list[Tensor]
    is_in_order: bool = False

    @property
    def num_given(self) -> list[int]:
        """Rows that this rank, as their owner, exchanges with each rank."""
        return [len(self.shared_places) + len(places) for places in self.asked_places]

    @property
    def num_taken(self) -> list[int]:
        """Rows that this rank, who asked for them, exchanges with each rank."""
        return [len(positions) for positions in self.positions]


@dataclass(frozen=True, eq=False)
class RowRequest:
    """Which rows this rank wants, and which are wanted of it. Made on the host; see `moved`.

    ids_U: int64, distinct. updated_places: int64, distinct, this rank's rows that any rank wants; the shared ones first. asked_index: of
    each of route.asked_places, int64, where they are among the others of these; none alone on one rank.
    """

    ids_U: Tensor
    updated_places: Tensor
    route: Route
    asked_index: Sequence[Tensor] = ()

    def moved(self, move: Callable[[Tensor], Tensor]) -> RowRequest:
        """The same, every tensor as `move` gives it: on the device that holds the rows."""
        if self.route.is_in_order:
            return _request_alone(move(self.ids_U))
        lists = (self.route.asked_places, self.route.positions, self.asked_index)
        asked_places, positions, asked_index = ([move(each) for each in tensors] for tensors in lists)
        route = Route(move(self.route.shared_places), asked_places, positions)
        return RowRequest(move(self.ids_U), move(self.updated_places), route, asked_index)


def _request_alone(ids_U: Tensor) -> RowRequest:
    """On one rank all rows are its own, and go from it to itself."""
    return RowRequest(ids_U, ids_U, Route(ids_U[:0], [ids_U], [torch.arange(len(ids_U), device=ids_U.device)], is_in_order=True))


def request_rows(wants: Sequence[tuple[Tensor, int]], ranks: Ranks, group: ProcessGroup | None = None) -> list[RowRequest]:
    """Tell the owners what is wanted of each of several tables. A collective on several ranks, of tensors on the host.

    wants: of each table (ids_U, num_shared): int64, distinct, of which the first num_shared are the same on every rank; on several ranks
    both parts are grouped by owner, rank 0's first. group: one that sends what is on the host.
    """
    if ranks.size == 1:
        return [_request_alone(ids_U) for ids_U, _ in wants]
    own = [ids_U[num_shared:] for ids_U, num_shared in wants]
    counts_wanted = torch.stack([torch.bincount(ids % ranks.size, minlength=ranks.size) for ids in own], dim=1)
    counts_asked = torch.empty_like(counts_wanted)
    all_to_all(counts_asked, counts_wanted, group=group)
    wanted: list[list[int]] = counts_wanted.tolist()
    asked: list[list[int]] = counts_asked.tolist()
    by_table = [(ids // ranks.size).split([row[i] for row in wanted]) for i, ids in enumerate(own)]
    sent = torch.cat([places[rank] for rank in range(ranks.size) for places in by_table]).to(torch.int32)
    received = torch.empty(sum(map(sum, asked)), dtype=torch.int32)
    all_to_all(received, sent, [sum(row) for row in asked], [sum(row) for row in wanted], group=group)
    parts = received.long().split([count for row in asked for count in row])
    return [
        _request(ids_U, num_shared, [row[i] for row in wanted], list(parts[i :: len(wants)]), ranks)
        for i, (ids_U, num_shared) in enumerate(wants)
    ]


def _request(ids_U: Tensor, num_shared: int, num_wanted: list[int], asked_places: list[Tensor], ranks: Ranks) -> RowRequest:
    """num_wanted: of each rank, beside the shared ones. asked_places: what each rank asks of this one, likewise."""
    shared_U = ids_U[:num_shared]
    num_of_owner: list[int] = torch.bincount(shared_U % ranks.size, minlength=ranks.size).tolist()
    shared_places = shared_U.split(num_of_owner)[ranks.rank] // ranks.size
    positions_U = torch.arange(len(ids_U))
    parts = zip(positions_U[:num_shared].split(num_of_owner), positions_U[num_shared:].split(num_wanted), strict=True)
    route = Route(shared_places, asked_places, [torch.cat(part) for part in parts])
    once, asked_index = torch.unique(torch.cat(asked_places), return_inverse=True)
    return RowRequest(ids_U, torch.cat([shared_places, once]), route, asked_index.split([len(places) for places in asked_places]))


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
