"""The Triton kernels without a GPU: `triton_worker.py interpret OUT.json` runs them by Triton's interpreter beside torch's operations,
`triton_worker.py compile OUT.json` compiles them for an H200. A process each: Triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lm1b.model import triton_kernels
from lm1b.model.sampled_softmax import _softmax_in_place


def softmax_differences(dtype: torch.dtype, num_positions: int, num_samples: int) -> dict[str, float]:
    """Largest differences from torch's operations: nats, probabilities, column sums (both of the probabilities as written)."""
    generator = torch.Generator().manual_seed(num_samples)
    logits = (torch.randn(num_positions, num_samples, generator=generator) * 3).to(dtype)
    offset_S, target_logits_n = torch.randn(num_samples, generator=generator), torch.randn(num_positions, generator=generator) * 3
    targets_n = torch.randint(0, 2 * num_samples, (num_positions,), generator=generator)
    targets_n[0], target_logits_n[1] = num_samples // 2, 40.0  # a sampled target; one that is nearly certain
    kept = logits.clone()
    nats_n, _ = _softmax_in_place(kept, offset_S, targets_n, target_logits_n)
    found = logits.clone()
    found_nats_n, found_sums_S = triton_kernels.softmax_in_place(found, offset_S, targets_n, target_logits_n)
    assert found[0, num_samples // 2] == 0.0, "a sample that is the target is none"
    return {
        "nats": float(((found_nats_n - nats_n).abs() / nats_n.abs().clamp(1e-6)).max()),
        "certain_nats": float(found_nats_n[1]),
        "probabilities": float((found.float() - kept.float()).abs().max()),
        "column_sums": float((found_sums_S - found.float().sum(0)).abs().max()),
        "rows_sum_to": float((found.float().sum(1) + torch.exp(-found_nats_n).float() - 1.0).abs().max()),
    }


def accumulate_differences(dtype: torch.dtype) -> dict[str, float]:
    """Nats of the full softmax, relative to 1 or more: unequal blocks taken in by the kernel, against float64."""
    generator = torch.Generator().manual_seed(3)
    logits, bias = torch.randn(7, 9700, generator=generator).mul(4).to(dtype), torch.randn(9700, generator=generator)
    targets_n = torch.tensor([0, 8999, 9000, 9699, 5, 17, 4000])
    logits[1, 8999] = 30.0  # nearly certain
    whole = logits.double() + bias
    expected = torch.log_softmax(whole, 1).gather(1, targets_n.unsqueeze(1)).squeeze(1).neg()
    target_n = whole.gather(1, targets_n.unsqueeze(1)).squeeze(1).float()
    largest_n, total_n = torch.full((7,), -torch.inf), torch.zeros(7, dtype=torch.float64)
    for first, last in ((0, 9000), (9000, 9700)):
        part = logits[:, first:last].contiguous()
        triton_kernels.accumulate(part, bias[first:last].contiguous(), targets_n - first, target_n, largest_n, total_n)
    found = torch.log(total_n) + largest_n.double() - target_n.double()
    return {"nats": float(((found - expected).abs() / expected.clamp(1.0)).max()), "certain_nats": float(found[1])}


def adagrad_differences(width: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(width)
    rows, accumulators = torch.randn(50, width, generator=generator), torch.rand(50, width, generator=generator)
    places, gradient = torch.randperm(50, generator=generator)[:20], torch.randn(25, width, generator=generator)
    expected_rows, expected_accumulators = rows.double(), accumulators.double()
    scaled = gradient[:20].double() * 0.5
    expected_accumulators[places] += scaled**2
    expected_rows[places] -= 0.1 * scaled / (expected_accumulators[places].sqrt() + 1e-10)
    triton_kernels.adagrad_rows(rows, accumulators, places, gradient, scale=0.5, learning_rate=0.1, epsilon=1e-10)
    return {"rows": float((rows - expected_rows).abs().max()), "accumulators": float((accumulators - expected_accumulators).abs().max())}


def interpret() -> dict[str, Any]:
    shapes = [(5, 37), (6, 2000), (3, 9001)]  # the last in two blocks
    return {
        "softmax": {
            f"{name} {n} {s}": softmax_differences(getattr(torch, name), n, s) for name in ("float32", "bfloat16") for n, s in shapes
        },
        "accumulate": {name: accumulate_differences(getattr(torch, name)) for name in ("float32", "bfloat16")},
        "adagrad": {str(width): adagrad_differences(width) for width in (1, 12, 512)},
    }


def compiled(kernel: Any, pointers: dict[str, str], numbers: dict[str, str], constants: dict[str, Any], num_warps: int) -> dict[str, Any]:
    signature = {**pointers, **numbers, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    return {"bytes": len(made.asm["cubin"]), "shared": made.metadata.shared}


def compile_all() -> dict[str, Any]:
    found = {}
    numbers = {"row_stride": "i32"}
    for dtype in ("bf16", "fp16", "fp32"):
        names = {"offset_ptr": "*fp32", "column_ptr": "*i64", "target_logit_ptr": "*fp32", "largest_ptr": "*fp32", "sum_ptr": "*fp32"}
        constants = {"NUM_COLUMNS": 8192, "BLOCK": 8192, "LOG2_E": 1.4426950408889634}
        found[f"softmax {dtype}"] = compiled(triton_kernels._softmax_kernel, {"logits_ptr": f"*{dtype}", **names}, numbers, constants, 8)
    sums = {"bias_ptr": "*fp32", "column_ptr": "*i64", "target_logit_ptr": "*fp32", "largest_ptr": "*fp32", "total_ptr": "*fp64"}
    constants = {"NUM_COLUMNS": 8192, "BLOCK": 8192, "LOG2_E": 1.4426950408889634}
    for dtype in ("bf16", "fp32"):
        made = compiled(triton_kernels._accumulate_kernel, {"logits_ptr": f"*{dtype}", **sums}, {"row_stride": "i32"}, constants, 8)
        found[f"accumulate {dtype}"] = made
    tables = {"rows_ptr": "*fp32", "accumulators_ptr": "*fp32", "places_ptr": "*i64", "gradient_ptr": "*fp32"}
    scales = {"scale": "fp32", "learning_rate": "fp32", "epsilon": "fp32", "gradient_stride": "i32"}
    found["adagrad"] = compiled(triton_kernels._adagrad_kernel, tables, scales, {"WIDTH": 512, "BLOCK": 512}, 4)
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(interpret() if sys.argv[1] == "interpret" else compile_all()))
