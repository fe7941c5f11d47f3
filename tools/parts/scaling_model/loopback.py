"""This machine's own latency and bandwidth between two gloo ranks, for checking the model against runs on one machine."""

from __future__ import annotations

import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from lm1b.files import read_json, write_json
from parts.scaling_model.collectives import Network

SMALL_BYTES, LARGE_BYTES = 16, 8 << 20
WARM_UP, REPEATS = 5, 25


def measure_loopback() -> Network:
    """Two processes exchange 16 bytes and 8 MiB by all_to_all_single, half of it with the other; medians. Takes a few seconds."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_exchange, (folder,), nprocs=2)  # type: ignore[attr-defined]
        small, large = read_json(Path(folder) / "seconds.json")
    return Network("loopback", small, (LARGE_BYTES - SMALL_BYTES) / 2 / max(large - small, 1e-9))


def _exchange(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    seconds = [_median_seconds(num_bytes) for num_bytes in (SMALL_BYTES, LARGE_BYTES)]
    if rank == 0:
        write_json(Path(folder) / "seconds.json", seconds)
    dist.barrier()
    dist.destroy_process_group()


def _median_seconds(num_bytes: int) -> float:
    sent = torch.ones(num_bytes, dtype=torch.uint8)
    received = torch.empty_like(sent)
    seconds = []
    for _ in range(WARM_UP + REPEATS):
        dist.barrier()
        started_at = time.perf_counter()
        dist.all_to_all_single(received, sent)
        seconds.append(time.perf_counter() - started_at)
    return statistics.median(seconds[WARM_UP:])
