"""Whether this process takes Triton's kernels for what torch's operations do in many passes: where a GPU computes and LM1B_TRITON=1.

Triton is asked for here and imported nowhere else: torch's CUDA builds bring it, and nothing needs it. Not the default, because how fast
the kernels are nobody has measured yet.
"""

from __future__ import annotations

import functools
import importlib
import os
from types import ModuleType

import torch

from lm1b.errors import UserError

VARIABLE = "LM1B_TRITON"


def triton_kernels(device: torch.device) -> ModuleType | None:
    """lm1b.model.triton_kernels where it is wanted and `device` can run it. Raises UserError where Triton is not installed."""
    return _kernels() if device.type == "cuda" and os.environ.get(VARIABLE) == "1" else None


@functools.cache
def _kernels() -> ModuleType:
    try:
        return importlib.import_module("lm1b.model.triton_kernels")
    except ImportError as error:
        raise UserError(f"{VARIABLE}=1: {error}; install triton, or do without that variable") from None
