"""Which device computes, and tensors on their way to it from the host, so that neither waits for the other.

A copy from ordinary memory makes the host wait until the device has done all that it was given before. From pinned memory the
copy takes its place in the device's queue, and the host goes on: `pinned`, wherever there is time for it, and then `on_device`.
On a CPU both give the tensor itself.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from lm1b.errors import UserError


def best_device(number: int = 0) -> torch.device:
    """What a process computes on: the GPU of that number, where there are any and DS_ACCELERATOR does not say `cpu`."""
    use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    return torch.device("cuda", number) if use_cuda else torch.device("cpu")


def chosen_device(wanted: str | None) -> torch.device:
    """The device asked for, the best there is where None. Raises UserError for one that nobody knows and for a GPU that is not there."""
    if wanted is None:
        return best_device()
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"device {wanted}: expected cpu, cuda, or a GPU's number as in cuda:1") from None
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= found:
        raise UserError(f"device {wanted}: " + (f"only {found} CUDA devices" if found else "no CUDA device") + " found here; use cpu")
    return device


def computes_apart(device: torch.device) -> bool:
    """Whether what computes has a memory and a queue of work of its own, as a GPU has."""
    return device.type != "cpu"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """The same in memory that `device` can copy from by itself."""
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The same on `device`; nothing waits."""
    return pinned(tensor, device).to(device, non_blocking=True)
