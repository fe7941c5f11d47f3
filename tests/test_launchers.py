"""A rank's place, from the variables of each launcher; tests/test_launching.py starts the launchers that are here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import REPOSITORY

from lm1b.errors import UserError
from lm1b.launchers import Place, find_place, first_of_hosts, without_place

NAMES = {
    "torch": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "PMI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """(ranks of each host, a host, a rank of that host)."""
    hosts = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    node = draw(st.integers(0, len(hosts) - 1))
    return hosts, node, draw(st.integers(0, hosts[node] - 1))


def described(launcher: str, hosts: list[int], node: int, local_rank: int) -> dict[str, str]:
    """What a launcher would tell one rank."""
    rank, size = sum(hosts[:node]) + local_rank, sum(hosts)
    if launcher == "SLURM":
        counts = ",".join(str(count) for count in hosts)
        place = {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": size, "SLURM_LOCALID": local_rank, "SLURM_NODEID": node}
        return {name: str(value) for name, value in place.items()} | {"SLURM_STEP_TASKS_PER_NODE": counts, "SLURM_STEP_NODELIST": "n[3-9]"}
    return {name: str(value) for name, value in zip(NAMES[launcher], (rank, size, local_rank, hosts[node]), strict=True)}


@given(layouts(), st.sampled_from([*NAMES, "SLURM"]), st.integers(1, 65_535))
def test_every_launcher_tells_the_same_place(layout: tuple[list[int], int, int], launcher: str, port: int) -> None:
    hosts, node, local_rank = layout
    meeting = {"MASTER_ADDR": "first", "MASTER_PORT": str(port)}
    place = find_place(described(launcher, hosts, node, local_rank) | meeting)
    assert (place.rank, place.size) == (sum(hosts[:node]) + local_rank, sum(hosts))
    assert (place.local_rank, place.local_size) == (local_rank, hosts[node])
    assert (place.master_address, place.master_port) == ("first", port)
    # Under torch's names it is the same again, whatever else is set: so a rank's own launcher wins over those around it.
    around = described("SLURM", [1], 0, 0) | described("Open MPI", [2, 2], 1, 1)
    again = find_place(around | place.variables())
    assert (again.rank, again.size, again.local_rank, again.local_size) == (place.rank, place.size, place.local_rank, place.local_size)


@given(layouts(), st.sampled_from([*NAMES, "SLURM"]))
def test_a_process_beside_a_rank_is_none(layout: tuple[list[int], int, int], launcher: str) -> None:
    assert find_place(without_place(described(launcher, *layout) | {"MASTER_ADDR": "first", "HOME": "/"})) == Place()


@given(
    st.dictionaries(
        st.sampled_from(sorted({name for names in NAMES.values() for name in names} | {"SLURM_PROCID", "MASTER_PORT"})), st.text()
    )
)
def test_any_environment_is_a_place_or_a_users_mistake(environment: dict[str, str]) -> None:
    try:
        place = find_place(environment)
    except UserError:
        return
    assert 0 <= place.rank < place.size
    assert 0 <= place.local_rank < place.local_size <= place.size


def test_slurm_counts_tasks_by_node_and_names_the_first_host() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "11", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_LOCALID": "2"}
    ids = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"}
    place = find_place(step | ids | {"SLURM_PROCID": "10", "SLURM_NODEID": "2"})
    assert (place.local_size, place.master_address, place.launcher) == (3, "gpu07", "SLURM")
    assert find_place(step | ids | {"SLURM_PROCID": "2", "SLURM_NODEID": "0"}).master_port == place.master_port
    assert find_place(step | ids | {"SLURM_PROCID": "2", "SLURM_NODEID": "0", "SLURM_STEP_ID": "1"}).master_port != place.master_port


def test_a_slurm_jobs_own_script_is_no_rank() -> None:
    script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_TASKS_PER_NODE": "4(x2)"}
    assert find_place(script) == Place()


def test_pmi_under_srun_takes_the_local_rank_from_slurm() -> None:
    step = described("SLURM", [2, 3], 1, 1)
    assert find_place(step | {"PMI_RANK": "3", "PMI_SIZE": "5"}).local_rank == 1
    assert find_place(step | described("PMI", [4, 4], 1, 2) | {"MASTER_ADDR": "n3"}).local_rank == 2


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "a"}, "RANK=2 of WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE=two: expected a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "export MASTER_ADDR=HOST"),
        (described("Open MPI", [1, 1], 0, 0), "mpirun -x MASTER_ADDR=HOST"),
        (described("PMI", [1, 1], 0, 0), "mpirun -genv MASTER_ADDR HOST"),
        (described("torch", [2], 0, 0) | {"MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "between 1 and 65535"),
        (described("SLURM", [1, 1], 1, 0) | {"SLURM_STEP_TASKS_PER_NODE": "1"}, "says nothing of this node"),
    ],
)
def test_what_a_launcher_leaves_out_is_asked_for(environment: dict[str, str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        find_place(environment)


@st.composite
def host_lists(draw: st.DrawFn) -> str:
    """A list of hosts as SLURM writes it."""
    lowest = st.integers(0, 99)
    numbers = st.builds(
        lambda first, more, width: f"[{first:0{width}}-{first + more:0{width}},{first + more + 2:0{width}}]",
        lowest,
        lowest,
        st.integers(1, 4),
    )
    names = st.builds(
        lambda name, ranges: "".join([name, *ranges]), st.from_regex(r"[a-z]{1,4}-?", fullmatch=True), st.lists(numbers, max_size=2)
    )
    return ",".join(draw(st.lists(names, min_size=1, max_size=3)))


@pytest.mark.skipif(shutil.which("scontrol") is None, reason="needs SLURM's scontrol (Debian: slurm-client)")
def test_the_first_host_is_the_one_that_scontrol_lists_first(tmp_path: Any) -> None:
    configuration = tmp_path / "slurm.conf"
    configuration.write_text("ClusterName=none\nSlurmctldHost=none\nNodeName=none\n")
    variables = {**os.environ, "SLURM_CONF": str(configuration)}

    @given(host_lists())
    def agrees(hosts: str) -> None:
        listed = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True, env=variables)
        assert first_of_hosts(hosts) == listed.stdout.split()[0]

    agrees()


def test_a_mistake_is_said_by_the_first_rank_alone_whatever_the_launcher() -> None:
    program = "import sys; from lm1b.errors import exit_with; exit_with('a mistake', 2)"
    for rank in (0, 1):
        variables = without_place(os.environ) | described("SLURM", [2], 0, rank)
        done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, cwd=REPOSITORY)
        assert (done.returncode, done.stderr) == (2, "" if rank else "lm1b: error: a mistake\n"), json.dumps(variables)
