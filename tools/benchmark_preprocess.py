"""MB of text preprocessed per second of CPU time: `python tools/benchmark_preprocess.py --corpus path/to/benchmark`.

Runs the real thing, corpus to shards, into a folder that is thrown away, with one process by default, and prints one JSON object.
CPU time counts this process and all it started, since machines are shared.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from lm1b.config import parse_config
from lm1b.data.preprocess import preprocess
from lm1b.errors import run_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="a folder in the benchmark's layout, or the .tar.gz")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "run": {"directory": folder},
            "corpus": {"kind": "lm1b", "path": arguments.corpus},
            "tokens": {"directory": str(Path(folder) / "tokens"), "processes": arguments.processes},
            "model": {"cell": "lstm", "hidden": 1},
            "training": {"total_steps": 1},
        }
        started_at, before = time.perf_counter(), os.times()
        tokens = preprocess(parse_config(settings))
        seconds, after = time.perf_counter() - started_at, os.times()
        cpu_seconds = sum(after[:4]) - sum(before[:4])
        text_bytes = sum(file["bytes"] for file in tokens.corpus["files"])
    figures = {
        "text_mb": round(text_bytes / 1e6, 1),
        "processes": arguments.processes,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "mb_per_second": round(text_bytes / 1e6 / seconds, 1),
        "mb_per_cpu_second": round(text_bytes / 1e6 / cpu_seconds, 1),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    run_command(main)
