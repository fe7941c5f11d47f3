"""The other launchers of launch/cluster.md, each really run: two ranks that learn what one process learns."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_runs import train
from documents import commands_of, section
from slurm_box import NODES, needs_slurm, slurm_box
from ssh_server import needs_ssh, ssh_server
from tiny import REPOSITORY, WITHOUT_MLFLOW, environment, free_port, write_settings
from training_runs import events, losses
from waiting import wait_for

from lm1b.files import read_json_lines
from lm1b.training.run_state import newest_step, run_state, training_ranks

STEPS, ENDLESS = 12, 1_000_000
BIN = str(Path(sys.executable).parent)
VARIABLES = {"PYTHONPATH": f"{WITHOUT_MLFLOW}:{REPOSITORY}", "PATH": f"{BIN}:{os.environ['PATH']}"}
needs_mpi = pytest.mark.skipif(shutil.which("mpirun") is None or shutil.which("ompi_info") is None, reason="needs Debian's openmpi-bin")


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, a hostfile of two hosts, and the run `one` of a single process."""
    folder = tmp_path_factory.mktemp("launching")
    for name in ("corpus", "tokens"):
        (folder / name).symlink_to(tiny_folder / name)
    (folder / "hostfile").write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    done = train(settings(folder, "one"), ranks=1)
    assert done.returncode == 0, done.stderr
    return folder


def settings(folder: Path, run: str, steps: int = STEPS) -> Path:
    return write_settings(folder, run, training={"total_steps": steps, "gap_every": None}, checkpoints={"every": ENDLESS})


def readme_command(folder: Path, run: str, *words: str, steps: int = STEPS) -> str:
    """The one line of launch/cluster.md that holds all these words, for two ranks of this machine and the tiny corpus."""
    lines = commands_of(section("Other launchers"))
    (line,) = [line for line in lines if all(word in line for word in words) and "launch/train.py" in line]
    for before, after in (
        ("hostfile hostfile", f"hostfile {folder}/hostfile"),
        ("node1", "127.0.0.1"),
        ("-np 8", "-np 2"),
        ("_node 4", "_node 1"),
    ):
        line = line.replace(before, after)
    line = line.replace("ntasks-per-node=4", "ntasks-per-node=1").replace("eth0", "lo").replace("-x PATH", "-x PATH -x PYTHONPATH")
    return re.sub(r"configs/\w+\.json", str(settings(folder, run, steps)), line)


def on_each_host(line: str) -> list[str]:
    """The same line for both hosts, on a port of its own."""
    line = line.replace("--master_port 29500", "").replace("--master_addr", f"--master_port {free_port()} --master_addr")
    return [line, line.replace("--node_rank 0", "--node_rank 1")]


def run_all(commands: list[str], variables: dict[str, str]) -> str:
    """Run command lines at the same time, to their end; what they said."""
    own = environment(**{**VARIABLES, **variables})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "stdin": subprocess.DEVNULL}
    processes = [subprocess.Popen(shlex.split(command), env=own, cwd=REPOSITORY, start_new_session=True, **pipes) for command in commands]
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return "".join(outputs)


def assert_learned_the_same(folder: Path, run: str) -> None:
    assert any(" steps" in text and "2 ranks" in text for text in events(folder, run))
    assert losses(folder, run)[:STEPS] == pytest.approx(losses(folder, "one"), rel=1e-4)


def test_deepspeed_on_each_host(folder: Path) -> None:
    said = run_all(on_each_host(readme_command(folder, "no_ssh", "deepspeed ", "--no_ssh ")), {})
    assert_learned_the_same(folder, "no_ssh")
    assert said.count("lm1b: finished") == 1


