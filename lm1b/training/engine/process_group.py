"""The ranks meet: the process group that a launcher describes, under DeepSpeed or (`plain_ranks`) without it, with a time limit for whoever
does not answer."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Generator
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, Store

from lm1b.devices import best_device
from lm1b.distributed import Ranks, current_ranks
from lm1b.errors import UserError, exit_with, listed
from lm1b.launchers import Place, here
from lm1b.peers import Peers, meet, naming_the_guilty, time_limit
from lm1b.processes import host_name

SEVERAL_HOSTS = "where there are several hosts: python tools/check_hosts.py --hostfile ..."

_AT_THE_END: list[Callable[[], None]] = []


def import_deepspeed() -> Any:
    """DeepSpeed, quiet: its own log says nothing that ours does not."""
    # Deprecations inside DeepSpeed 0.19.8 under torch 2.13, nothing a user could mend: shown once a rank otherwise.
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", f".*torch.distributed.{name}", FutureWarning)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep DeepSpeed's prints of memory and built operations off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def without_inductor() -> Generator[None]:
    """Whatever is compiled in here by default is not: DeepSpeed decorates Muon's functions, which nobody here uses, as it makes an engine.

    Torch's compiler would be imported for them alone: 2 s of each rank's start.
    """
    if not hasattr(torch.compiler, "set_default_backend"):  # an older torch
        yield
        return
    before = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend("eager")
    try:
        yield
    finally:
        torch.compiler.set_default_backend(before)


def _without_shared_memory(deepspeed: Any) -> None:
    """Keep DeepSpeed's CPU communication operation out: it serves the inference of models cut over ranks, which nobody does here.

    It costs a compiler run at the first start, and 69 MB of memory a rank at every start, in files that stay in /dev/shm.
    """
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _limit_its_groups(deepspeed: Any) -> None:
    """DeepSpeed makes process groups of its own without a time limit: they would wait torch's 30 minutes for a rank that hangs."""
    deepspeed.comm.comm.cdb.new_group = lambda ranks: dist.new_group(ranks, timeout=time_limit())


def _meet_others(place: Place) -> tuple[Store, Peers]:
    """Raises UserError where the ranks do not, see also `Peers`."""
    try:
        store = meet(place)
        return store, Peers(store, place.rank, place.size)
    except UserError:
        raise
    except (dist.DistError, ValueError) as error:
        where, what = f"{place.master_address}:{place.master_port}", " ".join(str(error).split())
        if "EADDRINUSE" in what:
            raise UserError(
                f"{where}: the port is taken, perhaps by another training; give another one: deepspeed --master_port, or MASTER_PORT="
            ) from None
        rank = f"rank {place.rank} on {host_name()}"
        exit_with(f"{rank} could not meet the other {place.size - 1} ranks at {where} ({what[:200]}); {SEVERAL_HOSTS}", 1)


def _check_interfaces() -> None:
    """Raises UserError where gloo is to use a network interface that this host lacks."""
    there = psutil.net_if_addrs()
    for name in filter(None, os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if name not in there:
            raise UserError(f"GLOO_SOCKET_IFNAME={name}: no such network interface here, there are {listed(sorted(there), most=10)}")


def _join_group(backend: str, place: Place) -> Peers | None:
    """Meet the other ranks where the launcher says, or be the only one. Raises UserError where that cannot be, see also `Peers`."""
    if place.size == 1:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=time_limit())
        return None
    _check_interfaces()  # before they meet, where the first can still be told
    store, peers = _meet_others(place)
    with naming_the_guilty(peers, lambda: SEVERAL_HOSTS):  # a rank that is through already may have failed while others connect
        dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=time_limit())
    return peers


def start_ranks() -> Ranks:
    """Join the process group that the launcher describes, or be the only process where there is no launcher."""
    place = here()
    device = best_device(place.local_rank)
    use_cuda = device.type == "cuda"
    if not use_cuda:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if use_cuda:
        torch.cuda.set_device(device)
    backend = "nccl" if use_cuda else "gloo"
    # Before there is a process group: their functions would keep one that is there as the default of their arguments, for ever.
    importlib.import_module("torch.distributed.nn")
    deepspeed = import_deepspeed()
    _without_shared_memory(deepspeed)
    peers = _join_group(backend, place)
    with quiet():
        deepspeed.init_distributed(dist_backend=backend)
    _limit_its_groups(deepspeed)
    return current_ranks(device, peers)


@contextlib.contextmanager
def plain_ranks() -> Generator[Ranks]:
    """The ranks that a launcher has started, on CPUs and without DeepSpeed, for work that trains nothing. A collective.

    An error of one of them ends them all, see `naming_the_guilty`.
    """
    peers = _join_group("gloo", here())
    try:
        with naming_the_guilty(peers, lambda: "run the same command again to go on from there"):
            yield current_ranks(torch.device("cpu"), peers)
    finally:
        gc.collect()
        dist.destroy_process_group()


def at_the_end(let_go: Callable[[], None]) -> None:
    """Have `stop_ranks` call this first: whoever holds process groups lets go of them."""
    _AT_THE_END.append(let_go)


def before_the_end(let_go: Callable[[], None]) -> None:
    """Call what `at_the_end` was given now, and not again."""
    _AT_THE_END.remove(let_go)
    let_go()


def stop_ranks() -> None:
    """Leave the process group, and let go of what DeepSpeed keeps of it: threads left over would abort the exit."""
    if dist.is_initialized():
        while _AT_THE_END:
            _AT_THE_END.pop()()
        gc.collect()
        import_deepspeed().comm.destroy_process_group()
