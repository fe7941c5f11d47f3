"""A rank's memory against the number of ranks: tables cut by rows over 1, 2 and 4 ranks of this machine, in real training steps.

    python tools/table_memory.py [--vocabulary 793471] [--width 1024] [--json memory.json]

Of each number of ranks: resident memory (at its peak, of the largest rank) with the vocabulary, less that with 1,000 words. What is left
should be a rank's share of rows and accumulators, of input and output table and bias. 793,471 x 1024 takes 13 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.shapes import BENCHMARK_WORDS, DEEPSPEED, REPOSITORY

from lm1b.errors import UserError, run_command
from lm1b.files import write_json

SMALL_VOCABULARY, SAMPLES, LANES = 1_000, 400, 8
WORKER = REPOSITORY / "tools" / "benchmarks" / "step_worker.py"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=BENCHMARK_WORDS)
    parser.add_argument("--width", type=int, default=1024, help="of input and output rows")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def peak_mb(ranks: int, vocabulary: int, width: int) -> float:
    """Peak resident memory in MiB of the largest of so many ranks after some steps. Raises UserError where the launch fails."""
    with tempfile.TemporaryDirectory() as out:
        command = [DEEPSPEED, "--num_gpus", str(ranks), str(WORKER), "--out", out, "--shape", "lstm_512", "--precision", "fp32"]
        command += ["--vocabulary", str(vocabulary), "--cases", "[[]]", "--turns", "1", "--steps", "3", "--interface", "lo"]
        settings = [f"model.embedding={width}", f"model.projection={width}", f"softmax.samples={SAMPLES}", f"batches.lanes={LANES}"]
        command += [word for setting in [*settings, "training.threads=1"] for word in ("--set", setting)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        reports = [json.loads(file.read_text()) for file in Path(out).glob("*.json")]
        if done.returncode or len(reports) != ranks:
            raise UserError(f"{ranks} ranks with {vocabulary:,} words have failed: {done.stdout.strip().splitlines()[-1:]}")
        return max(report["peak_memory_mb"] for report in reports)


def main() -> None:
    arguments = parse_arguments()
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
        write_json(arguments.json, {"vocabulary": arguments.vocabulary, "width": arguments.width, "memory": found})


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_command(main)
