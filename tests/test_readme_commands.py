"""Every command and Python block of the READMEs, run as it stands there with a tiny run's paths put in; whose tests are elsewhere apart."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from command_runs import run, train
from documents import blocks, documents
from readme_commands import commands_of_the_readme, commands_run_by, put_in, run_line
from tiny import REPOSITORY, write_corpus, write_settings

from lm1b.files import read_json_lines

STEPS = 20
_SIZES = ["training.updates=4", "training.evaluate_every=2", "task.train_size=64", "task.held_out_size=32"]
TASK = [*_SIZES, "run.seeds=[1]", "search.learning_rates=[0.001,0.01]"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus, preprocessed, and the trained run of `run.json`."""
    folder = tmp_path_factory.mktemp("readme")
    write_corpus(folder / "corpus")
    config = write_settings(folder, "run", training={"total_steps": STEPS}, evaluation={"lanes": 4})
    for done in (run([sys.executable, "launch/preprocess.py", "--config", str(config)]), train(config, ranks=1)):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """The trained model, exported."""
    done = run([sys.executable, "launch/export.py", "--run", str(folder / "run"), "--out", str(folder / "model")])
    assert done.returncode == 0, done.stderr
    return folder / "model"


@pytest.mark.parametrize("line", commands_run_by("test_readme_commands"), ids=str)
def test_a_command_of_the_readme(folder: Path, exported: Path, tmp_path: Path, line: str) -> None:
    trains = line.startswith("deepspeed ") and "launch/train.py" in line
    line = re.sub(r"\bmodels/\w+", str(tmp_path / "model" if "launch/export.py" in line else exported), line)
    if "sequence_task.py" in line:
        by_ranks = line.startswith("deepspeed ")
        line += "".join(f" --set {part}" for part in [*TASK, f"run.directory={folder}/tasks/{'by_ranks' if by_ranks else 'adding_irnn'}"])
        line += "" if by_ranks else " --processes 1"
    else:
        line = put_in(line.replace("runs/tasks/", f"{folder}/tasks/"), folder)
    if trains:
        line += f" --set run.directory={tmp_path}/run"  # a new one
    line = line.replace("--into results/papers", f"--into {folder}/kept").replace("--out report", f"--out {folder}/report")
    sentences = folder / "corpus" / "heldout-monolingual.tokenized.shuffled" / "news.en.heldout-00001-of-00002"
    done = run_line(line.replace("my_sentences.txt", str(sentences)))
    if trains:
        assert f"finished at step {STEPS} of {STEPS}" in done.stdout


def python_of_the_readme() -> list[str]:
    found = [block for text in documents().values() for block in blocks(text, "python")]
    assert len(found) > 3
    return found


def test_the_readmes_cell_is_trained_scored_and_asked_as_any_other(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On two ranks, with the evaluator beside them; a stack of two layers, whose gradients are those of autograd."""
    (block,) = (block for block in python_of_the_readme() if "add_cell(" in block)
    (tmp_path / "minimal_gated.py").write_text(block)
    train, evaluate = commands_run_by("the cell of one's own")
    train, evaluate = (put_in(line.replace("runs/gated", f"{folder}/gated"), folder) for line in (train, evaluate))
    train += " --set training.total_steps=12 --set training.evaluate_alongside=true"
    for name in ("", str(tmp_path / "missing.py")):
        monkeypatch.setenv("LM1B_CELLS", name)
        done = run([sys.executable, *train.split()[3:]])
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert ("missing.py: no such file" if name else "model.cell: no such cell; expected one of irnn, np_rnn") in done.stderr
    monkeypatch.setenv("LM1B_CELLS", str(tmp_path / "minimal_gated.py"))
    run_line(train)
    assert [line["step"] for line in read_json_lines(folder / "gated" / "evaluations.jsonl")] == [12]
    assert "word perplexity" in run_line(evaluate).stdout
    run_line(f"python launch/sample.py --run {folder}/gated --prompt w1")


def test_the_readmes_python_runs(folder: Path, exported: Path, tmp_path: Path) -> None:
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
