"""What ranks on several hosts send in a step, beside the formula, and how much of it is hidden behind computing.

    python tools/cluster.py traffic [--counts COUNTS] [--json traffic.json]

Training steps of the real size on the cluster in a box, one rank a host, launched over ssh:

1. Bytes a step by the interfaces' own counters on 2, 3 and 4 hosts and with two vocabularies, beside the sum over collectives that
   tools/scaling_model.py computes from the counts (headers of TCP, IP and Ethernet are only in the first).
2. Two hosts at 1 Gbit/s: seconds a step, and waiting for rows and their gradients in it, with rows fetched ahead and in order, by turns;
   the same on links of no set speed. What is hidden is the share of that waiting that fetching ahead takes away. On a machine
   whose cores all compute, the thread that fetches takes its time from the steps, so they gain less than that.

About ten minutes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from lm1b.files import write_json
from parts.cluster.cluster import Cluster
from parts.cluster.formula import expected_sent_bytes
from parts.harness.counts import read_counts
from parts.harness.launching import REPOSITORY
from parts.harness.results import made_by
from parts.harness.shapes import shape_config
from parts.harness.step_ranks import WORKER, read_reports, worker_words

VOCABULARIES = (82_453, 793_471)
AHEAD, IN_ORDER = ["communication.overlap=true"], ["communication.overlap=false"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--shape", default="lstm_512", help="of tools/benchmark.py")
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--lanes", type=int, default=120, help="of all ranks together (120: any of 2, 3, 4 hosts divides it)")
    parser.add_argument("--counts", type=Path, help=".npy of training counts; a Zipf curve where not given")
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=list(VOCABULARIES))
    parser.add_argument("--rate", default="1gbit", help="of the links of point 2")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="a turn")
    parser.add_argument("--shared", type=Path, default=Path.cwd(), help="a folder below which the hosts share one")
    parser.add_argument("--only", choices=["bytes", "overlap"], help="point 1 or point 2")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override the shape's config")
    parser.add_argument("--json", type=Path, help="write all figures there")


def _settings(arguments: argparse.Namespace) -> list[str]:
    return [f"batches.lanes={arguments.lanes}", *arguments.set]


class Bench:
    """Takes steps on clusters and reads what the ranks have seen."""

    def __init__(self, arguments: argparse.Namespace, workplace: Path) -> None:
        self.arguments, self.workplace = arguments, workplace

    def steps(self, hosts: int, vocabulary: int, cases: list[list[str]], rate: str | None) -> list[dict[str, Any]]:
        """Every rank's report, by rank. Raises UserError where the launch fails."""
        given, out = self.arguments, Path(tempfile.mkdtemp(dir=self.workplace))
        counts = given.counts and shutil.copy(given.counts, self.workplace / "counts.npy")
        options = {"vocabulary": vocabulary, "turns": given.turns, "steps": given.steps, "counts": counts}
        words = worker_words(out, _settings(given), cases, shape=given.shape, precision=given.precision, **options)
        with Cluster(hosts, workplace=self.workplace, rate=rate, variables={"OMP_NUM_THREADS": "1"}) as cluster:
            done = cluster.run(["deepspeed", "--hostfile", cluster.hostfile, str(WORKER), *words], folder=REPOSITORY)
        return read_reports(out, hosts, done, f"the steps on {hosts} hosts")

    def expected_bytes(self, report: dict[str, Any], vocabulary: int) -> float:
        """What a rank should send in a step; see `expected_sent_bytes`."""
        given = self.arguments
        config = shape_config(given.shape, given.precision, _settings(given))
        counts_V = read_counts(given.counts, vocabulary)
        return expected_sent_bytes(config, given.precision, counts_V, report["cases"][0]["core_parameters"], report["ranks"])


def measure_bytes(bench: Bench) -> list[dict[str, Any]]:
    """Point 1, a line for each number of hosts and vocabulary."""
    lines = []
    for hosts in bench.arguments.hosts:
        for vocabulary in bench.arguments.vocabularies:
            reports = bench.steps(hosts, vocabulary, [AHEAD, IN_ORDER], None)
            expected = bench.expected_bytes(reports[0], vocabulary)
            ahead, in_order = (statistics.mean(report["cases"][i]["sent_bytes"] for report in reports) for i in (0, 1))
            lines.append(
                {
                    "hosts": hosts,
                    "vocabulary": vocabulary,
                    "sent_bytes_ahead": round(ahead),
                    "sent_bytes_in_order": round(in_order),
                    "formula_bytes": round(expected),
                    "error_percent": round(100 * (ahead / expected - 1), 1),
                    "received_bytes": [round(report["cases"][0]["received_bytes"]) for report in reports],
                    "peak_memory_mb": [round(report["peak_memory_mb"]) for report in reports],
                }
            )
            line = lines[-1]
            print(
                f"{hosts} hosts, {vocabulary:,} words: each sends {ahead / 1e6:.2f} MB a step, rows fetched ahead "
                f"({in_order / 1e6:.2f} in order); by the formula {expected / 1e6:.2f} ({line['error_percent']:+.1f} %)",
                flush=True,
            )
    return lines


def _row_waiting(cases: list[dict[str, Any]]) -> float:
    """Mean seconds a step that ranks wait for rows and for gradients of rows."""
    return statistics.mean(case["waiting_seconds"]["rows"] + case["waiting_seconds"]["row gradients"] for case in cases)


def measure_overlap(bench: Bench) -> dict[str, Any]:
    """Point 2."""
    vocabulary, rate = bench.arguments.vocabularies[-1], bench.arguments.rate
    found: dict[str, Any] = {"hosts": 2, "vocabulary": vocabulary, "rate": rate}
    for name, link in (("fast", None), ("slow", rate)):
        reports = bench.steps(2, vocabulary, [AHEAD, IN_ORDER], link)
        for i, how in enumerate(("ahead", "in_order")):
            cases = [report["cases"][i] for report in reports]
            step, waiting = statistics.mean(case["step_seconds"] for case in cases), _row_waiting(cases)
            found[f"{name}_{how}"] = {"step_seconds": round(step, 4), "waiting_for_rows_seconds": round(waiting, 4)}
            found[f"{name}_{how}"]["waiting_by_rank"] = [case["waiting_seconds"] for case in cases]
            print(
                f"two hosts, {link or 'fast links'}, {how.replace('_', ' ')}: {step * 1000:.0f} ms a step, "
                f"{waiting * 1000:.0f} of it waiting for rows and their gradients",
                flush=True,
            )
    in_order, ahead = found["slow_in_order"]["waiting_for_rows_seconds"], found["slow_ahead"]["waiting_for_rows_seconds"]
    found["hidden_share_of_waiting"] = round(1 - ahead / in_order, 3) if in_order else None
    return found


def run(arguments: argparse.Namespace) -> None:
    """Both points, or the one that was asked for."""
    with tempfile.TemporaryDirectory(prefix="lm1b-traffic-", dir=arguments.shared) as folder:
        bench = Bench(arguments, Path(folder))
        found: dict[str, Any] = {"shape": arguments.shape, "precision": arguments.precision, "lanes": arguments.lanes}
        for name, measure in (("bytes", measure_bytes), ("overlap", measure_overlap)):
            if arguments.only in (None, name):
                found[name] = measure(bench)
    if arguments.json:
        write_json(arguments.json, {**made_by(), **found})
