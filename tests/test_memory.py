"""How much memory a process has taken at most."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from lm1b.memory import peak_memory_mb


def test_the_peak_is_this_process_s_own() -> None:
    large = np.ones(64 << 20, dtype=np.uint8)
    code = (
        "from lm1b.memory import peak_memory_mb as peak; print(peak()); large = b'x' * (32 << 20); print(peak()); del large; print(peak())"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, high, after = map(float, child.stdout.split())
    assert before < 60 < large.nbytes / 2**20 < peak_memory_mb()  # the kernel's ru_maxrss would tell this process's
    assert high == pytest.approx(before + 32, abs=4)
    assert after == pytest.approx(high, abs=1)  # the kernel counts in batches
