"""Training with the full softmax on real ranks: the same on any number of them, the same as with all words sampled; resumed, evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_settings
from training_runs import assert_same_end, job, losses, run_by_name

from lm1b.config import parse_config
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.evaluation.scoring.perplexity import evaluate_checkpoint
from lm1b.evaluation.scoring.texts import text_of_split
from lm1b.files import read_json_lines
from lm1b.training.checkpoints.checkpoint import list_checkpoints

FULL = {"kind": "full"}
STEPS = 20


@pytest.fixture(scope="module")
def seen(tiny_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What every rank saw, by run."""

    def make(run: str, softmax: dict[str, Any] = FULL, training: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
        training = {"total_steps": STEPS, "ema_decay": 0.9, "gap_every": 10, **(training or {})}
        return job(tiny_folder, f"full_{run}", softmax=softmax, training=training, checkpoints={"every": 7}, **sections)

    num_words = TokenDirectory.open(tiny_folder / "tokens").vocabulary.size
    scaled = {"optimizer": {"kind": "sgd", "clip_norm": None, "learning_rate": 0.05 / 1024}, "loss_scale": 1024.0}
    unscaled = {"optimizer": {"kind": "sgd", "clip_norm": None, "learning_rate": 0.05}, "loss_scale": 1.0}
    jobs = {
        1: [make("1"), make("all_sampled", {"samples": num_words}), make("1x2", training={"micro_batches": 2})],
        2: [
            make("2"),
            make("2_in_order", communication={"overlap": False}),
            make("stopped", training={"total_steps": 9}),
            make("stopped"),
            make("poisoned", training={"total_steps": 7}, poison={"place": "output_table", "first": 4, "end": 5}),
            make("unscaled", **unscaled),
            make("scaled", **scaled),
            make("bf16", training={"precision": "bf16", "zero_stage": 3, "micro_batches": 2}),
        ],
        4: [make("4")],
    }
    return run_by_name(tiny_folder, "full", jobs)


@pytest.mark.parametrize("run", ["1x2", "2", "2_in_order", "4", "all_sampled"])
def test_any_cut_of_the_work_trains_the_same(tiny_folder: Path, seen: dict[str, Any], run: str) -> None:
    expected, found = losses(tiny_folder, "full_1"), losses(tiny_folder, f"full_{run}")
    assert len(expected) == len(found) == STEPS
    assert expected[0] - expected[-1] > 0.5
    assert found == pytest.approx(expected, rel=1e-5)
    assert_same_end(tiny_folder, "full_1", f"full_{run}", 1e-5)


def test_fetching_ahead_changes_no_bit(tiny_folder: Path, seen: dict[str, Any]) -> None:
    assert_same_end(tiny_folder, "full_2", "full_2_in_order", 0)


def test_a_stopped_run_goes_on_bit_for_bit(tiny_folder: Path, seen: dict[str, Any]) -> None:
    assert losses(tiny_folder, "full_stopped") == losses(tiny_folder, "full_2")
    assert_same_end(tiny_folder, "full_2", "full_stopped", 0)


def test_a_gradient_that_is_not_finite_changes_nothing(seen: dict[str, Any]) -> None:
    for report in seen["full_poisoned"]:
        (skip,) = report["skips"]
        assert (skip["step"], skip["applied"], skip["unchanged"]) == (5, False, True)
        assert skip["causes"] == ["rank 1: gradient of output_table"]
        assert (report["step"], report["updates"]) == (7, 6)


def test_loss_scale_and_precision(tiny_folder: Path, seen: dict[str, Any]) -> None:
    assert losses(tiny_folder, "full_scaled") == pytest.approx(losses(tiny_folder, "full_unscaled"), rel=1e-5)
    assert_same_end(tiny_folder, "full_unscaled", "full_scaled", 1e-5)
    assert losses(tiny_folder, "full_bf16") == pytest.approx(losses(tiny_folder, "full_1"), rel=0.02)


def test_it_is_evaluated_as_any_run_and_has_no_gap_to_check(tiny_folder: Path, seen: dict[str, Any]) -> None:
    assert not any("true_nats_checked" in line for line in read_json_lines(tiny_folder / "full_1" / "metrics.jsonl"))
    tokens = TokenDirectory.open(tiny_folder / "tokens")
    nats = []
    for run in ("full_1", "full_all_sampled", "full_4"):
        config = parse_config(tiny_settings(tiny_folder, run, softmax=FULL, evaluation={"weights": "raw"}))
        checkpoint, text = list_checkpoints(tiny_folder / run)[-1], text_of_split(tokens, "validation")
        (result,) = evaluate_checkpoint(checkpoint, config.evaluation, text)
        assert result.nats is not None
        nats.append(result.nats / result.predictions)
    assert nats == pytest.approx([nats[0]] * 3, rel=1e-5)
    assert nats[0] < losses(tiny_folder, "full_1")[0] - 1.0
