"""Every command and Python block of the READMEs, run as it stands there with a tiny run's paths put in; tools/ and several hosts apart."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import DEEPSPEED, run
from documents import blocks, documents
from readme_commands import README_COMMANDS, commands_of_the_readme, is_of_launch, run_as_printed
from tiny import REPOSITORY, free_port


@pytest.mark.parametrize("line", [line for line in README_COMMANDS if is_of_launch(line)], ids=str)
def test_a_command_of_the_readme(readme_folder: Path, readme_exported: Path, tmp_path: Path, line: str) -> None:
    run_as_printed(line, readme_folder, readme_exported, tmp_path)


def python_of_the_readme() -> list[str]:
    found = [block for text in documents().values() for block in blocks(text, "python")]
    assert len(found) > 3
    return found


def test_the_readmes_cell_is_trained_scored_and_asked_as_any_other(
    readme_folder: Path, readme_trained: subprocess.CompletedProcess[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two ranks, with the evaluator beside them; a stack of two layers, whose gradients are those of autograd."""
    (block,) = (block for block in python_of_the_readme() if "add_cell(" in block)
    (tmp_path / "minimal_gated.py").write_text(block)
    lines = [line for line in commands_of_the_readme() if "runs/gated" in line]
    assert [line.split()[0] for line in lines] == ["deepspeed", "python"]
    train, evaluate = (re.sub(r"\bruns/gated", str(readme_folder / "gated"), line) for line in lines)
    train = re.sub(r"configs/\w+\.json", str(readme_folder / "run.json"), train) + " --set training.total_steps=12"
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
    done = run([sys.executable, "launch/sample.py", "--run", str(readme_folder / "gated"), "--prompt", "w1"])
    assert done.returncode == 0, done.stderr


def test_the_readmes_python_runs(
    readme_folder: Path, readme_trained: subprocess.CompletedProcess[str], readme_exported: Path, tmp_path: Path
) -> None:
    for number, block in enumerate(python_of_the_readme()):
        script = tmp_path / f"block_{number}.py"
        block = re.sub(r"\bmodels/\w+", str(readme_exported), re.sub(r"\bruns/\w+", str(readme_folder / "run"), block))
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
