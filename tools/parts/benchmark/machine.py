"""What this machine can do at best: matrix products at the step's own shape and as large as they come, and copying memory. One process.

On a CPU time is CPU time: others use the machine too. On a GPU it is wall time until the device has done what it was given.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lm1b.devices import synchronize
from lm1b.memory import peak_memory_mb
from lm1b.model.products import product
from lm1b.precision import DTYPES
from lm1b.processor import cpu_name

CPU = torch.device("cpu")
COPIED_BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}  # far more than a cache holds
CALLS = {"cpu": 1, "cuda": 20}  # in one measurement: a GPU must have work in its queue, or the time to fill it counts
SQUARE = {"cpu": 0, "cuda": 8192}  # side of the large product
# Products of the shapes that are measured on a GPU, [positions, width] x [width, out]: the softmax's, and of one recurrent step.
GEMM_SHAPES = ((8192, 8192, 8192), (10240, 512, 8192), (10240, 1024, 8192), (512, 512, 8192), (512, 1024, 32768))
REPEATS = 7


def seconds_of(action: Callable[[], object], device: torch.device = CPU) -> float:
    """Of one call: CPU seconds over all threads of this process, or wall seconds until a GPU has done it."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    synchronize(device)
    started_at = clock()
    action()
    synchronize(device)
    return clock() - started_at


class Ceiling:
    """Matrix products of the softmax's shape, [positions, width] x [width, samples], measured whenever it is asked for.

    On a CPU float32 goes through two libraries, MKL (torch.mm) and oneDNN; on a GPU a large square product is measured beside the step's
    shape. The better one counts.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        positions: int,
        samples: int,
        width: int,
        device: torch.device = CPU,
        square: int | None = None,
    ) -> None:
        """square: side of the square product, 0: none; None: the device's own (SQUARE)."""
        self._device, self._calls = device, CALLS[device.type]
        self.num_bytes = 0  # held as long as this object is
        self._ways: dict[str, tuple[float, Callable[[], object]]] = {}
        left, right, out = self._factors(dtype, positions, samples, width)
        flops = 2.0 * positions * samples * width
        self._ways["torch.mm"] = flops, lambda: torch.mm(left, right.T, out=out)
        if dtype == torch.float32 and device.type == "cpu":
            self._ways["onednn"] = flops, lambda: product(left, right)
        side = SQUARE[device.type] if square is None else square
        if side:
            one, other, result = self._factors(dtype, side, side, side)
            self._ways[f"square {side}"] = 2.0 * side**3, lambda: torch.mm(one, other.T, out=result)
        self.rates: dict[str, list[float]] = {name: [] for name in self._ways}
        for _, way in self._ways.values():
            way()

    def _factors(self, dtype: torch.dtype, rows: int, columns: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # Random numbers: a GPU multiplies zeros faster.
        left, right = (torch.randn(count, width, device=self._device).to(dtype) for count in (rows, columns))
        out = torch.empty(rows, columns, dtype=dtype, device=self._device)
        self.num_bytes += sum(tensor.nbytes for tensor in (left, right, out))
        return left, right, out

    def measure(self) -> None:
        """One more of each."""
        for name, (flops, way) in self._ways.items():

            def several(way: Callable[[], object] = way) -> None:
                for _ in range(self._calls):
                    way()

            self.rates[name].append(self._calls * flops / seconds_of(several, self._device))

    def flops_per_second(self) -> float:
        """Per second of CPU time, or of the GPU's: the best way's median."""
        return max(statistics.median(rates) for rates in self.rates.values())

    def as_json(self) -> dict[str, float]:
        """GFLOP/s by way, to four figures: a tiny product on a busy machine is not rounded to none."""
        return {name: float(f"{statistics.median(rates) / 1e9:.4g}") for name, rates in self.rates.items()}


def copy_bytes_per_second(device: torch.device = CPU) -> float:
    """Bytes read and written a second by one core, or by the GPU; median of seven."""
    size = COPIED_BYTES[device.type]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return statistics.median(2 * size / seconds_of(lambda: target.copy_(source), device) for _ in range(REPEATS))


def gemm_tflops(
    device: torch.device, shapes: tuple[tuple[int, int, int], ...] = GEMM_SHAPES, precisions: tuple[str, ...] = ("bf16", "fp16", "fp32")
) -> dict[str, dict[str, float]]:
    """TFLOP/s of matrix products alone, by precision and shape (rows x width x columns). float32 is float32, not TF32."""
    found: dict[str, dict[str, float]] = {}
    for precision in precisions:
        for rows, width, columns in shapes:
            ceiling = Ceiling(DTYPES[precision], rows, columns, width, device, square=0)
            for _ in range(REPEATS):
                ceiling.measure()
            found.setdefault(precision, {})[f"{rows} x {width} x {columns}"] = round(ceiling.flops_per_second() / 1e12, 3)
    return found


def peak_memory(device: torch.device = CPU) -> int:
    """Bytes at their highest since the process began or `peak_memory_from_here`: this process's resident memory, or torch's on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return round(peak_memory_mb() * 2**20)


def peak_memory_from_here(device: torch.device = CPU) -> int:
    """Give free memory back, and forget higher peaks (glibc and Linux, see proc(5) on clear_refs). -> bytes in use now."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return peak_memory(device)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def describe_machine(device: torch.device = CPU) -> dict[str, Any]:
    """What a reader must know of the machine; on a GPU of the card and what drives it too."""
    return {
        "processor": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "torch": torch.__version__,
        "copy_gb_per_second_a_core": round(copy_bytes_per_second() / 1e9, 1),
        **(_describe_gpu(device) if device.type == "cuda" else {}),
    }


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    found = {
        "gpu": properties.name,
        "gpu_memory_gb": round(properties.total_memory / 2**30),
        "driver": driver_version() or "unknown",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "deepspeed": importlib.metadata.version("deepspeed"),
        "gpu_copy_gb_per_second": round(copy_bytes_per_second(device) / 1e9),
        "gemm_tflops": gemm_tflops(device),
    }
    torch.cuda.empty_cache()  # for the processes that are measured
    return found


def driver_version(program: str = "nvidia-smi") -> str | None:
    """Of the first NVIDIA card's driver, as its own tool says; None where there is no such tool, or no card."""
    found = shutil.which(program)
    if found is None:
        return None
    command = [found, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0] if lines else None
