"""Every command of the READMEs for several hosts, run on a cluster in a box as it stands there with a tiny run's paths put in."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from parts.cluster.cluster import Cluster
from parts.cluster.needs import what_is_missing
from readme_commands import README_COMMANDS, is_for_hosts, run_as_printed
from tiny import REPOSITORY

pytestmark = pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))


@pytest.fixture(scope="module")
def cluster(readme_folder: Path) -> Iterator[Cluster]:
    """Two hosts that share the tiny run's readme_folder."""
    with Cluster(hosts=2, workplace=readme_folder) as cluster:
        yield cluster


@pytest.mark.parametrize("line", [line for line in README_COMMANDS if is_for_hosts(line)], ids=str)
def test_a_command_of_the_readme_for_a_cluster(
    readme_folder: Path, readme_trained: subprocess.CompletedProcess[str], cluster: Cluster, line: str
) -> None:
    """Run on the first of two hosts, launched over ssh, as it stands there with the tiny run's paths put in."""
    line = re.sub(r"configs/\w+\.json", str(readme_folder / "run.json"), line).replace(
        "--hostfile hostfile", f"--hostfile {cluster.hostfile}"
    )
    done = cluster.run(shlex.split(re.sub(r"\bruns/\w+", str(readme_folder / "run"), line)), 240, REPOSITORY)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=pytest.mark.long if "cluster.py faults" in line else ())
        for line in README_COMMANDS
        if "--hostfile" not in line and "tools/cluster" in line
    ],
    ids=str,
)
def test_a_command_that_makes_its_own_cluster(readme_folder: Path, readme_exported: Path, tmp_path: Path, line: str) -> None:
    run_as_printed(line, readme_folder, readme_exported, tmp_path)
