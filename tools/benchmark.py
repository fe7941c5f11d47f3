"""Words per second of the whole training step, beside the machine's own matrix-product rate, measured in the same run.

    python tools/benchmark.py --config configs/lstm_lm.json --counts training_word_counts.npy
    deepspeed --num_gpus 2 tools/benchmark.py --config configs/lstm_lm.json --counts training_word_counts.npy

Tokens are drawn from the unigram counts, so that rows, samples and traffic are those of the real corpus. `--counts` is a
.npy file of training counts; without it a Zipf curve over --vocabulary words stands in. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from lm1b.config import Config, load_config
from lm1b.data.batches import Batch
from lm1b.distributed import Ranks
from lm1b.errors import run_command
from lm1b.model.language_model import LanguageModel
from lm1b.model.sampler import LogUniformSampler
from lm1b.training.engine import DTYPES, Engine
from lm1b.training.precision import resolve_precision
from lm1b.training.process_group import start_ranks, stop_ranks
from lm1b.training.run import prepare_process
from lm1b.training.step import Tables, TrainingStep


@dataclass
class UnigramBatches:
    """Batches of tokens drawn from unigram counts; the same for every number of ranks."""

    cumulative_V: np.ndarray
    lanes: int
    steps: int
    end_id: int = 0

    def at(self, step: int, first_lane: int, num_lanes: int) -> Batch:
        """See lm1b.data.batches.Batches."""
        generator = np.random.default_rng(step)
        draws = np.searchsorted(self.cumulative_V, generator.random((self.steps + 1, self.lanes)) * self.cumulative_V[-1], side="right")
        tokens = draws[:, first_lane : first_lane + num_lanes].astype(np.int64)
        return Batch(tokens[:-1], tokens[1:], epoch=0, starts_epoch=step == 0)


def word_counts(path: str | None, vocabulary: int) -> np.ndarray:
    """Training counts by falling frequency, float64."""
    if path is None:
        return 1e9 / np.arange(1, vocabulary + 1)
    counts = np.load(path, allow_pickle=False).astype(np.float64)
    counts[793_470:] = 0  # <S> never occurs in the stream
    return np.sort(counts)[::-1]


def gemm_flops_per_second(dtype: torch.dtype, num_positions: int, samples: int, width: int) -> float:
    """This process's rate at the softmax's own shape, median of five."""
    left, right = torch.randn(num_positions, width).to(dtype), torch.randn(samples, width).to(dtype)
    rates = []
    for _ in range(6):
        started_at = time.process_time()
        product = left @ right.T
        del product
        rates.append(2.0 * num_positions * samples * width / (time.process_time() - started_at))
    return statistics.median(rates[1:])


def flops_per_word(config: Config, output_width: int) -> float:
    """Multiply-adds times two of the matrix products, forward and backward (three products for one)."""
    model, flops, width = config.model, 0.0, config.model.embedding
    gates = 4 if model.cell == "lstm" else 1
    for _ in range(model.layers):
        out = model.recurrent_projection or model.hidden
        flops += gates * model.hidden * (width + out) + (model.hidden * out if model.recurrent_projection else 0)
        width = out
    flops += width * model.projection if model.projection else 0
    return 6.0 * (flops + config.softmax.samples * output_width)


def build_step(config: Config, counts_V: np.ndarray, ranks: Ranks, precision: str) -> TrainingStep:
    """A training step as a run has it, on made-up batches, warmed up."""
    prepare_process(config)
    model = LanguageModel(config.model, config.run.seed)
    engine = Engine(model, config, precision, ranks)
    tables = Tables.create(config, len(counts_V), model.output_width, ranks)
    sampler = LogUniformSampler(len(counts_V), config.softmax.samples, config.run.seed)
    batches = UnigramBatches(np.cumsum(counts_V), config.batches.lanes, config.batches.steps)
    step = TrainingStep(config, engine, tables, sampler, batches, ranks)  # type: ignore[arg-type]
    engine.prime(step.zero_loss)
    engine.start_ema()
    for _ in range(3):
        step.run()
    return step


def measure(config: Config, counts_V: np.ndarray, steps: int, trace: bool) -> dict[str, Any] | None:
    """Time `steps` steps; the figures on rank 0, None elsewhere."""
    ranks = start_ranks()
    precision = resolve_precision(config.training.precision, config.model.cell, ranks.device)
    lanes, window = config.batches.lanes, config.batches.steps
    step = build_step(config, counts_V, ranks, precision)
    width = step.model.output_width
    ceiling = gemm_flops_per_second(DTYPES[precision], lanes * window // ranks.size, config.softmax.samples, width)
    seconds, cpu_seconds = [], []
    for _ in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        step.run()
        seconds.append(time.perf_counter() - wall)
        cpu_seconds.append(time.process_time() - cpu)
    if trace and ranks.is_first:
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step.run()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
    elif trace:
        step.run()
    stop_ranks()
    if not ranks.is_first:
        return None
    words, flops = lanes * window, flops_per_word(config, width)
    wall, cpu = statistics.median(seconds), statistics.median(cpu_seconds)
    return {
        "cell": config.model.cell,
        "vocabulary": len(counts_V),
        "samples": config.softmax.samples,
        "ranks": ranks.size,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "words_per_second": round(words / wall),
        "step_seconds": round(wall, 4),
        "step_cpu_seconds_this_rank": round(cpu, 4),
        "mflop_per_word": round(flops / 1e6, 1),
        "gemm_gflops_this_rank": round(ceiling / 1e9, 1),
        "share_of_gemm_rate_by_cpu_time": round(flops * words / ranks.size / cpu / ceiling, 3),
        "peak_memory_mb_this_rank": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "table_mb_this_rank": round(sum(2 * table.rows.numel() * 4 for table in step.tables.all()) / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/lstm_lm.json")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value")
    parser.add_argument("--counts", help=".npy file of training word counts")
    parser.add_argument("--vocabulary", type=int, default=793_471, help="words of the Zipf curve that stands in without --counts")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--trace", action="store_true", help="print the profiler's table of one more step")
    parser.add_argument("--json", help="also write the figures here")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)
    figures = measure(config, word_counts(arguments.counts, arguments.vocabulary), arguments.steps, arguments.trace)
    if figures is not None:
        print(json.dumps(figures, indent=2))
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump(figures, file, indent=2)


if __name__ == "__main__":
    run_command(main)
