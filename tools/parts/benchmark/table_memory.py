"""A rank's memory against the number of ranks: tables cut by rows over 1, 2 and 4 ranks of this machine, in real training steps.

    python tools/benchmark.py memory [--vocabulary 793471] [--width 1024] [--json memory.json]

Of each number of ranks: resident memory (at its peak, of the largest rank) with the vocabulary, less that with 1,000 words. What is left
should be a rank's share of rows and accumulators, of input and output table and bias. 793,471 x 1024 takes 13 GB.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from lm1b.data.text.benchmark import VOCABULARY_SIZE
from lm1b.files import write_json
from parts.harness.launching import ranks_command
from parts.harness.results import made_by
from parts.harness.step_ranks import WORKER, read_reports, worker_words

SMALL_VOCABULARY, SAMPLES, LANES = 1_000, 400, 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY_SIZE)
    parser.add_argument("--width", type=int, default=1024, help="of input and output rows")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path, help="write all figures there")


def peak_mb(ranks: int, vocabulary: int, width: int) -> float:
    """Peak resident memory in MiB of the largest of so many ranks after some steps. Raises UserError where the launch fails."""
    with tempfile.TemporaryDirectory() as out:
        settings = [f"model.embedding={width}", f"model.projection={width}", f"softmax.samples={SAMPLES}", f"batches.lanes={LANES}"]
        options = {"shape": "lstm_512", "precision": "fp32", "vocabulary": vocabulary, "turns": 1, "steps": 3, "interface": "lo"}
        command = ranks_command(ranks, WORKER, *worker_words(Path(out), settings, [[]], **options))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        reports = read_reports(Path(out), ranks, done, f"{ranks} ranks with {vocabulary:,} words")
        return max(report["peak_memory_mb"] for report in reports)


def run(arguments: argparse.Namespace) -> None:
    """A line for each number of ranks."""
    table_mb = arguments.vocabulary * (2 * arguments.width + 1) * 2 * 4 / 2**20
    print(f"rows and accumulators of {arguments.vocabulary:,} x {arguments.width}: {table_mb:,.0f} MB in all")
    found: list[dict[str, Any]] = []
    for ranks in arguments.ranks:
        whole, rest = (peak_mb(ranks, size, arguments.width) for size in (arguments.vocabulary, SMALL_VOCABULARY))
        share, expected = whole - rest, table_mb / ranks
        found.append({"ranks": ranks, "peak_mb": round(whole), "without_tables_mb": round(rest), "tables_mb": round(share)})
        found[-1] |= {"expected_mb": round(expected), "error_percent": round(100 * (share / expected - 1), 1)}
        print(
            f"{ranks} ranks: {whole:,.0f} MB each, {rest:,.0f} with 1,000 words: {share:,.0f} of tables, "
            f"expected {expected:,.0f} ({100 * (share / expected - 1):+.1f} %)",
            flush=True,
        )
    if arguments.json:
        write_json(arguments.json, {**made_by(), "vocabulary": arguments.vocabulary, "width": arguments.width, "memory": found})
