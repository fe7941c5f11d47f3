"""Which computing precision this device can train in."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from lm1b.errors import UserError


def _cpu_flags() -> set[str]:
    if platform.system() != "Linux":
        return set()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def resolve_precision(wanted: str, cell: str, device: torch.device) -> str:
    """The computing precision for `auto`, or the wanted one if this device can do it. Raises UserError if it cannot."""
    if device.type == "cuda":
        return "bf16" if wanted == "auto" else wanted
    flags = _cpu_flags()
    if wanted == "auto":
        return "bf16" if "avx512_bf16" in flags else "fp32"
    if wanted == "fp16":
        raise UserError("training.precision=fp16 needs a GPU (DeepSpeed refuses it on CPU); use bf16, fp32 or auto")
    if wanted == "bf16" and cell == "lstm" and "avx512f" not in flags:
        raise UserError("training.precision=bf16 with model.cell=lstm needs a CPU with AVX-512; use fp32 or auto")
    return wanted
