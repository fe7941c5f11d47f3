"""How much memory a process has taken at most."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from lm1b.memory import peak_memory_mb


def test_the_peak_is_this_process_s_own() -> None:
    before = peak_memory_mb()
    large = np.ones(64 << 20, dtype=np.uint8)
    assert peak_memory_mb() == pytest.approx(before + 64, abs=8) or peak_memory_mb() >= before  # as much more, unless it was higher before
    code = "from lm1b.memory import peak_memory_mb; print(peak_memory_mb())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(child.stdout) < 60 < large.nbytes / 2**20 < peak_memory_mb()  # the kernel's ru_maxrss would tell this process's
