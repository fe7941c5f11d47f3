"""The Triton kernels: equal to torch's operations by Triton's interpreter, and compiled for a GPU that is not here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import environment

from lm1b.errors import UserError
from lm1b.model.kernels import _kernels, triton_kernels

WORKER = Path(__file__).with_name("triton_worker.py")


def worked(what: str, tmp_path: Path, **variables: str) -> dict[str, Any]:
    pytest.importorskip("triton", reason="Triton is not installed")
    variables = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_DEFAULT_FP_FUSION": "1", **variables}
    command = [sys.executable, str(WORKER), what, str(tmp_path / "found.json")]
    done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "found.json").read_text())


def test_kernels_compute_what_torch_does(tmp_path: Path) -> None:
    found = worked("interpret", tmp_path, TRITON_INTERPRET="1")
    for case, differences in found["softmax"].items():
        rounding = 2.0**-8 if case.startswith("bfloat16") else 1e-6  # of a probability, at most 1, as it is written
        assert differences["nats"] < 1e-5, case
        assert 0 < differences["certain_nats"] < 1e-9, case
        assert differences["probabilities"] <= rounding, case
        assert differences["column_sums"] < 1e-5, case
        assert differences["rows_sum_to"] < 50 * rounding, case
    for differences in found["accumulate"].values():
        assert differences["nats"] < 1e-5
        assert 0 < differences["certain_nats"] < 1e-3
    for differences in found["adagrad"].values():
        assert differences["rows"] < 1e-6
        assert differences["accumulators"] < 1e-6


def test_kernels_compile_for_an_h200(tmp_path: Path) -> None:
    found = worked("compile", tmp_path)
    assert len(found) == 6
    for kernel in found.values():
        assert kernel["bytes"] > 1000
        assert kernel["shared"] < 48 << 10  # bytes: two blocks and more fit one multiprocessor


def test_they_are_taken_where_they_are_wanted_and_a_gpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    assert triton_kernels(torch.device("cuda")) is None
    monkeypatch.setenv("LM1B_TRITON", "1")
    assert triton_kernels(torch.device("cpu")) is None
    kernels = triton_kernels(torch.device("cuda"))
    assert kernels is not None
    assert kernels.__name__ == "lm1b.model.triton_kernels"


def test_wanted_and_not_installed_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _kernels.cache_clear()
    monkeypatch.setenv("LM1B_TRITON", "1")
    monkeypatch.setitem(sys.modules, "triton", None)  # what an import of it then finds
    monkeypatch.delitem(sys.modules, "lm1b.model.triton_kernels", raising=False)
    with pytest.raises(UserError, match=r"LM1B_TRITON=1: .*triton.*; install triton"):
        triton_kernels(torch.device("cuda"))
