"""Training on real processes: any number of ranks and micro-batches, ZeRO stages, loss scales, golden losses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from training_runs import GOLDEN, GOLDEN_RUNS, GOLDEN_TOLERANCE, assert_same_end, job, launch, losses, run_launches

from lm1b.files import read_json_lines


@pytest.fixture(scope="module")
def trained(tiny_folder: Path) -> list[Any]:
    """Two launches, of one and of two ranks, that train all the runs compared below."""

    def make(run: str, **sections: Any) -> dict[str, Any]:
        return job(tiny_folder, run, **sections)

    half = {"total_steps": 20}
    bf16 = {**half, "precision": "bf16", "micro_batches": 2}

    def scaled(scale: float) -> dict[str, Any]:
        # The core's gradient is not unscaled here, as DeepSpeed would: plain SGD with a smaller rate does the same.
        sgd = {"kind": "sgd", "clip_norm": None, "learning_rate": 0.05 / scale}
        return {"optimizer": sgd, "loss_scale": scale}

    overflow = {"place": "scaled loss", "first": 5, "end": 6}
    one = [
        make("1x1"),
        make("1x4", training={"micro_batches": 4}),
        make("scale1", **scaled(1.0), training=half),
        make("scale1024", **scaled(1024.0), training=half),
        make("golden_irnn", **GOLDEN_RUNS["golden_irnn"]),
        make("reset", batches={"state": "reset"}, training=half),
    ]
    two = [
        make("2x1"),
        make("2x2", training={"micro_batches": 2}),
        make("stage3", training={"zero_stage": 3}),
        make("bf16_scale1", **scaled(1.0), training=bf16, poison={**overflow, "place": "input_table"}),
        make("bf16_scale1024", **scaled(1024.0), training=bf16, poison=overflow),
    ]
    return run_launches(tiny_folder, "training", [launch(1, one), launch(2, two)])


@pytest.mark.parametrize("run", ["1x4", "2x1", "2x2", "stage3"])
def test_any_cut_of_the_batch_trains_the_same(tiny_folder: Path, trained: list[Any], run: str) -> None:
    expected, found = losses(tiny_folder, "1x1"), losses(tiny_folder, run)
    assert len(expected) == len(found) == 50
    assert expected[0] - expected[-1] > 1.0
    assert found == pytest.approx(expected, rel=1e-4)
    assert_same_end(tiny_folder, "1x1", run, 1e-4)


def test_loss_scale_does_not_change_updates(tiny_folder: Path, trained: list[Any]) -> None:
    assert losses(tiny_folder, "scale1024") == pytest.approx(losses(tiny_folder, "scale1"), rel=1e-5)
    assert_same_end(tiny_folder, "scale1", "scale1024", 1e-5)


def test_a_loss_scale_that_overflows_in_bf16_skips_one_step_and_changes_no_other(tiny_folder: Path, trained: list[Any]) -> None:
    for skipped in (trained[1][0][-2], trained[1][0][-1]):
        assert (skipped["step"], skipped["updates"], skipped["lanes_restarted"]) == (20, 19, 0)
    scale1, scale1024 = losses(tiny_folder, "bf16_scale1"), losses(tiny_folder, "bf16_scale1024")
    assert scale1[5] is scale1024[5] is None
    del scale1[5], scale1024[5]
    assert scale1024 == pytest.approx(scale1, rel=1e-5)
    assert_same_end(tiny_folder, "bf16_scale1", "bf16_scale1024", 1e-5)


def test_state_reset_trains(tiny_folder: Path, trained: list[Any]) -> None:
    reset, carried = losses(tiny_folder, "reset"), losses(tiny_folder, "1x1")
    assert reset[-1] < reset[0]
    assert reset != carried[: len(reset)]


def test_the_gap_to_the_full_softmax_is_logged(tiny_folder: Path, trained: list[Any]) -> None:
    lines = [line for line in read_json_lines(tiny_folder / "2x1" / "metrics.jsonl") if "true_nats_checked" in line]
    assert [line["step"] for line in lines] == [25, 50]
    for line in lines:
        # A sampled softmax leaves words out of the denominator, so the true loss is the larger one in the mean.
        assert 0 < line["sampled_nats_checked"] < line["true_nats_checked"] < 8


@pytest.mark.parametrize("run", list(GOLDEN_RUNS))
def test_golden_losses(tiny_folder: Path, trained: list[Any], run: str) -> None:
    """A refactor leaves these as they are; a change of numerics writes them anew (LM1B_WRITE_GOLDEN=1) and says why."""
    found = losses(tiny_folder, run)[::7]
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("LM1B_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**golden, run: found}, indent=2) + "\n")
    else:
        assert found == pytest.approx(golden[run], rel=GOLDEN_TOLERANCE)
