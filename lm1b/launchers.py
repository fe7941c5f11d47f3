"""A process's place among the ranks, by the environment of whichever launcher started it: no launcher's own library is needed.

    torch's names   deepspeed (pdsh, --no_ssh, one host), torchrun, a pod each with RANK and WORLD_SIZE
    Open MPI        mpirun, deepspeed --launcher openmpi
    PMI             MPICH's and Intel's mpirun
    SLURM           srun, deepspeed --launcher slurm

MASTER_ADDR and MASTER_PORT, where they are set, say where the ranks meet, whatever the launcher.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from lm1b.errors import UserError

TORCH_PORT = 29_500  # torch's and DeepSpeed's own
FIRST_PORT, NUM_PORTS = 20_000, 10_000  # below what Linux gives to outgoing connections


@dataclass(frozen=True)
class Place:
    """Rank `rank` of `size`, and `local_rank` of the `local_size` on this host; they meet at rank 0's host.

    launcher: whose variables said so; None, as `size` 1, for a process that nobody has launched.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    master_address: str | None = None
    master_port: int = TORCH_PORT
    launcher: str | None = None

    def variables(self) -> dict[str, str]:
        """The same under torch's names."""
        numbers = {"RANK": self.rank, "WORLD_SIZE": self.size, "LOCAL_RANK": self.local_rank, "LOCAL_SIZE": self.local_size}
        return {
            **{name: str(number) for name, number in numbers.items()},
            "MASTER_ADDR": self.master_address or "127.0.0.1",
            "MASTER_PORT": str(self.master_port),
        }


@dataclass(frozen=True)
class _Names:
    """What a launcher calls its variables; the first of several that is set counts."""

    launcher: str
    rank: str
    size: str
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]


# In this order: a launcher's processes may start another launcher, whose variables come on top. mpirun in a SLURM job is started by
# srun, and so is MPICH's, but srun's own PMI gives no local rank.
_TORCH = _Names("torch", "RANK", "WORLD_SIZE", ("LOCAL_RANK",), ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"))
_OPEN_MPI = _Names(
    "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("OMPI_COMM_WORLD_LOCAL_RANK",), ("OMPI_COMM_WORLD_LOCAL_SIZE",)
)
_PMI = _Names("PMI", "PMI_RANK", "PMI_SIZE", ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"), ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"))
# Of the step, which only srun sets: a job's script has SLURM_PROCID and SLURM_NTASKS too, and is no rank.
_SLURM = _Names("SLURM", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_LOCALID",), ())
_ALL = (_TORCH, _OPEN_MPI, _PMI, _SLURM)


def here() -> Place:
    """This process's place. Raises UserError where its environment contradicts itself."""
    return find_place(os.environ)


def find_place(environment: Mapping[str, str]) -> Place:
    """The place that an environment describes. Raises UserError where it is incomplete or contradicts itself."""
    names = next((names for names in _ALL if names.rank in environment and names.size in environment), None)
    if names is _PMI and not any(name in environment for name in _PMI.local_rank) and _SLURM.size in environment:
        names = _SLURM
    if names is None:
        if _TORCH.size in environment:
            raise UserError("WORLD_SIZE is set, RANK is not: set both, or none, or use a launcher: deepspeed launch/train.py ...")
        return Place()
    rank, size = _number(environment, (names.rank,), 0), _number(environment, (names.size,), 1)
    local_rank = _number(environment, names.local_rank, 0)
    local_size = _tasks_of_node(environment) if names is _SLURM else _number(environment, names.local_size, local_rank + 1)
    if not (rank < size and local_rank < local_size <= size):
        raise UserError(
            f"{names.launcher}'s variables contradict each other: {names.rank}={rank} of {names.size}={size}, "
            f"{local_rank} of {local_size} on this host; unset what an earlier launcher has left"
        )
    address = environment.get("MASTER_ADDR") or _first_host(names, size, local_size, environment)
    return Place(rank, size, local_rank, local_size, address, _port(names, environment), names.launcher)


def without_place(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that is no rank, though its parent is one."""
    dropped = {name for names in _ALL for name in (names.rank, names.size, *names.local_rank, *names.local_size)}
    return {name: value for name, value in environment.items() if name not in dropped}


def first_of_hosts(host_list: str) -> str:
    """First name of SLURM's list of hosts.

    >>> first_of_hosts("rack[1-2]n[08-10,12],other")
    'rack1n08'
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", host_list)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", first.group() if first else "")


def _number(environment: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    """Value of the first of `names` that is set."""
    for name in names:
        text = environment.get(name)
        if text:
            if not (text.isascii() and text.isdigit() and len(text) < 10):
                raise UserError(f"{name}={text}: expected a whole number, as launchers set it")
            return int(text)
    return default


def _tasks_of_node(environment: Mapping[str, str]) -> int:
    """How many tasks of a SLURM step run on this node, from a list such as `4(x2),3`."""
    text, node = environment.get("SLURM_STEP_TASKS_PER_NODE", ""), _number(environment, ("SLURM_NODEID",), 0)
    for number, _, times in re.findall(r"(\d{1,9})(\(x(\d{1,9})\))?", text):
        node -= int(times or 1)
        if node < 0:
            return int(number)
    raise UserError(f"SLURM_STEP_TASKS_PER_NODE={text}: says nothing of this node (SLURM_NODEID={environment.get('SLURM_NODEID')})")


def _first_host(names: _Names, size: int, local_size: int, environment: Mapping[str, str]) -> str:
    """Where rank 0 is, as well as the launcher says it."""
    hosts = environment.get("SLURM_STEP_NODELIST" if names is _SLURM else "SLURM_JOB_NODELIST", "")
    if size == 1 or (local_size == size and names is not _TORCH):
        return "127.0.0.1"
    if hosts and names is not _TORCH:
        return first_of_hosts(hosts)
    hints = {
        "Open MPI": "mpirun -x MASTER_ADDR=HOST, deepspeed --launcher_args '-x MASTER_ADDR=HOST'",
        "PMI": "mpirun -genv MASTER_ADDR HOST",
    }
    hint = hints.get(names.launcher, "export MASTER_ADDR=HOST")
    raise UserError(f"{size} ranks, and nothing says where they meet: set MASTER_ADDR to the host of rank 0 ({hint})")


def _port(names: _Names, environment: Mapping[str, str]) -> int:
    """MASTER_PORT, or one that depends on the launch, so that two on one host rarely ask for the same."""
    if environment.get("MASTER_PORT"):
        port = _number(environment, ("MASTER_PORT",), TORCH_PORT)
        if not 0 < port < 65_536:
            raise UserError(f"MASTER_PORT={port}: expected a port between 1 and 65535")
        return port
    parts = {"SLURM": ("SLURM_JOB_ID", "SLURM_STEP_ID"), "Open MPI": ("PMIX_NAMESPACE",)}.get(names.launcher, ())
    launch = ".".join(environment.get(part, "") for part in parts)
    return FIRST_PORT + zlib.crc32(launch.encode()) % NUM_PORTS if launch else TORCH_PORT
