"""Every command of the READMEs, run as it stands there with a tiny run's paths put in."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_runs import DEEPSPEED, fill, preprocess_and_train, run
from documents import blocks, commands_of, documents
from parts.cluster.cluster import Cluster
from parts.cluster.needs import what_is_missing
from tiny import REPOSITORY, free_port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("readme"))


@pytest.fixture(scope="module")
def trained(folder: Path) -> subprocess.CompletedProcess[str]:
    return preprocess_and_train(folder)


@pytest.fixture(scope="module")
def exported(folder: Path, trained: subprocess.CompletedProcess[str]) -> Path:
    """The trained model as the README exports it."""
    done = run([sys.executable, "launch/export.py", "--run", str(folder / "run"), "--out", str(folder / "model")])
    assert done.returncode == 0, done.stderr
    return folder / "model"


def commands_of_the_readme() -> list[str]:
    """Every line of the shell blocks of all READMEs, without comments."""
    return [line for text in documents().values() for line in commands_of(text)]


def as_the_tiny_run_s(line: str) -> str:
    """One name for all configs, runs and models: the same command for another of them is not run twice."""
    return re.sub(r"\b(runs|models)/\w+", r"\1/run", re.sub(r"configs/\w+\.json", "configs/run.json", line))


README_COMMANDS = list(
    {
        as_the_tiny_run_s(line): line
        for line in commands_of_the_readme()
        if line.startswith(("python ", "deepspeed "))
        and not any(part in line for part in ("s3://", "pieces", "runs/gated", "learning_curve"))
    }.values()
)  # others: test_remote_commands.py, test_pieces_commands.py, test_learning_curve.py, and below


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    """Two hosts that share the tiny run's folder."""
    with Cluster(hosts=2, workplace=folder) as cluster:
        yield cluster


@pytest.mark.skipif(what_is_missing() is not None, reason=str(what_is_missing()))
@pytest.mark.parametrize(
    "line", [line for line in README_COMMANDS if "--hostfile" in line and "--no_ssh" not in line and "--launcher" not in line], ids=str
)  # others: test_launching.py
def test_a_command_of_the_readme_for_a_cluster(
    folder: Path, trained: subprocess.CompletedProcess[str], cluster: Cluster, line: str
) -> None:
    """Run on the first of two hosts, launched over ssh, as it stands there with the tiny run's paths put in."""
    line = re.sub(r"configs/\w+\.json", str(folder / "run.json"), line).replace("--hostfile hostfile", f"--hostfile {cluster.hostfile}")
    done = cluster.run(shlex.split(re.sub(r"\bruns/\w+", str(folder / "run"), line)), 240, REPOSITORY)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=pytest.mark.long if "cluster.py faults" in line else ())
        for line in README_COMMANDS
        if "--hostfile" not in line
    ],
    ids=str,
)
def test_a_command_of_the_readme(
    folder: Path, trained: subprocess.CompletedProcess[str], exported: Path, tmp_path: Path, line: str
) -> None:
    """Run as it stands there, with the tiny run's paths put in."""
    line = re.sub(r"\bmodels/\w+", str(tmp_path / "model" if "launch/export.py" in line else exported), line)
    if "tools/cluster" in line and (missing := what_is_missing()):
        pytest.skip(missing)
    line = line.replace("tools/cluster.py run", f"tools/cluster.py run --shared {folder}")
    small = ["softmax.samples=60", "model.hidden=32", "model.embedding=32"]
    if "tools/cluster.py traffic" in line:
        line += f" --shared {folder} --only bytes --hosts 2 --vocabularies 2000 --lanes 4 --turns 1 --steps 2 --set " + " --set ".join(
            small
        )
    line = line.replace("tools/cluster.py faults --hosts 3", "tools/cluster.py faults --hosts 2 --only killed --on 2 --time-limit 5")
    sentences = str(folder / "corpus" / "heldout-monolingual.tokenized.shuffled" / "news.en.heldout-00001-of-00002")
    line = line.replace("--kills 40", "--kills 1 --phases preprocessing --only kills")
    if "tools/benchmark.py" in line:
        small.append("batches.lanes=4")
        line += " --device cpu --repeats 1 --shapes lstm_512 --vocabulary 2000 --only training logging evaluation " + " ".join(
            f"--set {part}" for part in small
        )
    else:
        line = re.sub(r"configs/\w+\.json", str(folder / "run.json"), line)
    if "sequence_task.py" in line:
        tiny = ["training.updates=4", "training.evaluate_every=2", "task.train_size=64", "task.held_out_size=32", "run.seeds=[1]"]
        line += "".join(f" --set {part}" for part in [*tiny, f"run.directory={folder}/tasks/adding_irnn"])
    line = line.replace("runs/tasks/", f"{folder}/tasks/")
    line = line.replace("--into results/papers", f"--into {folder}/kept").replace("--out report", f"--out {folder}/report")
    line = re.sub(r"\b(out\.json|scaling\.png)", lambda found: str(folder / found[0]), line)
    line = re.sub(r"\bruns/\w+", str(folder / "run"), line).replace("my_sentences.txt", sentences)
    line = line.replace("-- deepspeed ", f"-- {shlex.quote(DEEPSPEED)} --master_port {free_port()} ")
    line, _, stdin = line.partition(" < ")
    program, *rest = shlex.split(line)
    arguments = [sys.executable, *rest] if program == "python" else [DEEPSPEED, "--master_port", str(free_port()), *rest]
    done = run(arguments, stdin=Path(stdin.strip() or os.devnull))
    assert done.returncode == 0, done.stdout + done.stderr
    ours = [warning for warning in done.stderr.splitlines() if "Warning:" in warning and "/lm1b/" in warning]
    assert not ours


