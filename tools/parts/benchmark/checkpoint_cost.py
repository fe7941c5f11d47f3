"""What saving and loading checkpoints costs, on tables of the real size.

    python tools/benchmark.py checkpoints --config configs/lstm_lm.json --folder /where/there/is/space
    deepspeed --num_gpus 2 tools/benchmark.py checkpoints --config configs/lstm_lm.json --folder /where/there/is/space

Stretches of `--every` steps with a checkpoint written behind them and stretches without take turns; then one checkpoint is
written while nothing else happens, verified, and read back into the tables. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from lm1b.config import Config, load_config
from lm1b.data.text.benchmark import VOCABULARY_SIZE
from lm1b.memory import peak_memory_mb
from lm1b.precision import resolve_precision
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.checkpoints.saving import CheckpointSaver
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.step.training_step import TrainingStep
from parts.benchmark.checkpoints import barrier, begin, checkpoint_bytes, read_back, save, seconds_of
from parts.harness.counts import read_counts
from parts.harness.steps import build_step


def stretch_seconds(step: TrainingStep, num_steps: int, saver: CheckpointSaver | None) -> float:
    """Wall seconds of some steps, with a checkpoint begun before the first where there is a saver, and committed."""
    barrier(step.ranks)
    started_at = time.perf_counter()
    if saver is not None:
        begin(step, saver)
    for _ in range(num_steps):
        step.run()
        if saver is not None:
            saver.poll()
    if saver is not None:
        saver.finish()
    barrier(step.ranks)
    return time.perf_counter() - started_at


def measure(config: Config, vocabulary: int, every: int, rounds: int, folder: Path) -> dict[str, Any]:
    """The figures, in seconds and bytes; every rank has its own view of them."""
    ranks = start_ranks()
    precision = resolve_precision(config.training.precision, ranks.device)
    step = build_step(config, read_counts(None, vocabulary), ranks, precision)
    saver = CheckpointSaver(folder, ranks)
    peak_before = peak_memory_mb()
    without, saving, in_the_way = [], [], []
    for _ in range(rounds):
        without.append(stretch_seconds(step, every, None))
        saving.append(stretch_seconds(step, every, saver))
        started_at = time.perf_counter()
        begin(step, saver)
        in_the_way.append(time.perf_counter() - started_at)
        saver.finish()
    peak = peak_memory_mb()
    found: list[Checkpoint] = []
    alone = seconds_of(lambda: found.append(save(step, saver)), ranks)
    checkpoint = found[0]
    verified = seconds_of(lambda: checkpoint.verify(ranks.rank, ranks.size), ranks)
    read = seconds_of(lambda: read_back(step, checkpoint), ranks)
    num_bytes = checkpoint_bytes(checkpoint)
    figures = {
        "ranks": ranks.size,
        "precision": precision,
        "vocabulary": vocabulary,
        "checkpoint_bytes": num_bytes,
        "steps_between_checkpoints": every,
        "seconds_without": [round(value, 2) for value in without],
        "seconds_with_a_checkpoint": [round(value, 2) for value in saving],
        "share_of_wall_time_lost": round(1.0 - statistics.median(without) / statistics.median(saving), 4),
        "seconds_the_steps_wait_at_the_start": round(statistics.median(in_the_way), 3),
        "staging_mb_this_rank": round(peak - peak_before),
        "seconds_to_save_alone": round(alone, 2),
        "save_mb_per_second": round(num_bytes / 1e6 / alone),
        "seconds_to_verify": round(verified, 2),
        "seconds_to_read": round(read, 2),
    }
    stop_ranks()
    return figures | {"is_first": ranks.is_first}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--config", default="configs/lstm_lm.json")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY_SIZE)
    parser.add_argument("--every", type=int, default=200, help="steps between two checkpoints")
    parser.add_argument("--rounds", type=int, default=2, help="stretches of each kind")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go; all are removed (default: the temporary folder)")


def run(arguments: argparse.Namespace) -> None:
    """Measure, and have the first rank print it."""
    config = load_config(arguments.config, arguments.set)
    folder = Path(arguments.folder or tempfile.gettempdir()) / "lm1b_benchmark_checkpoints"
    try:
        figures = measure(config, arguments.vocabulary, arguments.every, arguments.rounds, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if figures.pop("is_first"):
        print(json.dumps(figures, indent=2))
