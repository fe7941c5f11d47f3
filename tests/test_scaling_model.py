"""The scaling model: its rows against draws, its bytes against what two real ranks send, and the laws of its three layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import run_script
from parts.harness.counts import read_counts
from parts.scaling_model.collectives import Collective, Network
from parts.scaling_model.layouts import BEHIND_THE_STEP, LAYOUTS, Layout, Machine, Prediction, collectives, predict
from parts.scaling_model.loopback import measure_loopback
from parts.scaling_model.measured import Measured, choose, read_measured
from parts.scaling_model.rows import Words
from scaling_worker import VOCABULARY
from tiny import run_ranks, write_settings

from lm1b.errors import UserError
from lm1b.model.sampler import LogUniform, Sampler

NETWORK = Network("wire", 20e-6, 1e9)
PARTS = {"sampler": 0.01, "row fetch": 0.03, "recurrent": 0.2, "softmax": 0.3, "core update": 0.05, "table update": 0.06}


def entry(**changes: Any) -> Measured:
    values = {
        "shape": "lstm_512",
        "precision": "bf16",
        "vocabulary": 20_000,
        "ranks": 1,
        "lanes": 16,
        "steps": 20,
        "samples": 500,
        "embedding": 64,
        "output_width": 32,
        "core_parameters": 40_000,
        "step_seconds": 0.8,
        "parts_seconds": PARTS,
        "peak_memory_mb": 900,
    }
    return Measured.model_validate(values | changes)


def zipf(vocabulary: int, samples: int) -> Words:
    return Words(read_counts(None, vocabulary), samples)


def foretell(layout: Layout, ranks: int, network: Network = NETWORK, machine: Machine | None = None, **changes: Any) -> Prediction:
    """Weak scaling of a made-up measurement."""
    alone = entry(**changes)
    return predict(layout, alone, zipf(alone.vocabulary, alone.samples), ranks, alone.lanes, network, machine or Machine())


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


# Time and memory ------------------------------------------------------------------------------------------------


def test_a_collective_takes_its_messages_and_its_bytes() -> None:
    gather, exchange, reduce = (Collective("x", kind, 8e6) for kind in ("all_gather", "all_to_all", "all_reduce"))
    assert gather.seconds(4, NETWORK) == pytest.approx(3 * 20e-6 + 6e-3)
    assert exchange.seconds(4, NETWORK) == pytest.approx(3 * 20e-6 + 6e-3)
    assert reduce.seconds(4, NETWORK) == pytest.approx(6 * 20e-6 + 12e-3)
    small = Collective("x", "all_to_all", 8 * 1024)
    assert small.seconds(1024, NETWORK, "best") == pytest.approx(10 * (20e-6 + 4 * 1024 / 1e9))
    assert exchange.seconds(4, NETWORK, "best") == exchange.seconds(4, NETWORK)


def test_table_memory_falls_with_the_ranks_in_our_layout_alone() -> None:
    big = {"vocabulary": 200_000, "embedding": 512, "output_width": 512, "peak_memory_mb": 3000}
    tables = 2 * 4 * 200_000 * 1025
    ours = [foretell("sharded", ranks, **big).memory_bytes for ranks in (1, 2, 4)]
    assert ours[0] - ours[1] == pytest.approx(tables / 2, rel=0.01)
    assert ours[1] - ours[2] == pytest.approx(tables / 4, rel=0.01)
    assert foretell("sparse", 4, **big).memory_bytes > 0.98 * ours[0]
    assert foretell("dense", 4, **big).memory_bytes > ours[0] + 0.48 * tables


def test_ranks_that_share_too_few_cores_compute_at_that_share() -> None:
    free = Network("none", 0.0, 1e30)
    own = foretell("sharded", 4, free)
    shared = foretell("sharded", 4, free, Machine(ranks_per_host=4, cores=2))
    assert shared.step_seconds == pytest.approx(2 * own.step_seconds)
    assert foretell("sharded", 2, free, Machine(ranks_per_host=4, cores=2)).step_seconds == pytest.approx(
        foretell("sharded", 2, free).step_seconds
    )


def test_ranks_of_a_host_share_its_wire() -> None:
    wire = Network("wire", 0.0, 1e9)
    one, four = foretell("sharded", 16, wire), foretell("sharded", 16, wire, Machine(ranks_per_host=4))
    assert four.communication_seconds == pytest.approx(4 * one.communication_seconds)


# Overlap --------------------------------------------------------------------------------------------------------


def in_order(ranks: int, network: Network = NETWORK, machine: Machine | None = None, layout: Layout = "sharded") -> Prediction:
    alone = entry()
    words = zipf(alone.vocabulary, alone.samples)
    return predict(layout, alone, words, ranks, alone.lanes, network, machine or Machine(), overlap=False)


def seconds_of(overlap: bool, names: tuple[str, ...], ranks: int, network: Network) -> float:
    found = collectives("sharded", entry(), zipf(20_000, 500).touched(320, ranks), ranks, overlap)
    return sum(each.seconds(ranks, network) for each in found if each.what in names)


def test_only_late_rows_and_the_core_are_waited_for_where_the_step_is_long_enough() -> None:
    exposed = seconds_of(True, ("late rows", "status", "norm", "core gradient", "core weights"), 8, NETWORK)
    ahead = foretell("sharded", 8)
    assert ahead.communication_seconds == pytest.approx(exposed)
    assert ahead.hidden_seconds == pytest.approx(seconds_of(True, BEHIND_THE_STEP, 8, NETWORK))
    everything = seconds_of(False, ("counts", "ids", "rows", "row gradients", "status", "core gradient", "core weights"), 8, NETWORK)
    assert (in_order(8).communication_seconds, in_order(8).hidden_seconds) == (pytest.approx(everything), 0.0)
    assert ahead.words_per_second > in_order(8).words_per_second


def test_what_takes_longer_than_the_step_computes_is_waited_for() -> None:
    slow = Network("slow", 0.0, 1e4)
    ahead = foretell("sharded", 8, slow)
    behind = seconds_of(True, BEHIND_THE_STEP, 8, slow)
    computing = ahead.step_seconds - ahead.communication_seconds
    assert behind > 2 * computing
    assert ahead.hidden_seconds == pytest.approx(computing)
    exposed = seconds_of(True, ("late rows", "status", "core gradient", "core weights"), 8, slow)
    assert ahead.communication_seconds == pytest.approx(exposed + behind - computing)


def test_overlap_changes_bytes_by_the_marks_alone() -> None:
    touched = zipf(20_000, 500).touched(320, 8)
    marks = (touched.inputs + touched.outputs) * 7 / 8
    assert foretell("sharded", 8).sent_bytes - in_order(8).sent_bytes == pytest.approx(marks)


def test_nothing_hides_on_loopback_while_all_cores_compute() -> None:
    assert foretell("sharded", 2, machine=Machine(2, cores=2, is_loopback=True)).hidden_seconds == 0
    assert foretell("sharded", 2, machine=Machine(2, cores=4, is_loopback=True)).hidden_seconds > 0


@pytest.mark.parametrize("layout", ["sparse", "dense"])
def test_the_other_layouts_overlap_nothing(layout: Layout) -> None:
    assert foretell(layout, 8) == in_order(8, layout=layout)


def test_a_second_measurement_tells_what_does_not_follow_the_lanes() -> None:
    """0.3 s of the step are fixed and 0.35 s follow the lanes, beside 0.15 s in other parts."""
    parts = {name: PARTS[name] for name in ("sampler", "row fetch", "core update", "table update")}
    runs = [entry(parts_seconds=parts), entry(parts_seconds=parts, lanes=8, step_seconds=0.8 - 0.175)]
    fitted = runs[0].with_fixed_seconds(runs)
    assert fitted.fixed_seconds == pytest.approx(0.3)
    assert fitted.seconds_at(4) == pytest.approx(0.3 + 0.35 / 4)
    assert runs[0].with_fixed_seconds(runs[:1]).seconds_at(4) == pytest.approx(0.65 / 4)


def test_parts_that_add_up_to_more_than_the_step_shrink_to_it() -> None:
    assert entry(step_seconds=0.325).part("softmax") == pytest.approx(0.15)
    assert entry(parts_seconds={}).seconds_by_lanes() == 0.8
    assert entry(parts_seconds={"softmax": None}).missing_parts() == ["row fetch", "table update", "sampler", "core update"]


def test_loopback_is_measured_between_two_processes() -> None:
    network = measure_loopback()
    assert 1e-6 < network.latency_seconds < 0.5
    assert 1e6 < network.bytes_per_second < 1e12


# Files and the command ------------------------------------------------------------------------------------------


def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({"training": [entry().model_dump() | {"lanes": 0}]}))
    with pytest.raises(UserError, match=r"training\[0\].lanes: .*greater than 0"):
        read_measured(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="expected"):
        read_measured(path)
    with pytest.raises(UserError, match=r"there are: lstm_512 bf16 V=20,000"):
        choose([entry()], None, "fp32", None)
    np.save(tmp_path / "counts.npy", np.arange(9))
    with pytest.raises(UserError, match=r"9 words, but the measurement has 20,000"):
        read_counts(tmp_path / "counts.npy", 20_000)
    with pytest.raises(UserError, match="LATENCY_US,GBIT"):
        Network.parse("1gbit=fast")


def test_the_command_predicts_checks_and_draws(tmp_path: Path) -> None:
    path, written, picture = tmp_path / "benchmark.json", tmp_path / "out.json", tmp_path / "out.png"
    runs = [entry(), entry(lanes=8, step_seconds=0.6), entry(ranks=2, step_seconds=0.7, peak_memory_mb=880)]
    path.write_text(json.dumps({"training": [run.model_dump() for run in runs]}))
    options = ["--check", "--network", "loopback=100,20", "--network", "lan=30,25", "--json", str(written), "--plot", str(picture)]
    command = ["tools/scaling_model.py", str(path), *options, "--cores", "2", "--most-ranks", "64", "--scaling", "strong"]
    done = run_script(*command)
    assert done.returncode == 0, done.stderr
    assert "lan (30 µs, 25 Gbit/s)" in done.stdout
    found = json.loads(written.read_text())
    (predictions,) = found["predictions"].values()
    assert {each["ranks"] for each in predictions} == {1, 2, 4, 8, 16}  # no rank without a lane
    (checked,) = [line for line in found["check"] if line["ranks"] == 2]
    assert checked["measured_words_per_second"] == pytest.approx(320 / 0.7)
    assert checked["error_percent"] == pytest.approx(100 * (checked["predicted_words_per_second"] / (320 / 0.7) - 1))
    assert f"{checked['error_percent']:+.1f} %" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert run_script(*command, "--no-overlap").returncode == 0
    (others,) = json.loads(written.read_text())["predictions"].values()
    ahead, ordered = ([each for each in of if each["layout"] == "sharded" and each["ranks"] == 8] for of in (predictions, others))
    assert ahead[0]["hidden_seconds"] > ordered[0]["hidden_seconds"] == 0


def test_a_check_without_a_network_of_this_machine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({"training": [entry().model_dump()]}))
    done = run_script("tools/scaling_model.py", str(path), "--check")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--measure-loopback" in done.stderr
