"""The scaling model's time and memory: what is waited for and what overlaps, and the command that predicts, checks and draws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_runs import run_script
from made_measurements import NETWORK, PARTS, entry, foretell, zipf
from parts.harness.counts import read_counts
from parts.scaling_model.collectives import Collective, Network
from parts.scaling_model.layouts import BEHIND_THE_STEP, Layout, Machine, Prediction, collectives, predict
from parts.scaling_model.loopback import measure_loopback
from parts.scaling_model.measured import choose, read_measured

from lm1b.errors import UserError

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
