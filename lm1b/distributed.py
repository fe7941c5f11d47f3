"""What this process is among the ranks, and collectives: of tensors, of JSON values, and of what may fail on one rank."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lm1b.errors import AgreedError, UserError, in_words
from lm1b.peers import Peers
from lm1b.processes import host_name
from lm1b.profiling import part

T = TypeVar("T")
IN_TOUCH_SECONDS = 0.5


@dataclass(frozen=True)
class Ranks:
    """This process's place: `rank` of `size`, computing on `device`. size 1 needs no process group.

    peers: who the other processes are, where a launcher has started several.
    """

    rank: int
    size: int
    device: torch.device
    peers: Peers | None = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and says what all ranks do once."""
        return self.rank == 0

    @property
    def on_host(self) -> Ranks:
        """The same place, for what is in the host's memory, whatever computes."""
        return replace(self, device=torch.device("cpu"))

    @property
    def name(self) -> str:
        """For messages: the rank, and its host where there are several."""
        hosts = [member.host for member in self.peers.members] if self.peers else []
        return f"rank {self.rank} on {hosts[self.rank]}" if len(set(hosts)) > 1 else f"rank {self.rank}"


def single_process(device: torch.device | str = "cpu") -> Ranks:
    """One process on its own: no process group, nothing is ever sent."""
    return Ranks(0, 1, torch.device(device))


def current_ranks(device: torch.device, peers: Peers | None = None) -> Ranks:
    """This process's place in the process group that is up, or alone where there is none."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), device, peers)
    return single_process(device)


def share_of_cores(ranks: Ranks) -> int:
    """How many cores are this rank's, so that ranks do not fight: of those it may use, which others of its host may use too. Collective.

    A launcher may have given each rank cores of its own (mpirun, SLURM), or all ranks of a host the same ones (deepspeed, torchrun).
    """
    mine = [host_name(), sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))]
    return max(1, len(mine[1]) // all_gather_objects(mine, ranks).count(mine))


def all_reduce_sum(values: Tensor, ranks: Ranks) -> Tensor:
    """Sum over ranks, in place."""
    if ranks.size > 1:
        with part("communication"):
            dist.all_reduce(values)
    return values


def all_reduce_max(values: Tensor, ranks: Ranks) -> Tensor:
    """Largest over ranks, in place."""
    if ranks.size > 1:
        with part("communication"):
            dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def all_to_all(
    received: Tensor,
    sent: Tensor,
    num_received: list[int] | None = None,
    num_sent: list[int] | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Send each rank its part of `sent`, and put what each has sent here into `received`, rank 0's first: see all_to_all_single."""
    with part("communication"):
        dist.all_to_all_single(received, sent, num_received, num_sent, group=group)
    return received


def exchange(received: list[Tensor], sent: list[Tensor], ranks: Ranks, group: dist.ProcessGroup | None = None) -> None:
    """The same for large messages: sent[r] goes to rank r, what rank r has sent here into received[r]; contiguous, none where empty.

    gloo's all-to-all keeps a link busy in one direction at a time; messages of their own fill both (measured at 1 Gbit/s, 8 MB each
    way: 105 ms against 70).
    """
    received[ranks.rank].copy_(sent[ranks.rank])
    others = [rank for rank in range(ranks.size) if rank != ranks.rank]
    operations = [dist.P2POp(dist.irecv, received[rank], rank, group) for rank in others if received[rank].numel()]
    operations += [dist.P2POp(dist.isend, sent[rank], rank, group) for rank in others if sent[rank].numel()]
    with part("communication"):
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()


def all_gather_rows(values_N: Tensor, ranks: Ranks) -> Tensor:
    """All ranks' values in rank order, along the first dimension, of the same shape on each. A collective."""
    if ranks.size == 1:
        return values_N
    values_M = values_N.new_empty(ranks.size * len(values_N), *values_N.shape[1:])
    with part("communication"):
        dist.all_gather(list(values_M.chunk(ranks.size)), values_N.contiguous())
    return values_M


def all_gather_objects(value: object, ranks: Ranks) -> list[Any]:
    """Every rank's JSON-like value, in rank order. Goes as UTF-8 JSON bytes: nothing is pickled."""
    if ranks.size == 1:
        return [value]
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(ranks.device)
    length = torch.tensor([payload.numel()], device=ranks.device)
    lengths = [torch.zeros_like(length) for _ in range(ranks.size)]
    dist.all_gather(lengths, length)
    longest = int(max(int(n) for n in lengths))
    padded = torch.zeros(longest, dtype=torch.uint8, device=ranks.device)
    padded[: payload.numel()] = payload
    gathered = [torch.zeros_like(padded) for _ in range(ranks.size)]
    dist.all_gather(gathered, padded)
    return [json.loads(bytes(each[: int(n)].cpu().numpy()).decode()) for each, n in zip(gathered, lengths, strict=True)]


def from_first(ranks: Ranks, action: Callable[[], T], *, may_take_long: bool = False) -> T:
    """What `action` gives on the first rank, a JSON value, on all of them; the others do not run it. See `agree`."""
    value = agree(ranks, lambda: action() if ranks.is_first else None, may_take_long=may_take_long)
    return all_gather_objects(value, ranks)[0]


def tensors_from_first(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """The first rank's tensors, float32 and by name, on CPU on every rank; the others give none. Collective."""
    if ranks.size == 1:
        return tensors
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    shapes: list[tuple[str, list[int]]] = from_first(ranks, lambda: [(name, list(tensor.shape)) for name, tensor in tensors.items()])
    found = {}
    for name, shape in shapes:
        tensor = (tensors[name] if ranks.is_first else torch.empty(shape)).to(ranks.device)
        dist.broadcast(tensor, 0)
        found[name] = tensor.cpu()
    return found


def agree(ranks: Ranks, action: Callable[[], T], *, may_take_long: bool = False) -> T:
    """Run `action` on every rank; where it is a user's mistake or a file system's no on any of them, raise AgreedError on all.

    No rank is then left waiting for one that has ended. The action must not hold collectives. may_take_long: longer on one rank
    than on another by up to any time; the ranks keep in touch meanwhile, so that nobody is taken for one that hangs.
    """
    if may_take_long and ranks.size > 1:
        action = _in_touch(ranks, action)
    result, problem = None, None
    try:
        result = action()
    except (UserError, OSError) as error:
        problem = in_words(error)
    if problem is not None and ranks.rank:
        problem = f"{problem} ({ranks.name})"
    problems = [found for found in all_gather_objects(problem, ranks) if found is not None]
    if problems:
        raise AgreedError(problems[0])
    return result  # type: ignore[return-value]


def _in_touch(ranks: Ranks, action: Callable[[], T]) -> Callable[[], T]:
    """Run `action` in a thread until all ranks have done theirs. -> what gives its result, or raises its error."""
    pool = ThreadPoolExecutor(max_workers=1)
    future = pool.submit(action)
    while True:
        wait([future], timeout=IN_TOUCH_SECONDS)
        done = torch.tensor([float(future.done())], device=ranks.device)
        if int(all_reduce_sum(done, ranks)) == ranks.size:
            pool.shutdown()
            return future.result
