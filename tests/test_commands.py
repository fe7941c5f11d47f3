"""A run's whole story by its commands, on the tiny corpus: the real launcher at first, forks where it is not what is tested."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_runs import DEEPSPEED, fill, launch, run, train
from readme_commands import commands_run_by, put_in
from tiny import REPOSITORY, environment, free_port, tiny_settings, write_settings

from lm1b.files import read_json, read_json_lines
from lm1b.training.checkpoints.checkpoint import list_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("commands"))


@pytest.fixture(scope="module")
def trained(folder: Path) -> subprocess.CompletedProcess[str]:
    """On two ranks of the real launcher, as the README prints it."""
    done = run([sys.executable, "launch/preprocess.py", "--config", str(folder / "run.json")])
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in commands_run_by("test_readme_commands") if line.startswith("deepspeed --num_gpus 2 launch/train.py")]
    done = run([DEEPSPEED, "--master_port", str(free_port()), *shlex.split(put_in(line, folder))[1:]])
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_train_writes_the_runs_whole_story(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    directory = folder / "run"
    assert "finished at step 60 of 60" in trained.stdout
    assert [checkpoint.step for checkpoint in list_checkpoints(directory)] == [20, 40, 60]
    assert read_json(directory / "config.json")["config"]["batches"]["lanes"] == 8
    assert read_json(directory / "environment.json")["ranks"] == 2
    assert [line["step"] for line in read_json_lines(directory / "metrics.jsonl")] == list(range(1, 61))
    assert list((directory / "tensorboard").iterdir())


def test_the_evaluator_beside_it_scored_the_last_checkpoint(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    lines = read_json_lines(folder / "run" / "evaluations.jsonl")
    (last,) = [line for line in lines if line["step"] == 60]
    assert last["split"] == "validation"
    assert 1 < last["word_perplexity"] < 173


def test_evaluate_and_report(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    done = run([sys.executable, "launch/evaluate.py", "--run", str(folder / "run"), "--state", "reset", "--split", "test"])
    assert done.returncode == 0, done.stderr
    line = read_json_lines(folder / "run" / "evaluations.jsonl")[-1]
    assert (line["split"], line["state"], line["step"]) == ("test", "reset", 60)
    done = run([sys.executable, "launch/report.py", str(folder / "run")])
    assert done.returncode == 0, done.stderr
    assert f"{line['word_perplexity']:.2f}" in done.stdout
    assert (folder / "run" / "report" / "report.md").stat().st_size > 0
    assert (folder / "run" / "report" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_same_command_again_has_nothing_to_do(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    before = read_json_lines(folder / "run" / "metrics.jsonl")
    done = train(folder / "run.json", "--set", "training.evaluate_alongside=false")
    assert done.returncode == 0, done.stderr
    assert "finished at step 60" in done.stdout
    assert read_json_lines(folder / "run" / "metrics.jsonl") == before


def test_interrupted_and_gone_on_with(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    config = write_settings(folder, "interrupted", training={"total_steps": 100_000}, checkpoints={"every": 50_000})
    process = subprocess.Popen(
        launch(config),
        env=environment(),
        cwd=REPOSITORY,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    metrics = folder / "interrupted" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while len(read_json_lines(metrics)) < 30 and time.monotonic() < deadline:
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does at Ctrl-C
        output = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert "stopped on request" in output, output
    (saved,) = list_checkpoints(folder / "interrupted")
    assert saved.step >= 30
    done = train(config, "--set", f"training.total_steps={saved.step + 5}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"going on at step {saved.step}" in done.stdout
    assert [line["step"] for line in read_json_lines(metrics)] == list(range(1, saved.step + 6))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "model.hiden=3"], "did you mean `hidden`"),
        (["--set", "batches.lanes=7", "--set", "training.micro_batches=2"], "batches.lanes"),
        (["--set", "softmax.samples=150"], "at most half the vocabulary"),
        (["--set", "model.hidden=25"], "model.hidden"),
        (["--set", "run.seed=4"], "run.seed"),
        (["--set", "tokens.directory=nowhere"], "launch/preprocess.py"),
        (["--set", 'deepspeed={"zero_optimisation": {}}'], "did you mean `zero_optimization`"),
        (["--set", 'deepspeed={"zero_optimization": {"overlap_com": true}}'], "did you mean `overlap_comm`"),
        (["--set", 'deepspeed={"zero_optimization": 3}'], "expected an object"),
        (
            ["--set", 'deepspeed={"zero_optimization": {"reduce_bucket_size": "abc"}}'],
            "reduce_bucket_size is refused by DeepSpeed",
        ),
        (["--set", 'deepspeed={"communication_data_type": "fp8"}'], "Invalid communication_data_type"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_2(
    folder: Path, trained: subprocess.CompletedProcess[str], arguments: list[str], said: str
) -> None:
    directory = ["--set", f"run.directory={folder / 'fresh'}"] if "batches.lanes" in arguments[1] else []
    done = run([sys.executable, "launch/train.py", "--config", str(folder / "run.json"), *arguments, *directory])
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("lm1b: error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr


def test_a_mistake_on_two_ranks_is_said_once_and_nobody_waits(
    folder: Path, trained: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that waited for the other would wait for ten minutes; this is over long before, however slow the machine."""
    monkeypatch.setenv("LM1B_TIMEOUT_SECONDS", "600")
    done = train(folder / "run.json", "--set", "model.hidden=25")  # with its own limit of four minutes
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count("lm1b: error:") == 1


