"""Which kernels this process has beside torch's own operations: none, or Triton's where a GPU computes and a config asks for them.

Triton is asked for here and imported nowhere else: torch's CUDA builds bring it, and nothing needs it.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from lm1b.errors import UserError

_triton: ModuleType | None = None


def use_triton(is_wanted: bool, device: torch.device) -> None:
    """Choose for this process. Raises UserError where Triton is wanted and is not installed."""
    global _triton
    _triton = None
    if is_wanted and device.type == "cuda":
        try:
            _triton = importlib.import_module("lm1b.model.triton_kernels")
        except ImportError as error:
            raise UserError(f"training.triton=true: {error}; install triton, or set it to false") from None


def triton_kernels(device: torch.device) -> ModuleType | None:
    """lm1b.model.triton_kernels where it is chosen and `device` can run it."""
    return _triton if device.type == "cuda" else None
