"""One rank that takes training steps of several cases by turns, for `tools/cluster.py traffic` and `tools/benchmark.py memory`.

Started by DeepSpeed's launcher (step_ranks.py). Tables are filled with small numbers, tokens drawn from unigram counts. Each rank
writes what it has seen to OUT/<rank>.json: seconds, bytes that its interface has carried, waiting, memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where it finds `parts`

from lm1b.memory import peak_memory_mb
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.step.training_step import TrainingStep
from lm1b.training.timing import WAITED_FOR
from parts.harness.counts import read_counts
from parts.harness.shapes import shape_config
from parts.harness.steps import build_step


def interface_bytes(name: str) -> tuple[int, int]:
    """Sent and received so far by an interface of this process's own network."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        interface, _, counters = line.partition(":")
        if interface.strip() == name:
            numbers = counters.split()
            return int(numbers[8]), int(numbers[0])
    return 0, 0


class Case:
    """A training step, and what its turns were."""

    def __init__(self, step: TrainingStep) -> None:
        self.step = step
        self.seconds: list[float] = []
        self.sent = self.received = 0
        self.waiting = [0.0] * len(WAITED_FOR)

    def turn(self, steps: int, interface: str) -> None:
        dist.barrier()
        sent, received = interface_bytes(interface)
        for _ in range(steps):
            started_at = time.perf_counter()
            result = self.step.run()
            self.seconds.append(time.perf_counter() - started_at)
            mine = result.waiting_RP[dist.get_rank()]
            self.waiting = [total + seconds for total, seconds in zip(self.waiting, mine, strict=True)]
        dist.barrier()
        now_sent, now_received = interface_bytes(interface)
        self.sent += now_sent - sent
        self.received += now_received - received

    def as_json(self) -> dict[str, Any]:
        count = len(self.seconds)
        return {
            "step_seconds": statistics.median(self.seconds),
            "sent_bytes": self.sent / count,
            "received_bytes": self.received / count,
            "waiting_seconds": {part: seconds / count for part, seconds in zip(WAITED_FOR, self.waiting, strict=True)},
            "core_parameters": self.step.engine.core_size,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--counts")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--cases", type=json.loads, required=True, help="a list of lists of a.b=value")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--interface", default="eth0")
    parser.add_argument("--local_rank", type=int, default=0)
    arguments = parser.parse_args()
    ranks = start_ranks()
    counts_V = read_counts(arguments.counts, arguments.vocabulary)
    cases: list[Case] = []
    for settings in arguments.cases:
        config = shape_config(arguments.shape, arguments.precision, [*arguments.set, *settings])
        tables = cases[0].step.tables if cases else None
        cases.append(Case(build_step(config, counts_V, ranks, arguments.precision, tables)))
    for _ in range(arguments.turns):
        for case in cases:
            case.turn(arguments.steps, arguments.interface)
    report = {"rank": ranks.rank, "ranks": ranks.size, "peak_memory_mb": peak_memory_mb(), "cases": [case.as_json() for case in cases]}
    (arguments.out / f"{ranks.rank}.json").write_text(json.dumps(report))
    for case in cases:
        case.step.close()
    del cases
    stop_ranks()


if __name__ == "__main__":
    main()