@pytest.fixture(scope="module")
def open_mpi(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What mpirun needs to be run as root, and to reach the second host with this program's path."""
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        yield {"PATH": f"{BIN}:{server.path()}", **as_root, "OMPI_MCA_plm_rsh_agent": f"ssh -p {server.port}"}


@needs_ssh
@needs_mpi
@pytest.mark.parametrize("words", [("mpirun ",), ("deepspeed ", "--launcher openmpi")], ids=["mpirun", "deepspeed"])
def test_open_mpi(folder: Path, open_mpi: dict[str, str], words: tuple[str, ...]) -> None:
    run = f"{words[0].strip()}_mpi"
    run_all([readme_command(folder, run, *words)], open_mpi)
    assert_learned_the_same(folder, run)


def kill_the_first(folder: Path, run: str, commands: list[str]) -> None:
    """Begin an endless training by its launchers; after STEPS steps the first launcher is killed: the ranks save and end."""
    directory, output = folder / run, folder / f"{run}.output"
    own = environment(**VARIABLES, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    with open(output, "w") as file:
        where = {"env": own, "cwd": REPOSITORY, "stdout": file, "stderr": file, "stdin": subprocess.DEVNULL}
        processes = [subprocess.Popen(shlex.split(command), **where) for command in commands]
    try:
        wait_for(lambda: len(read_json_lines(directory / "metrics.jsonl")) > STEPS, 240, output.read_text)
        ranks = training_ranks(directory)
        processes[0].kill()
        wait_for(lambda: all(rank.condition() == "gone" for rank in ranks), 30, output.read_text)
        for other in processes[1:]:
            other.wait(60)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for rank in training_ranks(directory):
            rank.send(signal.SIGKILL)
    assert len(ranks) == 2
    assert "stopped because its launcher has gone" in events(folder, run)[-1]
    assert newest_step(directory) > STEPS


def test_torchrun_on_each_host_whose_first_is_then_killed(folder: Path) -> None:
    kill_the_first(folder, "torchrun", on_each_host(readme_command(folder, "torchrun", "torchrun ", steps=ENDLESS)))
    assert_learned_the_same(folder, "torchrun")


@needs_mpi
def test_mpirun_that_was_killed(folder: Path) -> None:
    config = settings(folder, "killed", ENDLESS)
    kill_the_first(folder, "killed", [f"mpirun -np 2 --oversubscribe --bind-to none python launch/train.py --config {config}"])


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm_box(tmp_path_factory.mktemp("slurm")) as variables:
        yield {**variables, "PATH": f"{BIN}:{variables['PATH']}"}


@needs_slurm
@pytest.mark.parametrize("words", [("srun ",), ("deepspeed ", "--launcher slurm")], ids=["srun", "deepspeed"])
def test_slurm(folder: Path, slurm: dict[str, str], words: tuple[str, ...]) -> None:
    run = f"{words[0].strip()}_slurm"
    run_all([readme_command(folder, run, *words)], slurm)
    assert_learned_the_same(folder, run)


@needs_slurm
@pytest.mark.long
def test_a_batch_job_goes_back_into_the_queue_before_its_time_limit_until_it_has_finished(
    folder: Path, slurm: dict[str, str], tmp_path: Path
) -> None:
    """--signal=TERM@55 and the shortest limit that SLURM knows, a minute: the ranks are asked to save a few seconds after the start."""
    directory = folder / "batch"
    config = settings(folder, "batch", ENDLESS)
    own = environment(**{**VARIABLES, **slurm})
    size = ["--nodes", str(len(NODES)), "--ntasks-per-node", "1", "--gpus-per-node", "0", "--cpus-per-task", "1"]
    options = ["--parsable", "--time", "1", "--signal", "TERM@30", "--output", str(tmp_path / "output"), *size]
    command = ["sbatch", *options, "tools/slurm/train.sbatch", str(config), "--set", "training.log_every=2"]
    job = subprocess.run(command, env=own, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()

    def said() -> str:
        return (tmp_path / "output").read_text() if (tmp_path / "output").exists() else "no output"

    def ask(*words: str) -> str:
        return subprocess.run(words, env=own, capture_output=True, text=True).stdout.strip()

    try:
        wait_for(lambda: newest_step(directory) > 0, 120, said)
        wait_for(lambda: run_state(directory) == "stopped", 150, said)  # SLURM looks at its limits once a minute
        first = newest_step(directory)
        assert any("stopped on request (SIGTERM)" in text for text in events(folder, "batch"))
        wait_for(lambda: "Restarts=1" in ask("scontrol", "show", "job", job), 60, said)
        ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM lets a job wait for two minutes after it was queued again
        wait_for(
            lambda: len(training_ranks(directory)) == 2 and read_json_lines(directory / "metrics.jsonl")[-1]["step"] > first, 200, said
        )
        assert any(f"going on at step {first}" in text for text in events(folder, "batch"))
    finally:
        ask("scancel", job)
        wait_for(lambda: not ask("squeue", "--noheader", "--job", job), 60, said)
