"""The computing precisions by their names in a config, and which of them a device can train in."""

from __future__ import annotations

import torch

from lm1b.errors import UserError
from lm1b.processor import cpu_facts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _bf16_is_faster(cpu: dict[str, str]) -> bool:
    """Whether products in bf16 are faster than in float32: with AMX, and on AMD's AVX-512 (210 against 145 to 200 GFLOP/s a core).

    Intel's AVX-512 bf16 without AMX is slower than its float32: 75 against 117 GFLOP/s a core, a step 5,400 against 6,700 to 7,700 words/s.
    """
    flags = cpu.get("flags", "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and cpu.get("vendor_id") == "AuthenticAMD")


def resolve_precision(wanted: str, device: torch.device) -> str:
    """The computing precision for `auto`, or the wanted one if this device can do it. Raises UserError if it cannot."""
    if device.type == "cuda":
        return "bf16" if wanted == "auto" else wanted
    if wanted == "auto":
        return "bf16" if _bf16_is_faster(cpu_facts()) else "fp32"
    if wanted == "fp16":
        raise UserError("training.precision=fp16 needs a GPU (DeepSpeed refuses it on CPU); use bf16, fp32 or auto")
    return wanted
