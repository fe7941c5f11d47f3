"""The commands for a GPU where there is none, and what they ask of the system before they begin."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from command_runs import run
from parts.benchmark.machine import driver_version


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device on this machine")
def test_a_gpu_that_is_not_there_is_one_line_and_status_2() -> None:
    done = run([sys.executable, "tools/benchmark.py", "--device", "cuda"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "--device cuda: torch" in done.stderr
    assert "finds no CUDA device here; use --device cpu" in done.stderr


def test_make_gpu_without_a_gpu_installs_nothing(tmp_path: Path) -> None:
    done = run(["make", "gpu", "GPUS=0", f"VENV={tmp_path}/venv"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "make gpu: no NVIDIA GPU here" in done.stderr
    assert not list(tmp_path.iterdir())


def test_make_gpu_tests_measures_and_leaves_both_files(tmp_path: Path) -> None:
    done = run(["make", "-n", "gpu", "GPUS=1", f"VENV={tmp_path}/venv"])
    assert done.returncode == 0
    install, tests, benchmark = (done.stdout.index(part) for part in ("pip install", "pytest -m gpu", "tools/benchmark.py --device cuda"))
    assert install < tests < benchmark
    assert "--json results/benchmark_cuda.json --table results/benchmark_cuda.md" in done.stdout


def test_the_drivers_version_is_asked_of_its_own_tool(tmp_path: Path) -> None:
    tool = tmp_path / "smi"
    for says, expected in (("echo 580.159.03; echo 580.159.03", "580.159.03"), ("true", None), ("exit 9", None)):
        tool.write_text(f"#!/bin/sh\n{says}\n")
        tool.chmod(0o755)
        assert driver_version(str(tool)) == expected
    assert driver_version(str(tmp_path / "missing")) is None