def test_a_run_directory_holds_one_training_at_a_time(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    with open(folder / "run" / "training.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run([sys.executable, "launch/train.py", "--config", str(folder / "run.json")])
    assert done.returncode == 2
    assert "another training is at work here" in done.stderr


def test_a_disk_that_fills_up_while_saving_leaves_the_last_checkpoint(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000,) * 2); sys.argv = sys.argv[1:]; "
    directory = folder / "full"
    shutil.copytree(folder / "run", directory)
    (directory / "metrics.jsonl").unlink()  # it may be larger than the limit already
    before = [checkpoint.step for checkpoint in list_checkpoints(directory)]
    more = ["--set", f"run.directory={directory}", "--set", "training.total_steps=70", "--set", "training.evaluate_alongside=false"]
    done = run(
        [
            sys.executable,
            "-c",
            "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " + limited + "runpy.run_path(sys.argv[0], run_name='__main__')",
            "launch/train.py",
            "--config",
            str(folder / "run.json"),
            *more,
        ]
    )
    assert done.returncode == 2, done.stderr
    assert "step_00000070" in done.stderr
    assert "Traceback" not in done.stderr
    assert [checkpoint.step for checkpoint in list_checkpoints(directory)] == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    damaged = folder / "damaged"
    shutil.copytree(folder / "run", damaged)
    last = list_checkpoints(damaged)[-1]
    sound = {path.name: path.read_bytes() for path in last.path.iterdir() if path.suffix == ".safetensors"}
    file = last.path / "core.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = run([sys.executable, "launch/evaluate.py", "--run", str(damaged)])
    assert done.returncode == 2
    assert "core.safetensors: damaged, SHA-256 expected" in done.stderr
    more = ["--set", f"run.directory={damaged}", "--set", "training.evaluate_alongside=false"]
    done = train(folder / "run.json", *more)
    assert done.returncode == 0, done.stderr
    assert "core.safetensors: damaged, SHA-256 expected" in done.stdout
    assert "set aside as" in done.stdout
    assert "going on at step 40" in done.stdout
    assert (damaged / "checkpoints" / "step_00000060.damaged").is_dir()
    again = list_checkpoints(damaged)[-1]
    assert again.step == 60
    assert {path.name: path.read_bytes() for path in again.path.iterdir() if path.suffix == ".safetensors"} == sound


def test_shipped_small_configs_train(folder: Path, trained: subprocess.CompletedProcess[str]) -> None:
    for path in sorted((REPOSITORY / "configs").glob("*_news.json")):
        settings = json.loads(path.read_text())
        tiny = tiny_settings(folder, f"shipped_{path.stem}")
        settings |= {"run": tiny["run"], "corpus": tiny["corpus"], "tokens": tiny["tokens"], "softmax": tiny["softmax"]}
        settings["training"] |= {"epochs": None, "total_steps": 3, "evaluate_alongside": False}
        settings["batches"]["lanes"] = 8
        file = folder / f"shipped_{path.stem}.json"
        file.write_text(json.dumps(settings))
        done = run([sys.executable, "launch/train.py", "--config", str(file)])
        assert done.returncode == 0, done.stderr