def python_of_the_readme() -> list[str]:
    found = [block for text in documents().values() for block in blocks(text, "python")]
    assert len(found) > 3
    return found


def test_the_readmes_cell_is_trained_scored_and_asked_as_any_other(
    folder: Path, trained: subprocess.CompletedProcess[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two ranks, with the evaluator beside them; a stack of two layers, whose gradients are those of autograd."""
    (block,) = (block for block in python_of_the_readme() if "add_cell(" in block)
    (tmp_path / "minimal_gated.py").write_text(block)
    lines = [line for line in commands_of_the_readme() if "runs/gated" in line]
    assert [line.split()[0] for line in lines] == ["deepspeed", "python"]
    train, evaluate = (re.sub(r"\bruns/gated", str(folder / "gated"), line) for line in lines)
    train = re.sub(r"configs/\w+\.json", str(folder / "run.json"), train) + " --set training.total_steps=12"
    for name in ("", str(tmp_path / "missing.py")):
        monkeypatch.setenv("LM1B_CELLS", name)
        done = run([sys.executable, *shlex.split(train)[3:]])
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert ("missing.py: no such file" if name else "model.cell: no such cell; expected one of irnn, np_rnn") in done.stderr
    monkeypatch.setenv("LM1B_CELLS", str(tmp_path / "minimal_gated.py"))
    done = run([DEEPSPEED, "--master_port", str(free_port()), *shlex.split(train)[1:]])
    assert done.returncode == 0, done.stdout + done.stderr
    done = run([sys.executable, *shlex.split(evaluate)[1:]])
    assert done.returncode == 0, done.stderr
    assert "word perplexity" in done.stdout
    done = run([sys.executable, "launch/sample.py", "--run", str(folder / "gated"), "--prompt", "w1"])
    assert done.returncode == 0, done.stderr


def test_the_readmes_python_runs(folder: Path, trained: subprocess.CompletedProcess[str], exported: Path, tmp_path: Path) -> None:
    for number, block in enumerate(python_of_the_readme()):
        script = tmp_path / f"block_{number}.py"
        block = re.sub(r"\bmodels/\w+", str(exported), re.sub(r"\bruns/\w+", str(folder / "run"), block))
        script.write_text("candidates = ['w1 w2', 'w3']\n" + block)
        done = run([sys.executable, str(script)])
        assert done.returncode == 0, done.stderr


def test_the_readmes_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = {target for line in commands_of_the_readme() for target in re.findall(r"\bmake ([\w-]+)", line)}
    assert {"train", "test"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile, target
    assert any("launch/preprocess.py" in line for line in README_COMMANDS)
