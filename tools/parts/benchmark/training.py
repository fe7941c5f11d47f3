"""A worker that takes training steps of any shape on tables of the real size: words/s, shares of the ceiling, parts, work.

Started by tools/benchmark.py, as one process or through the `deepspeed` launcher; see harness/turns.py.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where it finds `parts`

from lm1b.devices import synchronize
from lm1b.distributed import Ranks
from lm1b.memory import peak_memory_mb
from lm1b.model.costs import flops_per_word
from lm1b.model.kernels import VARIABLE, triton_kernels
from lm1b.model.tables import Tables
from lm1b.precision import DTYPES
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.step.training_step import TrainingStep
from parts.benchmark.checkpoints import measure_checkpoint
from parts.benchmark.machine import Ceiling, peak_memory, peak_memory_from_here
from parts.benchmark.profiled import Parts, profile_steps
from parts.benchmark.thread_time import ThreadTime
from parts.harness.counts import read_counts
from parts.harness.shapes import shape_config
from parts.harness.steps import build_step, filled_tables
from parts.harness.turns import serve

# Of one turn: on a GPU so many that its queue is full, as in a training; a turn ends when all of them are done.
STEPS_A_TURN = {"cpu": 1, "cuda": 20}
PROFILED_FACTOR = {"cpu": 1, "cuda": 5}


class Training:
    """The worker's state: one step at a time, tables kept for the next of equal widths."""

    def __init__(self, ranks: Ranks, counts: str | None) -> None:
        self.ranks, self.counts = ranks, counts
        self._tables: tuple[tuple[int, int, int], Tables] | None = None
        self.step: TrainingStep | None = None

    def build(self, shape: str, precision: str, vocabulary: int, overrides: list[str], triton: bool = False) -> dict[str, Any]:
        """Make the step of a shape, and forget the last one. triton: by its kernels, where a GPU computes. -> nothing."""
        os.environ[VARIABLE] = str(int(triton))
        if self.step is not None:
            self.step.close()
            self.step.engine.close()
        self.step = None
        if self.ranks.device.type == "cuda":
            gc.collect()  # what the last shape left, or its peak would count here
            peak_memory_from_here(self.ranks.device)
        config = shape_config(shape, precision, overrides)
        width = config.model.output_width
        key = (vocabulary, config.model.embedding, width)
        counts_V = read_counts(self.counts, vocabulary)
        if self._tables is None or self._tables[0] != key:
            self._tables = None
            self._tables = key, filled_tables(config, vocabulary, self.ranks)
        self.config, self.precision = config, precision
        self.step = build_step(config, counts_V, self.ranks, precision, self._tables[1])
        positions = config.batches.lanes * config.batches.steps // self.ranks.size
        self.ceiling = Ceiling(DTYPES[precision], positions, config.softmax.samples, width, self.ranks.device)
        if self.ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.ranks.device)  # the steps' own, not that of building them
        self.wall, self.cpu, self.faults, self.threads = [], [], [], ThreadTime()
        return {}

    def steps(self, count: int) -> dict[str, Any]:
        """Take some turns of steps, a product for the ceiling before each. What is kept is of one step. -> nothing; see `result`."""
        assert self.step is not None
        device = self.ranks.device
        taken = STEPS_A_TURN[device.type]
        for _ in range(count):
            self.ceiling.measure()
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            self.threads.start()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(taken):
                self.step.run()
            synchronize(device)
            self.wall.append((time.perf_counter() - wall) / taken)
            self.cpu.append((time.process_time() - cpu) / taken)
            self.threads.stop()
            self.faults.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / taken)
        return {}

    def result(self, profiled_steps: int) -> dict[str, Any]:
        """What the steps so far were, and the parts of a few more: an entry of `training` in the benchmark's JSON."""
        step, config = self.step, self.config
        assert step is not None
        device = self.ranks.device
        gpu_memory = peak_memory(device) - self.ceiling.num_bytes if device.type == "cuda" else 0
        parts = profile_steps(step.run, profiled_steps * PROFILED_FACTOR[device.type], self.ranks.size == 1, device)
        words = config.batches.lanes * config.batches.steps
        wall, cpu = statistics.median(self.wall), statistics.median(self.cpu)
        flops = flops_per_word(config.model, config.softmax.samples) * words / self.ranks.size
        return {
            "device": device.type,
            "triton": triton_kernels(device) is not None,
            "precision": self.precision,
            "vocabulary": step.tables.input.num_rows,
            "ranks": self.ranks.size,
            "threads": torch.get_num_threads(),
            "lanes": config.batches.lanes,
            "steps": config.batches.steps,
            "samples": config.softmax.samples,
            "embedding": config.model.embedding,
            "output_width": step.model.output_width,
            "core_parameters": step.engine.core_size,
            "mflop_per_word": round(flops_per_word(config.model, config.softmax.samples) / 1e6, 1),
            "step_seconds": round(wall, 5),
            "step_seconds_all": [round(value, 5) for value in self.wall],
            "words_per_second": round(words / wall),
            "cpu_seconds": round(cpu, 4),
            "ceiling_gflops": self.ceiling.as_json(),
            "share_of_ceiling": round(flops / (cpu if device.type == "cpu" else wall) / self.ceiling.flops_per_second(), 3),
            "share_outside_products": round(1.0 - parts.products / sum(parts.seconds.values()), 3),
            "parts_seconds": parts.seconds,
            "behind_the_step_seconds": parts.behind,
            "busy_seconds_behind_the_step": round(parts.busy_behind, 5),
            "thread_cpu_seconds": self.threads.mean(len(self.wall) * STEPS_A_TURN[device.type]),
            "operators_a_step": parts.num_operators,
            "page_faults_a_step": statistics.median(self.faults),
            "peak_memory_mb": round(peak_memory_mb()),
            "table_mb": round(sum(2 * table.rows.numel() * 4 for table in step.tables.all()) / 2**20),
            **(_gpu_figures(parts, wall, gpu_memory) if device.type == "cuda" else {}),
        }

    def checkpoint(self, folder: str | None) -> dict[str, Any]:
        """Save the step's tables and core, and read them back. folder: where there is room; None: the temporary folder."""
        assert self.step is not None
        with tempfile.TemporaryDirectory(prefix="lm1b-checkpoint-", dir=folder) as place:
            return measure_checkpoint(self.step, Path(place))


def _gpu_figures(parts: Parts, step_seconds: float, memory: int) -> dict[str, Any]:
    """What a GPU's step has beside, or in place of, a CPU's. step_seconds: without the profiler, which slows the host down.

    None where the profiler has seen no kernel: it may not be allowed to.
    """
    whole = sum(parts.gpu.values())
    return {
        "gpu_peak_memory_mb": round(memory / 2**20),
        "gpu_busy_seconds": round(parts.gpu_busy, 6) if parts.gpu_busy else None,
        "gpu_busy_share": round(parts.gpu_busy / step_seconds, 3) if parts.gpu_busy else None,
        "gpu_seconds": parts.gpu,
        "share_outside_products": round(1.0 - parts.gpu_products / whole, 3) if whole else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--counts")
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    ranks = start_ranks()
    worker = Training(ranks, arguments.counts)
    actions = {"build": worker.build, "steps": worker.steps, "result": worker.result, "checkpoint": worker.checkpoint}
    serve(arguments.socket, ranks.rank, actions)
    del worker
    stop_ranks()


if __name__ == "__main__":
    main()
