"""Several hosts, DeepSpeed's own launcher over ssh, a network between them that breaks: the cluster in a box of tools/cluster.py."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from parts.cluster.cluster import Cluster
from parts.cluster.harm import FAULTS, Trial
from parts.cluster.needs import what_is_missing
from parts.cluster.traffic import StepMeter
from test_preprocess import files_of
from tiny import REPOSITORY, environment, write_corpus, write_settings

from lm1b.files import read_json, read_json_lines

MISSING = what_is_missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

TOOL = [sys.executable, "tools/cluster.py", "run"]
STEPS, STEPS_RESUMED = 20, 30


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that hosts share, with a tiny corpus: not yet preprocessed."""
    folder = tmp_path_factory.mktemp("shared")
    write_corpus(folder / "corpus")
    write_settings(folder, "run", training={"total_steps": STEPS, "gap_every": None}, evaluation={"lanes": 4})
    return folder


@pytest.fixture(scope="module")
def cluster(workplace: Path) -> Iterator[Cluster]:
    with Cluster(hosts=2, workplace=workplace, rate="1gbit") as cluster:
        yield cluster


def ran(cluster: Cluster, *arguments: str) -> str:
    """What a command said that ran well on the first host."""
    done = cluster.run(list(arguments), 240, REPOSITORY)
    assert done.returncode == 0, done.stdout
    return done.stdout


def launch(cluster: Cluster, script: str, *arguments: str) -> str:
    """The README's command for several hosts."""
    return ran(cluster, "deepspeed", "--hostfile", cluster.hostfile, script, *arguments)


def losses(run: Path) -> list[float]:
    return [line["nats_per_word"] for line in read_json_lines(run / "metrics.jsonl")]


@pytest.fixture(scope="module")
def trained(cluster: Cluster, workplace: Path) -> str:
    """Preprocessed on one host, trained on both, from the hosts' own launcher; what that said."""
    ran(cluster, "python", "launch/preprocess.py", "--config", str(workplace / "run.json"))
    return launch(cluster, "launch/train.py", "--config", str(workplace / "run.json"))


@pytest.fixture(scope="module")
def alone(workplace: Path, trained: str) -> Path:
    """The run that one process makes of the same tokens, without a launcher."""
    command = [sys.executable, "launch/train.py", "--config", str(workplace / "run.json")]
    more = ["--set", f"run.directory={workplace / 'alone'}", "--set", f"training.total_steps={STEPS_RESUMED}"]
    done = subprocess.run([*command, *more], env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return workplace / "alone"


def test_two_hosts_over_ssh_train_as_one_process_does(workplace: Path, trained: str, alone: Path) -> None:
    assert f"finished at step {STEPS} of {STEPS}" in trained
    assert read_json(workplace / "run" / "environment.json")["hosts"] == ["node1", "node2"]
    assert losses(workplace / "run") == pytest.approx(losses(alone)[:STEPS], rel=1e-4)


def test_two_hosts_go_on_and_evaluate_as_one_process_does(cluster: Cluster, workplace: Path, trained: str, alone: Path) -> None:
    more = ["--set", f"training.total_steps={STEPS_RESUMED}"]
    said = launch(cluster, "launch/train.py", "--config", str(workplace / "run.json"), *more)
    assert f"going on at step {STEPS}" in said
    assert losses(workplace / "run") == pytest.approx(losses(alone), rel=1e-4)
    said = launch(cluster, "launch/evaluate.py", "--run", str(workplace / "run"))
    command = [sys.executable, "launch/evaluate.py", "--run", str(alone), "--lanes", "4"]
    subprocess.run(command, env=environment(), cwd=REPOSITORY, capture_output=True, check=True, timeout=240)
    (one,), (other,) = (read_json_lines(run / "evaluations.jsonl") for run in (workplace / "run", alone))
    assert f"word perplexity {one['word_perplexity']:.2f}" in said
    assert one["predictions"] == other["predictions"]
    assert one["word_perplexity"] == pytest.approx(other["word_perplexity"], rel=1e-4)


def test_two_hosts_preprocess_as_one_does(cluster: Cluster, workplace: Path, trained: str) -> None:
    launch(cluster, "launch/preprocess.py", "--config", str(workplace / "run.json"), "--set", f"tokens.directory={workplace / 'by_two'}")
    assert files_of(workplace / "by_two") == files_of(workplace / "tokens")


def test_hosts_that_do_not_share_the_tokens_directory_are_told_so(cluster: Cluster, workplace: Path) -> None:
    arguments = ["launch/preprocess.py", "--config", str(workplace / "run.json"), "--set", "tokens.directory=/tmp/own_tokens"]
    done = cluster.run(["deepspeed", "--hostfile", cluster.hostfile, *arguments], 120, REPOSITORY)
    assert done.returncode != 0
    (line,) = [line for line in done.stdout.splitlines() if "lm1b: error:" in line]
    assert "/tmp/own_tokens: rank 1 (on node2) does not see what rank 0 (on node1) writes there" in line


def test_four_hosts_train_as_one_process_does_and_what_they_send_is_counted(workplace: Path, trained: str, alone: Path) -> None:
    run = workplace / "four"
    with Cluster(hosts=4, workplace=workplace) as cluster, StepMeter(cluster, run / "metrics.jsonl", 5, STEPS - 5) as meter:
        launch(cluster, "launch/train.py", "--config", str(workplace / "run.json"), "--set", f"run.directory={run}")
    assert read_json(run / "environment.json")["hosts"] == [f"node{number}" for number in range(1, 5)]
    assert losses(run) == pytest.approx(losses(alone)[:STEPS], rel=1e-4)
    measured = meter.result
    assert measured
    assert measured.first_step >= 5
    for traffic in measured.hosts:
        # At least a share of the core's 4,048 gradients, in float32, there and back.
        assert traffic.sent / measured.steps > 4 * 4048
        assert traffic.received / measured.steps > 4 * 4048


def test_a_host_that_is_cut_off_is_named_by_the_others_and_the_run_goes_on_without_it(tmp_path: Path) -> None:
    with Cluster(hosts=2, workplace=tmp_path, variables={"LM1B_TIMEOUT_SECONDS": "5"}) as cluster:
        trial = Trial(cluster, "run", limit_seconds=45)
        outcome = trial.strike(FAULTS["cut"], 2)
        assert outcome.problem is None, trial.output.read_text()
        assert outcome.launcher not in (0, None)
        assert len(outcome.said["node2"]) == 1, "the host that is cut off ends too"
        trial.go_on(outcome, [cluster.host(1)])
    assert outcome.problem is None
    assert outcome.resumed_at == 20


def test_ctrl_c_saves_on_all_hosts(tmp_path: Path) -> None:
    with Cluster(hosts=2, workplace=tmp_path) as cluster:
        trial = Trial(cluster, "run", limit_seconds=45)
        said = trial.interrupt()
        assert re.search(r"stopped (on request \(\w+\)|because its launcher has gone) at step", said)  # the launcher takes its ssh along
        assert trial.saved_step() >= 25


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


def wait_for(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.1)
