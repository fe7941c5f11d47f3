"""What this machine can do at best: matrix products at the step's own shape, and copying memory. One process, CPU time."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lm1b.model.products import product

COPIED_BYTES = 128 << 20


def cpu_seconds(action: Callable[[], object]) -> float:
    """CPU seconds of one call, over all threads of this process."""
    started_at = time.process_time()
    action()
    return time.process_time() - started_at


class Ceiling:
    """A matrix product of the softmax's shape, [positions, width] x [width, samples], measured whenever it is asked for.

    float32 goes through two libraries, MKL (torch.mm) and oneDNN; the better one counts.
    """

    def __init__(self, dtype: torch.dtype, positions: int, samples: int, width: int) -> None:
        left, right = torch.randn(positions, width).to(dtype), torch.randn(samples, width).to(dtype)
        out = torch.empty(positions, samples, dtype=dtype)
        self._flops = 2.0 * positions * samples * width
        self._ways: dict[str, Callable[[], object]] = {"torch.mm": lambda: torch.mm(left, right.T, out=out)}
        if dtype == torch.float32:
            self._ways["onednn"] = lambda: product(left, right)
        self.rates: dict[str, list[float]] = {name: [] for name in self._ways}
        for way in self._ways.values():
            way()

    def measure(self) -> None:
        """One more of each."""
        for name, way in self._ways.items():
            self.rates[name].append(self._flops / cpu_seconds(way))

    def flops_per_second(self) -> float:
        """Per second of CPU time: the better way's median."""
        return max(statistics.median(rates) for rates in self.rates.values())

    def as_json(self) -> dict[str, float]:
        """GFLOP/s by way."""
        return {name: round(statistics.median(rates) / 1e9, 1) for name, rates in self.rates.items()}


def copy_bytes_per_second() -> float:
    """Bytes read and written a second by one core, median of seven."""
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    return statistics.median(2 * COPIED_BYTES / cpu_seconds(lambda: target.copy_(source)) for _ in range(7))


def peak_memory() -> int:
    """Bytes of this process's resident memory at its highest, since it began or `peak_memory_from_here`."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))


def peak_memory_from_here() -> int:
    """Give free memory back, and forget higher peaks (glibc and Linux, see proc(5) on clear_refs). -> bytes resident now."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def describe_machine() -> dict[str, Any]:
    """What a reader must know of the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    flags = next((line for line in lines if line.startswith("flags")), "")
    return {
        "processor": ", ".join(sorted(names)) or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "has_bf16_products": "avx512_bf16" in flags or "amx_bf16" in flags,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "torch": torch.__version__,
        "copy_gb_per_second_a_core": round(copy_bytes_per_second() / 1e9, 1),
    }
