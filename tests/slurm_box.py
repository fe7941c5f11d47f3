"""A SLURM of the tests' own: two nodes on this machine, its own keys and ports, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from tiny import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
needs_slurm = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0, reason=f"needs root, slurm-wlm and munge from Debian (missing: {', '.join(MISSING) or 'root'})"
)
NODES = ("127.0.0.1", "127.0.0.2")  # names that lead here, since ranks meet at the first node

SETTINGS = """ClusterName=box
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
RequeueExit=99
KillWait=60
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def slurm_box(folder: Path) -> Generator[dict[str, str]]:
    """Run one, with its files in `folder`; the variables that make SLURM's commands use it."""
    folder.chmod(0o755)
    text = SETTINGS.format(folder=folder, controller=free_port())
    text += "".join(f"NodeName={node} NodeHostname=localhost NodeAddr={node} Port={free_port()} CPUs=8\n" for node in NODES)
    (folder / "slurm.conf").write_text(text)
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(secrets.token_bytes(1024))
    (folder / "munge.key").chmod(0o400)
    files = {
        "socket": "munge.socket",
        "key-file": "munge.key",
        "pid-file": "munged.pid",
        "log-file": "munged.log",
        "seed-file": "munge.seed",
    }
    variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
    commands = [
        ["munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in files.items())],
        ["slurmctld", "-D", "-c"],
    ]
    commands += [["slurmd", "-D", "-N", node] for node in NODES]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with open(folder / f"{command[0]}.out", "ab") as output:
                processes.append(subprocess.Popen(command, env={**os.environ, **variables}, stdout=output, stderr=output))
            if command[0] == "munged":
                _wait_for(lambda: (folder / "munge.socket").exists(), folder)
        _wait_for(lambda: _idle_nodes(variables) == len(NODES), folder)
        yield variables
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def _idle_nodes(variables: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--format", "%T"]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True).stdout.split().count("idle")


def _wait_for(condition: Callable[[], bool], folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("\n".join(file.read_text()[-2000:] for file in sorted(folder.glob("*.out"))))
        time.sleep(0.1)
