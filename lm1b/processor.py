"""What the kernel says of this machine's processor. Standard library alone."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_facts() -> dict[str, str]:
    """Facts of the first core by the kernel's names: `flags`, `vendor_id`, `model name`; nothing where it is not Linux."""
    if platform.system() != "Linux":
        return {}
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def cpu_name() -> str:
    """Its name, and the vectors of half precision that it has: of two processors sold under one name these tell most."""
    facts = cpu_facts()
    halves = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in facts.get("flags", "").split()]
    return " ".join([facts.get("model name") or platform.processor() or platform.machine(), *(f"+{flag}" for flag in halves)])
