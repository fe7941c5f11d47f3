"""Fifty steps of training on a GPU beside the same on the CPU, whose losses are known; the CPU alone in every run (see devices.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from devices import ON_GPU
from tiny import REPOSITORY, environment
from training_runs import GOLDEN, GOLDEN_RUNS, GOLDEN_TOLERANCE, job, losses

from lm1b.distributed import single_process
from lm1b.evaluation.scoring.evaluator import Evaluator
from lm1b.files import read_json, read_json_lines
from lm1b.training.checkpoints.checkpoint import list_checkpoints
from lm1b.training.run_folder import RunFolder

WORKER = str(Path(__file__).with_name("device_worker.py"))
FIRST_SCALE_POWER = 24  # gradients beyond 65504 / 2^24 = 0.004 are too large for float16: the tiny model's first ones are


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=ON_GPU)])
def trained(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[Any]]:
    """(device, folder, report): every golden run in fp32, the first one in the half precisions that the device has."""
    device = request.param
    folder = tmp_path_factory.mktemp(f"trained_{device}")
    for name in ("corpus", "tokens"):
        shutil.copytree(tiny_folder / name, folder / name)
    half = ["bf16"] if device == "cpu" else ["bf16", "fp16"]
    jobs = [
        *(job(folder, run, **sections) for run, sections in GOLDEN_RUNS.items()),
        *(job(folder, precision, training={"precision": precision}) for precision in half),
        *([job(folder, "triton")] if device == "cuda" else []),
        job(folder, "on_host", communication={"tables_on_host": True}),
    ]
    by_run = {"fp16": {"initial_scale_power": FIRST_SCALE_POWER}, "triton": {"kernels": "triton"}}
    plan = [{**planned, **by_run.get(Path(planned["config"]["run"]["directory"]).name, {})} for planned in jobs]
    (folder / "plan.json").write_text(json.dumps(plan))
    done = subprocess.run(
        [sys.executable, WORKER, str(folder / "plan.json"), str(folder / "report.json")],
        env=environment(DS_ACCELERATOR=device, PYTHONPATH=os.pathsep.join([str(REPOSITORY / "tools"), *sys.path])),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return device, folder, read_json(folder / "report.json")


def test_all_of_it_was_on_the_device_in_whole_float32(trained: tuple[str, Path, list[Any]]) -> None:
    device, folder, report = trained
    assert all((run["core"], run["uses_tf32"]) == ([device], False) for run in report)
    assert [run["tables"] for run in report] == [[device]] * len(report[:-1]) + [["cpu"]], "the last run has them in the host's memory"
    assert read_json(folder / "1x1" / "environment.json")["device"].startswith(device)


@pytest.mark.parametrize("run", list(GOLDEN_RUNS))
def test_fp32_goes_as_on_the_cpu(trained: tuple[str, Path, list[Any]], run: str) -> None:
    """As near as another CPU would: sums in another order are all that differs."""
    _, folder, _ = trained
    found = losses(folder, run)
    assert len(found) == 50
    assert found[::7] == pytest.approx(json.loads(GOLDEN.read_text())[run], rel=GOLDEN_TOLERANCE)


@pytest.mark.parametrize("number", range(len(GOLDEN_RUNS)))
def test_what_was_trained_there_is_scored_alike_there_and_on_the_cpu(trained: tuple[str, Path, list[Any]], number: int) -> None:
    """The run as it stands, on its device, and its last checkpoint, by the evaluator on the CPU."""
    _, folder, report = trained
    run = folder / list(GOLDEN_RUNS)[number]
    evaluator = Evaluator(run, RunFolder(run).read_config(), ranks=single_process())
    (scored,) = evaluator.score(list_checkpoints(run)[-1])
    assert scored.weights == "ema"
    assert report[number]["word_perplexity"] == pytest.approx(scored.word_perplexity, rel=1e-5)


def test_bf16_stays_by_fp32(trained: tuple[str, Path, list[Any]]) -> None:
    """A state is rounded in each of 10 steps, forward and back: 20 roundings of eps / 2, which partly cancel in the mean."""
    _, folder, _ = trained
    expected, found = losses(folder, "1x1"), losses(folder, "bf16")
    eps = torch.finfo(torch.bfloat16).eps
    assert found != expected
    assert found == pytest.approx(expected, rel=20 * eps / 2)
    assert sum(found) == pytest.approx(sum(expected), rel=eps / 2)


@pytest.mark.parametrize("trained", [pytest.param("cuda", marks=ON_GPU)], indirect=True)
def test_the_triton_kernels_train_the_same(trained: tuple[str, Path, list[Any]]) -> None:
    _, folder, _ = trained
    assert losses(folder, "triton")[::7] == pytest.approx(json.loads(GOLDEN.read_text())["1x1"], rel=GOLDEN_TOLERANCE)


def test_tables_in_the_hosts_memory_train_the_same(trained: tuple[str, Path, list[Any]]) -> None:
    _, folder, _ = trained
    assert losses(folder, "on_host")[::7] == pytest.approx(json.loads(GOLDEN.read_text())["1x1"], rel=GOLDEN_TOLERANCE)


@pytest.mark.parametrize("trained", [pytest.param("cuda", marks=ON_GPU)], indirect=True)
def test_fp16_skips_until_its_loss_scale_fits_and_learns_from_there(trained: tuple[str, Path, list[Any]]) -> None:
    _, folder, _ = trained
    lines = read_json_lines(folder / "fp16" / "metrics.jsonl")
    skipped = lines[-1]["skipped"]
    assert 3 <= skipped <= 20, "the first steps' gradients overflow"
    assert lines[-1]["updates"] == 50 - skipped
    assert lines[-1]["loss_scale"] < 2.0**FIRST_SCALE_POWER / 4
    assert lines[skipped + 5]["skipped"] == skipped, "none is skipped once the scale fits"
    applied = [line["nats_per_word"] for line in lines if line["nats_per_word"] is not None]
    # The same updates on other batches: learning has gone as far as float32's after as many updates.
    assert applied[0] - sum(applied[-5:]) / 5 > 1.0
