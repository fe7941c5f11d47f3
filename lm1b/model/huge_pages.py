"""Memory of large tensors that stay for the whole run."""

from __future__ import annotations

import contextlib
import mmap

import torch

# Below this a tensor's pages are few either way.
_LARGE_BYTES = 8 << 20


def lasting_zeros(num_rows: int, width: int, device: torch.device) -> torch.Tensor:
    """float32 zeros [num_rows, width]; on Linux's CPUs in huge pages where the kernel has them.

    A table of gigabytes is a million small pages: touching each first costs ten microseconds on a virtual machine (3 s a gigabyte), and
    rows here and there miss the processor's memory of where pages lie. Huge pages are 512 times fewer.
    """
    num_bytes = 4 * num_rows * width
    if device.type != "cpu" or num_bytes < _LARGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(num_rows, width, device=device)
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them: small pages then
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(num_rows, width)
