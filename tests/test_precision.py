"""Which precision `auto` means on which CPU, and what a CPU refuses."""

from __future__ import annotations

import platform

import pytest
import torch

from lm1b import precision, processor
from lm1b.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", "avx2 avx512f avx512_bf16", "bf16"),
        ("GenuineIntel", "avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "bf16"),
        ("GenuineIntel", "avx2 avx512f avx512_bf16", "fp32"),
        ("AuthenticAMD", "avx2", "fp32"),
        ("", "", "fp32"),
    ],
)
def test_auto_is_what_this_cpu_is_faster_in(monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str, expected: str) -> None:
    monkeypatch.setattr(precision, "cpu_facts", lambda: {"vendor_id": vendor, "flags": flags})
    assert precision.resolve_precision("auto", CPU) == expected


def test_what_a_cpu_cannot_train_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_facts", lambda: {"vendor_id": "GenuineIntel", "flags": "avx2"})
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        precision.resolve_precision("fp16", CPU)
    assert precision.resolve_precision("bf16", CPU) == "bf16"  # whatever the cell: its products need no AVX-512


def test_a_linux_machine_tells_of_its_cpu() -> None:
    assert processor.cpu_facts().keys() >= {"flags", "vendor_id"} or platform.machine() != "x86_64"
    assert processor.cpu_name()


def test_a_cpus_name_says_which_half_precision_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "cpu_facts", lambda: {"model name": "A CPU", "flags": "sse avx512_bf16 avx2"})
    assert processor.cpu_name() == "A CPU +avx512_bf16"
