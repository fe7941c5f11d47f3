"""The scaling model's traffic: rows against draws, bytes against what two real ranks send, and the laws of its three layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_measurements import NETWORK, entry, foretell, zipf
from parts.harness.counts import read_counts
from parts.scaling_model.layouts import LAYOUTS, Layout, Machine, collectives, predict
from parts.scaling_model.rows import Words
from scaling_worker import VOCABULARY
from tiny import run_ranks, write_settings

from lm1b.model.sampler import LogUniform, Sampler

# Rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
def test_expected_rows_are_the_mean_of_drawn_ones(ranks: int) -> None:
    words, tokens, sampler, generator = zipf(5000, 400), 900, Sampler(LogUniform(5000), 400, seed=3), np.random.default_rng(8)
    probability_V = read_counts(None, 5000) / read_counts(None, 5000).sum()
    drawn = []
    for step in range(60):
        sampled = sampler.draw(step).ids_S.numpy()
        targets = [generator.choice(5000, tokens, p=probability_V) for _ in range(ranks)]
        others = [np.setdiff1d(part, sampled) for part in targets]
        everywhere = np.concatenate(targets)
        asked = np.bincount(np.concatenate([sampled, others[0]]) % ranks, minlength=ranks)
        before = np.concatenate([generator.choice(5000, tokens, p=probability_V) for _ in range(ranks)])
        before_outputs = np.concatenate([sampler.draw(1000 + step).ids_S.numpy(), before])
        late = np.intersect1d(targets[0], before), np.intersect1d(np.concatenate([sampled, others[0]]), before_outputs)
        asked_late = [np.bincount(ids % ranks, minlength=ranks)[0] for ids in late]
        drawn.append(
            [
                *(len(np.unique(targets[0])), len(others[0]), len(np.unique(everywhere)), len(np.setdiff1d(everywhere, sampled))),
                *(len(late[0]), len(late[1]), asked[0], *asked_late),
            ]
        )
    inputs, others, all_inputs, all_others, late_inputs, late_outputs, asked_of_first, *late_of_first = np.mean(drawn, axis=0)
    rows = words.touched(tokens, ranks)
    expected = [rows.inputs, rows.others, rows.all_inputs, rows.all_others, rows.late_inputs, rows.late_outputs]
    assert expected == pytest.approx([inputs, others, all_inputs, all_others, late_inputs, late_outputs], rel=0.015)
    # Id 0 and its kind belong to the first rank, which is asked for most.
    assert rows.busiest_output * rows.outputs / ranks == pytest.approx(asked_of_first, rel=0.01)
    late = [rows.busiest_late_input * rows.late_inputs / ranks, rows.busiest_late_output * rows.late_outputs / ranks]
    assert late == pytest.approx(late_of_first, rel=0.02)


def test_expected_samples_add_up_and_are_as_frequent_as_drawn_ones() -> None:
    words, sampler = zipf(5000, 400), Sampler(LogUniform(5000), 400, seed=1)
    assert words.sampled_V.sum() == pytest.approx(400, rel=1e-5)
    times_V = np.bincount(np.concatenate([sampler.draw(step).ids_S.numpy() for step in range(400)]), minlength=5000)
    for ids in (slice(0, 20), slice(20, 200), slice(200, 1000), slice(1000, 5000)):
        assert words.sampled_V[ids].sum() == pytest.approx(times_V[ids].sum() / 400, rel=0.03)


def test_every_word_is_touched_by_many_tokens_and_all_are_samples_under_a_full_softmax() -> None:
    rows = Words(np.ones(50), 50).touched(5000, 2)
    assert (rows.inputs, rows.samples, rows.others) == (pytest.approx(50), 50, 0)


# Bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "cell", "overlap"), [("fp32", "lstm", True), ("bf16", "irnn", True), ("fp32", "lstm", False)])
def test_bytes_of_a_step_are_those_that_two_real_ranks_send(tmp_path: Path, precision: str, cell: str, overlap: bool) -> None:
    settings: dict[str, dict[str, Any]] = {
        "model": {"cell": cell, "embedding": 12, "hidden": 24, "projection": 16},
        "training": {"precision": precision, "threads": 1},
        "batches": {"lanes": 16, "steps": 10},
        "communication": {"overlap": overlap},
    }
    config = write_settings(tmp_path, "run", **settings)
    run_ranks([str(Path(__file__).with_name("scaling_worker.py")), str(config), "40"], 2)
    reports = [json.loads(Path(f"{config}.{rank}").read_text()) for rank in range(2)]
    sent = {kind: (reports[0][kind] + reports[1][kind]) / 2 for kind in ("all_to_all", "all_gather", "all_reduce")}
    alone = entry(
        precision=precision,
        vocabulary=VOCABULARY,
        samples=60,
        embedding=12,
        output_width=16,
        core_parameters=reports[0]["core_parameters"],
        steps=10,
    )
    expected = dict.fromkeys(sent, 0.0)
    for each in collectives("sharded", alone, zipf(VOCABULARY, 60).touched(80, 2), 2, overlap):
        expected[each.kind] += each.sent_bytes(2)
    assert expected["all_to_all"] == pytest.approx(sent["all_to_all"], rel=0.02)
    # DeepSpeed may pad the core by a few elements, and an IRNN has fewer parameters to tell the status of than an LSTM.
    assert expected["all_gather"] == pytest.approx(sent["all_gather"], rel=0.01)
    assert expected["all_reduce"] == pytest.approx(sent["all_reduce"], rel=0.02)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_rank_sends_nothing(layout: Layout) -> None:
    alone = foretell(layout, 1)
    assert (alone.sent_bytes, alone.communication_seconds) == (0, 0)


def test_one_rank_is_predicted_as_measured() -> None:
    assert foretell("sharded", 1).step_seconds == pytest.approx(0.8)
    assert foretell("sparse", 1).step_seconds == pytest.approx(0.8)
    assert foretell("sharded", 1).memory_bytes == pytest.approx(900 * 2**20)


@pytest.mark.parametrize("ranks", [2, 4, 64, 4096])
def test_our_row_traffic_grows_as_the_share_of_other_ranks(ranks: int) -> None:
    def rows_sent(count: int) -> float:
        touched = zipf(20_000, 500).touched(320, count)
        found = collectives("sharded", entry(), touched, count)
        return sum(each.sent_bytes(count) for each in found if "row" in each.what or each.what == "ids")

    assert rows_sent(ranks) == pytest.approx(rows_sent(2) * 2 * (ranks - 1) / ranks)


def test_our_traffic_does_not_follow_the_vocabulary_and_the_dense_one_does() -> None:
    """The same words are in use; ten times as many others exist."""
    counts_V = read_counts(None, 20_000)
    wider_V = np.concatenate([counts_V, np.zeros(180_000)])
    sent: dict[tuple[str, int], float] = {}
    for of_V in (counts_V, wider_V):
        alone = entry(vocabulary=len(of_V))
        for layout in LAYOUTS:
            sent[layout, len(of_V)] = predict(layout, alone, Words(of_V, 500), 8, 16, NETWORK, Machine()).sent_bytes
    for layout, most in (("sharded", 1.1), ("sparse", 1.1)):  # the samples fall on rarer words, so more targets are none of them
        assert sent[layout, 20_000] < sent[layout, 200_000] < most * sent[layout, 20_000]
    assert sent["dense", 200_000] > 9 * sent["dense", 20_000]


def test_a_sparse_all_gather_grows_with_the_ranks() -> None:
    assert foretell("sparse", 512).sent_bytes > 50 * foretell("sparse", 8).sent_bytes
    # The small all-reduce of status grows too, with a few bytes a rank.
    assert foretell("sharded", 64).sent_bytes < 1.2 * foretell("sharded", 8).sent_bytes
