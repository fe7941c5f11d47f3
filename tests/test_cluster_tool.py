"""A cluster in a box itself, and what tools/cluster.py leaves behind. What runs on it: test_cluster.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from parts.cluster.cluster import Cluster
from parts.cluster.needs import what_is_missing
from readme_commands import commands_run_by, run_line
from tiny import REPOSITORY, environment
from waiting import wait_for

MISSING = what_is_missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

TOOL = [sys.executable, "tools/cluster.py", "run"]


def test_hosts_share_the_network_and_one_folder_alone(tmp_path: Path) -> None:
    with Cluster(hosts=2, workplace=tmp_path) as cluster:
        for host in cluster.hosts:
            script = f"hostname; hostname -I; ls ~/.ssh | wc -l; echo {host} > /tmp/own; echo {host} > /dev/shm/own; echo {host} >> all"
            done = host.run(["sh", "-c", script])
            assert done.stdout.split() == [host.name, host.address, "4"], done.stdout
        for host in cluster.hosts:
            assert host.run(["cat", "/tmp/own", "/dev/shm/own", "all"]).stdout.split() == [host.name, host.name, "node1", "node2"]
        for folder in (REPOSITORY, "/etc", "/usr"):
            assert cluster.run(["touch", f"{folder}/lm1b-written"]).returncode != 0
        assert cluster.run(["touch", f"{tmp_path.parent}/lm1b-written"]).returncode == 0  # in its own /tmp
        assert not (tmp_path.parent / "lm1b-written").exists()
        seen = cluster.run(["ps", "-e", "-o", "comm="]).stdout.split()
        assert len(seen) == 3, seen  # the first process, the ssh server, ps
        assert cluster.run(["ssh", "node2", "hostname"]).stdout == "node2\n"
        assert (tmp_path / "all").read_text() == "node1\nnode2\n"


def test_the_links_keep_their_rate_and_count_what_goes_through(tmp_path: Path) -> None:
    with Cluster(hosts=2, workplace=tmp_path, rate="40mbit") as cluster:
        started_at = time.monotonic()
        done = cluster.run(["sh", "-c", "ssh node2 head -c 5000000 /dev/zero | wc -c"])
        seconds = time.monotonic() - started_at
        assert done.stdout.strip() == "5000000"
        assert seconds > 0.8
        first, second = cluster.traffic()
        assert first.received == pytest.approx(5e6, rel=0.1)
        assert second.sent == pytest.approx(5e6, rel=0.1)


# What the tool leaves behind.


def links() -> list[str]:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.splitlines()


def inside(token: str) -> list[psutil.Process]:
    """Processes whose command line holds a word that nobody else's does."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(token in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def networks() -> set[str]:
    """Of all processes."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{process.pid}/ns/net"))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_to_the_tool_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    before, mounts = links(), Path("/proc/self/mounts").read_text().count("\n")
    token = f"98765.{os.getpid()}{int(number)}"
    tool = subprocess.Popen([*TOOL, "--shared", str(tmp_path), "--", "sleep", token], cwd=REPOSITORY, env=environment())
    try:
        wait_for(lambda: len([process for process in inside(token) if process.name() == "sleep"]) == 1)
        (sleeper,) = [process for process in inside(token) if process.name() == "sleep"]
        network = os.readlink(f"/proc/{sleeper.pid}/ns/net")
        assert network in networks()
        tool.send_signal(number)
        status = tool.wait(60)
        assert status == {signal.SIGKILL: -9}.get(number, 128 + number)
        wait_for(lambda: not inside(token) and network not in networks())
    finally:
        tool.kill()
        tool.wait()
    assert links() == before
    assert Path("/proc/self/mounts").read_text().count("\n") == mounts


def test_the_tool_gives_the_hostfile_and_the_commands_status(tmp_path: Path) -> None:
    script = tmp_path / "deepspeed"
    script.write_text('#!/bin/sh\ncat "$2"; exit 7\n')
    script.chmod(0o755)
    command = [*TOOL, "--hosts", "3", "--slots", "2", "--delay", "1ms", "--shared", str(tmp_path), "--", str(script), "train.py"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 7, done.stderr
    assert "node1 slots=2\nnode2 slots=2\nnode3 slots=2\n" in done.stdout
    assert "deepspeed --hostfile" in done.stdout


@pytest.mark.parametrize(
    ("enter", "options", "said"),
    [
        (["unshare", "--user"], ["--", "true"], "needs root"),
        (["env", "PATH=/nowhere"], ["--", "true"], "apt-get install"),
        ([], ["--rate", "fast", "--", "true"], "rate 'fast'"),
        ([], ["--shared", "/", "--", "true"], "share a folder below"),
        ([], ["--hosts", "0", "--", "true"], "1 to 64 hosts"),
        ([], [], "no command given"),
    ],
)
def test_what_the_tool_cannot_do_is_one_line_and_status_2(enter: list[str], options: list[str], said: str) -> None:
    done = subprocess.run([*enter, *TOOL, *options], cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    "line",
    [pytest.param(line, marks=pytest.mark.long if "faults" in line else ()) for line in commands_run_by("test_cluster_tool")],
    ids=str,
)
def test_a_command_of_the_readme(tmp_path: Path, line: str) -> None:
    if "cluster.py traffic" in line:
        line += f" --shared {tmp_path} --only bytes --hosts 2 --vocabularies 2000 --lanes 4 --turns 1 --steps 2"
        line += "".join(f" --set {part}" for part in ("softmax.samples=60", "model.hidden=32", "model.embedding=32"))
    run_line(line.replace("faults --hosts 3", "faults --hosts 2 --only killed --on 2 --time-limit 5"))
