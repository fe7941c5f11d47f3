"""Tied tables, the adaptive softmax and the unigram proposal, on real ranks: the same on any number of them; resumed, evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_settings
from training_runs import assert_same_end, events, job, losses, run_by_name

from lm1b.config import parse_config
from lm1b.data.batches import Batches
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.evaluation.scoring.perplexity import evaluate_checkpoint
from lm1b.evaluation.scoring.texts import text_of_split
from lm1b.files import read_json_lines
from lm1b.training.checkpoints.checkpoint import list_checkpoints

STEPS = 20
CUTOFFS = [40, 150]
ADAPTIVE = {"kind": "adaptive", "cutoffs": CUTOFFS, "cluster_factor": 2.0}
TIED = {"embedding": 16, "tie_tables": True}
UNIGRAM = {"samples": 60, "proposal": "unigram"}
CUTS = [f"{kind}_{cut}" for kind in ("tied", "tied_full", "adaptive", "unigram") for cut in ("1x2", "2", "2_in_order", "4")]


@pytest.fixture(scope="module")
def seen(tiny_folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What every rank saw, by run."""
    num_words = TokenDirectory.open(tiny_folder / "tokens").vocabulary.size
    kinds: dict[str, dict[str, Any]] = {
        "tied": {"model": TIED},
        "tied_full": {"model": TIED, "softmax": {"kind": "full"}},
        "adaptive": {"softmax": ADAPTIVE, "optimizer": {"kind": "adam", "learning_rate": 0.01}},
        "unigram": {"softmax": UNIGRAM},
        "tied_all_sampled": {"model": TIED, "softmax": {"samples": num_words}},
    }

    def make(kind: str, cut: str, training: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        training = {"total_steps": STEPS, "ema_decay": 0.9, "gap_every": 10, **(training or {})}
        return job(tiny_folder, f"{kind}_{cut}", training=training, checkpoints={"every": 7}, **{**kinds[kind], **more})

    four = list(kinds)[:4]
    poison = {"place": "input_table", "first": 4, "end": 5}
    jobs = {
        1: [make(kind, "1") for kind in kinds] + [make(kind, "1x2", training={"micro_batches": 2}) for kind in four],
        2: [make(kind, "2") for kind in four]
        + [make(kind, "2_in_order", communication={"overlap": False}) for kind in four]
        + [make(kind, "stopped", training={"total_steps": steps}) for kind in ("tied", "adaptive") for steps in (9, STEPS)]
        + [make("adaptive", f"stage_{stage}", training={"zero_stage": stage}) for stage in (2, 3)]
        + [make("adaptive", "bf16", training={"precision": "bf16"})]
        + [make("tied", "poisoned", training={"total_steps": 7}, poison=poison)],
        4: [make(kind, "4") for kind in four],
    }
    return run_by_name(tiny_folder, "kinds", jobs)


@pytest.mark.parametrize("run", [*CUTS, "adaptive_stage_2", "adaptive_stage_3"])
def test_any_cut_of_the_work_trains_the_same(tiny_folder: Path, seen: dict[str, Any], run: str) -> None:
    alone = f"{next(kind for kind in ('tied_full', 'tied', 'adaptive', 'unigram') if run.startswith(kind))}_1"
    expected, found = losses(tiny_folder, alone), losses(tiny_folder, run)
    assert len(expected) == len(found) == STEPS
    assert expected[0] - expected[-1] > 0.4
    assert found == pytest.approx(expected, rel=1e-5)
    # Adam divides by the size of a gradient, and a rounding may decide the sign of one that is next to nothing.
    assert_same_end(tiny_folder, alone, run, 1e-3 if run.startswith("adaptive") else 1e-5)


def test_tied_tables_with_all_words_sampled_are_the_full_softmax(tiny_folder: Path, seen: dict[str, Any]) -> None:
    assert losses(tiny_folder, "tied_all_sampled_1") == pytest.approx(losses(tiny_folder, "tied_full_1"), rel=1e-5)
    assert_same_end(tiny_folder, "tied_all_sampled_1", "tied_full_1", 1e-4)


@pytest.mark.parametrize("kind", ["tied", "tied_full", "adaptive", "unigram"])
def test_fetching_ahead_changes_no_bit(tiny_folder: Path, seen: dict[str, Any], kind: str) -> None:
    assert_same_end(tiny_folder, f"{kind}_2", f"{kind}_2_in_order", 0)


@pytest.mark.parametrize("kind", ["tied", "adaptive"])
def test_a_stopped_run_goes_on_bit_for_bit(tiny_folder: Path, seen: dict[str, Any], kind: str) -> None:
    assert losses(tiny_folder, f"{kind}_stopped") == losses(tiny_folder, f"{kind}_2")
    assert_same_end(tiny_folder, f"{kind}_2", f"{kind}_stopped", 0)


def test_a_cluster_that_one_rank_alone_hits_is_trained_all_the_same(tiny_folder: Path, seen: dict[str, Any]) -> None:
    """Of the steps above: the rarest words are targets on one rank alone in some, and on none in others."""
    tokens = TokenDirectory.open(tiny_folder / "tokens")
    batches = Batches(tokens.split("train"), end_id=tokens.vocabulary.end_id, lanes=8, steps=10, seed=3, block_tokens=500)
    ranks_hit = [sum(bool((batches.at(step, 4 * rank, 4).targets_TB >= CUTOFFS[-1]).any()) for rank in (0, 1)) for step in range(STEPS)]
    assert 1 in ranks_hit
    assert [report["skipped"] for report in seen["adaptive_2"]] == [0, 0]
    assert losses(tiny_folder, "adaptive_bf16") == pytest.approx(losses(tiny_folder, "adaptive_1"), rel=0.02)


def test_a_gradient_that_is_not_finite_names_the_one_table(seen: dict[str, Any]) -> None:
    for report in seen["tied_poisoned"]:
        (skip,) = report["skips"]
        assert (skip["step"], skip["unchanged"], skip["causes"]) == (5, True, ["rank 1: gradient of input_table"])


def test_they_are_evaluated_as_any_run(tiny_folder: Path, seen: dict[str, Any]) -> None:
    tokens = TokenDirectory.open(tiny_folder / "tokens")

    def nats(run: str) -> float:
        config = parse_config(tiny_settings(tiny_folder, run, evaluation={"weights": "raw"}))
        checkpoint, text = list_checkpoints(tiny_folder / run)[-1], text_of_split(tokens, "validation")
        (result,) = evaluate_checkpoint(checkpoint, config.evaluation, text)
        assert result.nats is not None
        return result.nats / result.predictions

    for kind in ("tied", "tied_full", "adaptive", "unigram"):
        assert nats(f"{kind}_4") == pytest.approx(nats(f"{kind}_1"), rel=1e-4)
        assert nats(f"{kind}_1") < np.log(tokens.vocabulary.size) - 0.4


def test_only_sampled_losses_have_a_gap_to_check(tiny_folder: Path, seen: dict[str, Any]) -> None:
    for kind, has_gap in {"tied": True, "unigram": True, "tied_full": False, "adaptive": False}.items():
        assert any("true_nats_checked" in line for line in read_json_lines(tiny_folder / f"{kind}_1" / "metrics.jsonl")) == has_gap
    assert not any("skipped" in text for text in events(tiny_folder, "tied_1"))


def test_checkpoints_hold_each_table_once(tiny_folder: Path, seen: dict[str, Any]) -> None:
    tables = {run: set(list_checkpoints(tiny_folder / run)[-1].state()["tables"]) for run in ("tied_1", "tied_full_1", "adaptive_1")}
    assert tables["tied_1"] == tables["tied_full_1"] == {"input_table", "output_bias"}
    assert tables["adaptive_1"] == {"input_table"}
    core = list_checkpoints(tiny_folder / "adaptive_1")[-1].core("weights")
    assert core is not None
    assert core["adaptive.clusters.head.weight"].shape == torch.Size([CUTOFFS[0] + len(CUTOFFS), 16])
