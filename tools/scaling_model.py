"""Predicts words/s, memory and bytes on the wire for 1 to 4,096 ranks from what one rank was measured to take.

    python tools/benchmark.py --json benchmark.json    # several lanes and ranks
    python tools/scaling_model.py benchmark.json --counts training_word_counts.npy --plot scaling.png
    python tools/scaling_model.py benchmark.json --counts training_word_counts.npy --check --measure-loopback

Our row-sharded tables stand beside replicated tables with a sparse all-gather or a dense all-reduce of their gradients. What is sent
and held: tools/parts/scaling_model/layouts.py; what that takes: collectives.py there; how many rows: rows.py. Weak scaling keeps a rank's
lanes, strong scaling the lanes of all ranks together. --check predicts the runs of several ranks in the same JSON, all on this machine,
and prints by how much it errs.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from parts.harness.counts import read_counts
from parts.harness.results import made_by
from parts.scaling_model.collectives import NETWORKS, Network
from parts.scaling_model.layouts import LAYOUTS, Machine, predict
from parts.scaling_model.loopback import measure_loopback
from parts.scaling_model.measured import Measured, choose, read_measured
from parts.scaling_model.report import Predictions, aligned, as_text, describe, draw
from parts.scaling_model.rows import Words

from lm1b.errors import UserError, run_command
from lm1b.files import write_json

LOOPBACK = "loopback"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="what tools/benchmark.py --json wrote")
    parser.add_argument("--counts", type=Path, help=".npy file of training word counts; a Zipf curve stands in without it")
    parser.add_argument("--shape", help="which measurement of one rank to start from (default: the first)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--vocabulary", type=int, help="words")
    parser.add_argument("--scaling", choices=("weak", "strong"), default="weak", help="default: weak")
    parser.add_argument("--lanes", type=int, help="of a rank (weak) or of all (strong); default: as measured")
    parser.add_argument("--most-ranks", type=int, default=4096, help="predicted for powers of two up to here (default: 4096)")
    parser.add_argument(
        "--network", action="append", default=[], metavar="NAME=US,GBIT", help="latency of a message and bandwidth; repeatable"
    )
    parser.add_argument(
        "--algorithms", choices=("gloo", "best"), default="gloo", help="of the collectives; best: the cheaper, as MPI chooses"
    )
    parser.add_argument("--no-overlap", action="store_true", help="as with communication.overlap=false: no rows travel behind the steps")
    parser.add_argument("--ranks-per-host", type=int, default=1, help="they share its network, and its cores where --cores is given")
    parser.add_argument("--cores", type=int, help="of a host (default: enough for its ranks; with --check: of this machine)")
    parser.add_argument("--check", action="store_true", help="predict the measured runs of several ranks on this machine")
    parser.add_argument("--measure-loopback", action="store_true", help=f"measure this machine's own network, named {LOOPBACK}")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--plot", type=Path, help="draw it to this PNG file")
    arguments = parser.parse_args()
    for name in ("lanes", "most_ranks", "ranks_per_host", "cores", "vocabulary"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    return arguments


def networks_of(arguments: argparse.Namespace) -> list[Network]:
    """Those that were named, else the usual ones; the measured loopback in front."""
    named = [Network.parse(text) for text in arguments.network]
    if len({network.name for network in named}) < len(named):
        raise UserError("--network: two have the same name; give each its own")
    if arguments.measure_loopback:
        named = [measure_loopback(), *(network for network in named if network.name != LOOPBACK)]
    return named or NETWORKS


def ranks_of(arguments: argparse.Namespace, lanes: int) -> list[int]:
    """Powers of two; under strong scaling as long as every rank has a lane."""
    most = min(arguments.most_ranks, lanes) if arguments.scaling == "strong" else arguments.most_ranks
    return [2**power for power in range(most.bit_length())]


def scaling(arguments: argparse.Namespace, entry: Measured, words: Words, networks: list[Network]) -> Predictions:
    """Predictions for each network but the loopback, which does not leave this machine."""
    lanes = arguments.lanes or entry.lanes
    machine = Machine(arguments.ranks_per_host, arguments.cores)
    return {
        describe(network): [
            predict(
                layout,
                entry,
                words,
                ranks,
                lanes if arguments.scaling == "weak" else lanes / ranks,
                network,
                machine,
                arguments.algorithms,
                not arguments.no_overlap,
            )
            for ranks in ranks_of(arguments, lanes)
            for layout in LAYOUTS
        ]
        for network in networks
        if network.name != LOOPBACK
    }


def check(arguments: argparse.Namespace, measured: list[Measured], network: Network) -> list[dict[str, Any]]:
    """Every measured run that has one of one rank beside it: measured and predicted words/s and memory, errors in percent.

    All ranks are taken to share this machine. The run of one rank that has the same lanes in all is what the others are predicted from.
    """
    cores = arguments.cores or len(os.sched_getaffinity(0))
    checked, known_words = [], {}
    for run in measured:
        alone = sorted((one for one in measured if one.ranks == 1 and one.same_work(run)), key=lambda one: one.lanes != run.lanes)
        if not alone or any(wanted not in (None, getattr(run, key)) for key, wanted in _wanted(arguments).items()):
            continue
        entry = alone[0].with_fixed_seconds(measured)
        key = run.vocabulary, run.samples
        if key not in known_words:
            known_words[key] = Words(read_counts(arguments.counts, run.vocabulary), run.samples)
        machine = Machine(run.ranks, cores, is_loopback=True)
        expected = predict(
            "sharded", entry, known_words[key], run.ranks, run.lanes / run.ranks, network, machine, overlap=not arguments.no_overlap
        )
        memory = run.peak_memory_mb * 2**20 if run.peak_memory_mb and entry.peak_memory_mb else None
        checked.append(
            {
                "run": run.name,
                "ranks": run.ranks,
                "lanes": run.lanes,
                "cores": cores,
                "measured_words_per_second": run.words_per_second,
                "predicted_words_per_second": expected.words_per_second,
                "error_percent": 100 * (expected.words_per_second / run.words_per_second - 1),
                "predicted_communication_seconds": expected.communication_seconds,
                "sent_bytes": expected.sent_bytes,
                "measured_memory_bytes": memory,
                "predicted_memory_bytes": expected.memory_bytes if memory else None,
                "memory_error_percent": 100 * (expected.memory_bytes / memory - 1) if memory else None,
            }
        )
    if not any(line["ranks"] > 1 for line in checked):
        raise UserError(f"--check: {arguments.benchmark} has no run of several ranks beside one of one rank; measure both")
    return checked


def _wanted(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"shape": arguments.shape, "precision": arguments.precision, "vocabulary": arguments.vocabulary}


def check_as_text(checked: list[dict[str, Any]]) -> str:
    rows = [["run", "ranks", "lanes", "words/s measured", "predicted", "error", "MB held measured", "predicted", "error"]]
    for line in checked:
        row = [line["run"], str(line["ranks"]), str(line["lanes"])]
        row += [f"{line[key]:,.0f}" for key in ("measured_words_per_second", "predicted_words_per_second")]
        row.append(f"{line['error_percent']:+.1f} %")
        if line["measured_memory_bytes"] is None:
            row += ["", "", ""]
        else:
            row += [f"{line[key] / 1e6:,.0f}" for key in ("measured_memory_bytes", "predicted_memory_bytes")]
            row.append(f"{line['memory_error_percent']:+.1f} %")
        rows.append(row)
    return aligned(rows)


def main() -> None:
    arguments = parse_arguments()
    measured = read_measured(arguments.benchmark)
    entry = choose(measured, **_wanted(arguments))
    words = Words(read_counts(arguments.counts, entry.vocabulary), entry.samples)
    networks = networks_of(arguments)
    loopback = next((network for network in networks if network.name == LOOPBACK), None)
    if arguments.check and loopback is None:
        raise UserError(f"--check needs this machine's own network: --measure-loopback, or --network {LOOPBACK}=US,GBIT")
    if all(other.lanes == entry.lanes for other in measured if other.ranks == 1 and other.same_work(entry)):
        print("no run of one rank with other lanes: recurrent layers, softmax and backward are taken to grow with the lanes alone")
    if entry.missing_parts():
        print(f"not measured, taken to grow with the lanes and to cost nothing beside: {', '.join(entry.missing_parts())}")
    predictions = scaling(arguments, entry, words, networks)
    checked = check(arguments, measured, loopback) if arguments.check and loopback else []
    kept = "lanes a rank" if arguments.scaling == "weak" else "lanes in all"
    title = f"{entry.name}, {arguments.lanes or entry.lanes} {kept} x {entry.steps}, {entry.samples:,} samples, {arguments.scaling} scaling"
    print(title)
    if predictions:
        print(f"\n{as_text(predictions)}")
    if checked and loopback:
        print(f"\nChecked on this machine, {describe(loopback)}:\n{check_as_text(checked)}")
    if arguments.plot:
        if not predictions:
            raise UserError("--plot: there is no network to draw beside the loopback; name one with --network")
        draw(predictions, title, arguments.plot)
    if arguments.json:
        found = {name: [dataclasses.asdict(each) for each in of] for name, of in predictions.items()}
        described = [dataclasses.asdict(network) for network in networks]
        told = {"measurement": entry.model_dump(), "networks": described, "predictions": found, "check": checked}
        write_json(arguments.json, {**made_by(), **told})


if __name__ == "__main__":
    run_command(main)
