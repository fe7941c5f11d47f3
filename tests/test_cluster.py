"""Training on several hosts by DeepSpeed's own launcher over ssh, on the cluster in a box of tools/cluster.py."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_runs import run, train
from parts.cluster.cluster import Cluster
from parts.cluster.harm import FAULTS, Trial
from parts.cluster.host import signal_terminal
from parts.cluster.needs import what_is_missing
from parts.cluster.traffic import StepMeter, StepTraffic
from readme_commands import commands_run_by, put_in, run_line
from tiny import REPOSITORY, tiny_settings, write_corpus, write_settings
from training_runs import events, losses
from waiting import wait_for

from lm1b.config import parse_config
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.files import read_json, read_json_lines
from lm1b.training.run_state import newest_step

MISSING = what_is_missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

CHECK, TRAIN, EVALUATE, EXCLUDE, RUN = commands_run_by("test_cluster")
STEPS, STEPS_RESUMED = 20, 35


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that hosts share, with a tiny corpus and its tokens."""
    folder = tmp_path_factory.mktemp("shared")
    write_corpus(folder / "corpus")
    write_settings(folder, "run", training={"total_steps": STEPS, "gap_every": None}, evaluation={"lanes": 4})
    preprocess(parse_config(tiny_settings(folder, "run")), progress=False)
    return folder


@pytest.fixture(scope="module")
def cluster(workplace: Path) -> Iterator[Cluster]:
    with Cluster(hosts=2, workplace=workplace, rate="1gbit") as cluster:
        yield cluster


def told(line: str, cluster: Cluster) -> list[str]:
    """A command of the READMEs for several hosts as words, with the hosts and the tiny run's paths put in."""
    return shlex.split(put_in(line.replace("--hostfile hostfile", f"--hostfile {cluster.hostfile}"), cluster.workplace))


def said_by(cluster: Cluster, line: str, *more: str) -> str:
    """What such a command said on the first host, where it ran well."""
    done = cluster.run([*told(line, cluster), *more], 240, REPOSITORY)
    assert done.returncode == 0, done.stdout
    return done.stdout


# One run's story, by the commands of the READMEs: begun by the tool, gone on with until Ctrl-C, finished without a host, evaluated.


@pytest.fixture(scope="module")
def alone(workplace: Path) -> list[float]:
    """The losses of a run that one process makes of the same tokens."""
    config = write_settings(workplace, "alone", training={"total_steps": STEPS_RESUMED, "gap_every": None})
    done = train(config, ranks=1)
    assert done.returncode == 0, done.stderr
    return losses(workplace, "alone")


@pytest.fixture(scope="module")
def begun(workplace: Path) -> str:
    line = RUN.replace("cluster.py run", f"cluster.py run --shared {workplace}")
    return run_line(put_in(line, workplace)).stdout


def test_two_hosts_over_ssh_train_as_one_process_does(workplace: Path, begun: str, alone: list[float]) -> None:
    assert f"finished at step {STEPS} of {STEPS}" in begun
    assert read_json(workplace / "run" / "environment.json")["hosts"] == ["node1", "node2"]
    assert losses(workplace, "run") == pytest.approx(alone[:STEPS], rel=1e-4)


@pytest.fixture(scope="module")
def interrupted(cluster: Cluster, workplace: Path, begun: str) -> StepTraffic:
    """Trained on without an end until Ctrl-C; what a few steps sent."""
    metrics, output = workplace / "run" / "metrics.jsonl", workplace / "interrupted.output"
    command = [*told(TRAIN, cluster), "--set", "training.total_steps=1000000", "--set", "checkpoints.every=1000000"]
    with open(output, "w") as file, StepMeter(cluster, metrics, STEPS + 5, STEPS_RESUMED - 5) as meter:
        launched = cluster.host(1).start(command, REPOSITORY, stdout=file, stderr=file, start_new_session=True)
        try:
            wait_for(lambda: meter.result and len(read_json_lines(metrics)) >= STEPS_RESUMED, 120, output.read_text)
            signal_terminal(launched, signal.SIGINT)
            assert cluster.settle(45), "still at work after Ctrl-C"
        finally:
            launched.kill()
            launched.wait()
    assert meter.result
    return meter.result


def test_two_hosts_go_on_as_one_process_does_and_what_they_send_is_counted(
    workplace: Path, interrupted: StepTraffic, alone: list[float]
) -> None:
    assert any(f"going on at step {STEPS}" in text for text in events(workplace, "run"))
    assert losses(workplace, "run")[:STEPS_RESUMED] == pytest.approx(alone, rel=1e-4)
    assert interrupted.first_step >= STEPS + 5
    for traffic in interrupted.hosts:
        # At least the half of the core's 4,048 gradients, in float32, there and back.
        assert traffic.sent / interrupted.steps > 4 * 4048
        assert traffic.received / interrupted.steps > 4 * 4048


def test_ctrl_c_saves_on_all_hosts(workplace: Path, interrupted: StepTraffic) -> None:
    said = events(workplace, "run")[-1]
    assert re.search(r"stopped (on request \(\w+\)|because its launcher has gone) at step", said)  # the launcher takes its ssh along
    assert newest_step(workplace / "run") >= STEPS_RESUMED


def test_the_run_goes_on_without_a_host_and_two_evaluate_it_as_one_does(
    cluster: Cluster, workplace: Path, interrupted: StepTraffic
) -> None:
    saved = newest_step(workplace / "run")
    said = said_by(cluster, EXCLUDE, "--set", f"training.total_steps={saved + 3}")
    assert f"going on at step {saved}" in said
    assert f"finished at step {saved + 3}" in said
    assert read_json(workplace / "run" / "environment.json")["hosts"] == ["node1"]
    said = said_by(cluster, EVALUATE)
    done = run([sys.executable, "launch/evaluate.py", "--run", str(workplace / "run")])
    assert done.returncode == 0, done.stderr
    two, one = read_json_lines(workplace / "run" / "evaluations.jsonl")
    assert two["step"] == saved + 3
    assert f"word perplexity {two['word_perplexity']:.2f}" in said
    assert two["predictions"] == one["predictions"]
    assert two["word_perplexity"] == pytest.approx(one["word_perplexity"], rel=1e-6)


def test_the_hosts_are_ready(cluster: Cluster) -> None:
    assert said_by(cluster, CHECK).endswith("2 hosts, 2 ranks: ready\n")


def test_hosts_that_do_not_share_the_tokens_directory_are_told_so(cluster: Cluster, workplace: Path) -> None:
    arguments = ["launch/preprocess.py", "--config", str(workplace / "run.json"), "--set", "tokens.directory=/tmp/own_tokens"]
    done = cluster.run(["deepspeed", "--hostfile", cluster.hostfile, *arguments], 120, REPOSITORY)
    assert done.returncode != 0
    (line,) = [line for line in done.stdout.splitlines() if "lm1b: error:" in line]
    assert "/tmp/own_tokens: rank 1 (on node2) does not see what rank 0 (on node1) writes there" in line


def test_a_host_that_is_cut_off_is_named_by_the_others(tmp_path: Path) -> None:
    with Cluster(hosts=2, workplace=tmp_path, variables={"LM1B_TIMEOUT_SECONDS": "5"}) as cluster:
        trial = Trial(cluster, "run", limit_seconds=45)
        outcome = trial.strike(FAULTS["cut"], 2)
        assert outcome.problem is None, trial.output.read_text()
        assert outcome.launcher not in (0, None)
        assert len(outcome.said["node2"]) == 1, "the host that is cut off ends too"
