"""Training on real processes: any number of ranks and micro-batches, ZeRO stages, resuming, skipped steps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import run_ranks, tiny_settings

from lm1b.files import read_json_lines
from lm1b.training.checkpoint import Checkpoint, list_checkpoints

GOLDEN = Path(__file__).with_name("golden_losses.json")
WORKER = str(Path(__file__).with_name("training_worker.py"))
TABLES = ("input_table", "output_table", "output_bias")


def run_jobs(folder: Path, name: str, num_ranks: int, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train the jobs on `num_ranks` real processes."""
    jobs_file, report_file = folder / f"{name}.jobs.json", folder / f"{name}.report.json"
    jobs_file.write_text(json.dumps(jobs))
    run_ranks([WORKER, str(jobs_file), str(report_file)], num_ranks)
    return json.loads(report_file.read_text())


def losses(folder: Path, run: str) -> list[float]:
    """Sampled nats a word of every step."""
    return [line["nats_per_word"] for line in read_json_lines(folder / run / "metrics.jsonl")]


def tensors_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, tables whole."""
    found = {}
    for kind in ("weights", "ema", *(f"optimizer/{key}" for key in checkpoint.optimizer_keys())):
        found |= {f"{kind}/{name}": tensor for name, tensor in (checkpoint.core(kind) or {}).items()}
    for name in TABLES:
        found |= {f"{name}/{key}": checkpoint.read_table(name, key=key) for key in ("rows", "accumulators")}
    return found | {f"carry/{name}": tensor for name, tensor in checkpoint.carry().items()}


def assert_same_end(folder: Path, one: str, other: str, relative: float) -> None:
    """The last checkpoints of two runs hold the same tensors; relative 0: bit for bit."""
    expected, found = (tensors_of(list_checkpoints(folder / run)[-1]) for run in (one, other))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        if relative == 0:
            assert torch.equal(tensor, found[name]), name
        else:
            distance = torch.linalg.vector_norm(tensor.float() - found[name].float()) / torch.linalg.vector_norm(tensor.float()).clamp(1e-6)
            assert distance < relative, f"{name}: {distance:.2e}"


@pytest.fixture(scope="module")
def trained(tiny_folder: Path) -> dict[str, Any]:
    """Two launches, of one and of two ranks, that train all the runs compared below."""

    def job(run: str, **sections: Any) -> dict[str, Any]:
        extra = {key: sections.pop(key) for key in ("poison_step", "loss_scale") if key in sections}
        return {"config": tiny_settings(tiny_folder, run, **sections), **extra}

    half = {"total_steps": 20}
    dropping = {"cell": "irnn", "embedding": 12, "hidden": 24, "projection": 16, "dropout": 0.2, "layers": 2}
    bf16 = {"precision": "bf16", "micro_batches": 2}
    sgd = {"kind": "sgd", "clip_norm": None}
    one = [
        job("1x1"),
        job("1x4", training={"micro_batches": 4}),
        job("straight", model=dropping, training=bf16),
        job("broken", model=dropping, training={**bf16, **half}),
        job("broken", model=dropping, training=bf16),
        job("adam_straight", optimizer={"kind": "adam", "learning_rate": 0.01}),
        job("adam_broken", optimizer={"kind": "adam", "learning_rate": 0.01}, training=half),
        job("adam_broken", optimizer={"kind": "adam", "learning_rate": 0.01}),
        job("scale1", optimizer={**sgd, "learning_rate": 0.05}, training=half),
        job("scale1024", optimizer={**sgd, "learning_rate": 0.05 / 1024}, training=half, loss_scale=1024.0),
        job("golden_irnn", model={**dropping, "cell": "irnn"}, optimizer={"clip_norm": 1.0}),
        job("reset", batches={"state": "reset"}, training=half),
    ]
    two = [
        job("2x1"),
        job("2x2", training={"micro_batches": 2}),
        job("stage3", training={"zero_stage": 3}),
        job("two_straight", model=dropping, training=bf16),
        job("two_broken", model=dropping, training={**bf16, **half}),
        job("two_broken", model=dropping, training=bf16),
        job("stage3_straight", model=dropping, training={**bf16, "zero_stage": 3}),
        job("stage3_broken", model=dropping, training={**bf16, **half, "zero_stage": 3}),
        job("stage3_broken", model=dropping, training={**bf16, "zero_stage": 3}),
        job("regrouped", training=half),
        job("poison1", training={**half, "zero_stage": 1}, poison_step=7),
        job("poison2", training={**half, "zero_stage": 2}, poison_step=7),
        job("poison3", training={**half, "zero_stage": 3}, poison_step=7),
        job("poison_bf16_1", training={**half, "precision": "bf16"}, poison_step=7),
        job("poison_bf16_2", training={**half, "precision": "bf16", "zero_stage": 2}, poison_step=7),
        job("poison_bf16_3", training={**half, "precision": "bf16", "zero_stage": 3}, poison_step=7),
    ]
    reports = {"one": run_jobs(tiny_folder, "one", 1, one), "two": run_jobs(tiny_folder, "two", 2, two)}
    reports["more"] = run_jobs(tiny_folder, "more", 1, [job("regrouped", training={"zero_stage": 2})])
    return reports


@pytest.mark.parametrize("run", ["1x4", "2x1", "2x2", "stage3"])
def test_any_cut_of_the_batch_trains_the_same(tiny_folder: Path, trained: dict[str, Any], run: str) -> None:
    expected, found = losses(tiny_folder, "1x1"), losses(tiny_folder, run)
    assert len(expected) == len(found) == 50
    assert expected[0] - expected[-1] > 1.0
    assert found == pytest.approx(expected, rel=1e-4)
    assert_same_end(tiny_folder, "1x1", run, 1e-4)


@pytest.mark.parametrize(
    ("straight", "broken"),
    [
        ("straight", "broken"),
        ("adam_straight", "adam_broken"),
        ("two_straight", "two_broken"),
        ("stage3_straight", "stage3_broken"),
    ],
)
def test_resuming_is_bitwise(tiny_folder: Path, trained: dict[str, Any], straight: str, broken: str) -> None:
    assert losses(tiny_folder, straight) == losses(tiny_folder, broken)
    assert_same_end(tiny_folder, straight, broken, 0)


def test_resuming_on_another_number_of_ranks_and_stage(tiny_folder: Path, trained: dict[str, Any]) -> None:
    assert losses(tiny_folder, "regrouped") == pytest.approx(losses(tiny_folder, "1x1"), rel=1e-4)
    assert_same_end(tiny_folder, "1x1", "regrouped", 1e-4)
    said = [line["text"] for line in read_json_lines(tiny_folder / "regrouped" / "events.jsonl")]
    (changed,) = [text for text in said if text.startswith("changed since the checkpoint")]
    assert "training.zero_stage 1 -> 2" in changed
    assert "ranks 2 -> 1" in changed


def test_loss_scale_does_not_change_updates(tiny_folder: Path, trained: dict[str, Any]) -> None:
    assert losses(tiny_folder, "scale1024") == pytest.approx(losses(tiny_folder, "scale1"), rel=1e-5)
    assert_same_end(tiny_folder, "scale1", "scale1024", 1e-5)


def test_state_reset_trains(tiny_folder: Path, trained: dict[str, Any]) -> None:
    reset, carried = losses(tiny_folder, "reset"), losses(tiny_folder, "1x1")
    assert reset[-1] < reset[0]
    assert reset != carried[: len(reset)]


@pytest.mark.parametrize("place", range(-6, 0))
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing_on_any(trained: dict[str, Any], place: int) -> None:
    report = trained["two"][place]
    assert report["lanes_restarted"] == 1
    (skip,) = report["skips"]
    assert not skip["applied"]
    assert skip["unchanged"]
    assert skip["carry_finite"]
    assert "rank 1: loss" in skip["causes"]
    assert report["step"] == 20
    assert report["updates"] == 19


def test_the_gap_to_the_full_softmax_is_logged(tiny_folder: Path, trained: dict[str, Any]) -> None:
    lines = [line for line in read_json_lines(tiny_folder / "2x1" / "metrics.jsonl") if "true_nats_checked" in line]
    assert [line["step"] for line in lines] == [25, 50]
    for line in lines:
        # A sampled softmax leaves words out of the denominator, so the true loss is the larger one in the mean.
        assert 0 < line["sampled_nats_checked"] < line["true_nats_checked"] < 8


@pytest.mark.parametrize("run", ["1x1", "golden_irnn"])
def test_golden_losses(tiny_folder: Path, trained: dict[str, Any], run: str) -> None:
    """A refactor leaves these as they are; a change of numerics writes them anew (LM1B_WRITE_GOLDEN=1) and says why."""
    found = losses(tiny_folder, run)[::7]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("LM1B_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**golden, run: found}, indent=2) + "\n")
    else:
        # Other machines' matrix products round differently.
        assert found == pytest.approx(golden[run], rel=2e-4)
