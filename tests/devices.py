"""Where a test's body runs: on the CPU in every run, so that the body is known to be right, and on a GPU where there is one.

How far a result may be from the same in float64 follows from its dtype: eps = `torch.finfo(dtype).eps` is twice what one
rounding can do to a number, relative to it. Errors are taken as norms over a whole tensor, in which roundings partly
cancel, so that a bound of n roundings, eps / 2 each, leaves room for another order of sums and another exp. A test says
what its n stands for. Inputs are rounded to the dtype beforehand, so that arithmetic alone is compared.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator

import pytest
import torch
from torch import Tensor

from lm1b.model.kernels import VARIABLE

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
# (device, dtype). float16 trains on a GPU alone.
PRECISIONS = [
    *(pytest.param("cpu", dtype, id=f"cpu-{dtype}".replace("torch.", "")) for dtype in (torch.float32, torch.bfloat16)),
    *(
        pytest.param("cuda", dtype, id=f"cuda-{dtype}".replace("torch.", ""), marks=ON_GPU)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ),
]
# Torch's operations, or the Triton kernels, which a GPU alone runs (their arithmetic: test_triton_kernels.py).
KERNELS = ["torch", pytest.param("triton", marks=ON_GPU)]


@contextlib.contextmanager
def kernels_of(kind: str) -> Generator[None]:
    """Compute with these kernels in here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "1" if kind == "triton" else "0")
        yield


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """What `dtype` can hold of it, in its own dtype still."""
    return value.to(dtype).to(value.dtype)


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype, roundings: float, what: str = "") -> None:
    """found, on any device, is as near to `expected` (float64, CPU) as so many roundings of `dtype` allow; and there is something."""
    assert expected.dtype == torch.float64
    assert found.shape == expected.shape, what
    expected = expected.detach()
    size = float(expected.norm())
    assert size > 0, f"{what}: nothing to compare"
    error = float((found.detach().cpu().double() - expected).norm()) / size
    allowed = roundings * torch.finfo(dtype).eps / 2
    assert error < allowed, f"{what}: {error:.2e}, allowed {allowed:.2e}"


def on(module: torch.nn.Module, device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A copy there."""
    return copy.deepcopy(module).to(device, dtype)


@contextlib.contextmanager
def no_waiting(device: str) -> Generator[None]:
    """On a GPU: what waits for the device in here raises RuntimeError."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
