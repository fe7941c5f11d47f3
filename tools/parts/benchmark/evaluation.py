"""The exact evaluator's softmax over the whole vocabulary: words/s, share of the ceiling, memory beside the rows, agreement of bf16."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from lm1b.evaluation.trained.scorer import POSITIONS
from lm1b.model.full_softmax import full_softmax_part
from lm1b.precision import DTYPES
from parts.benchmark.machine import CPU, Ceiling, peak_memory, peak_memory_from_here, seconds_of


def measure_evaluation(
    vocabulary: int,
    width: int,
    repeats: int,
    device: torch.device = CPU,
    predictions: int = POSITIONS,
    goal: dict[str, float] | None = None,
) -> list[dict[str, Any]]:
    """One result a precision; one thread, or one GPU. The rows are as a trained model's: logits spread over about ten nats.

    predictions: scored as many at a time as the evaluator does. goal: of bf16, kept beside its figures.
    """
    rows_VP = torch.randn(vocabulary, width, device=device) * (2.0 / width**0.5)
    bias_V = torch.randn(vocabulary, device=device)
    hidden_NP = torch.randn(predictions, width, device=device)
    targets_N = torch.randint(0, vocabulary, (predictions,), device=device)
    results, nats = [], {}
    for precision in ("bf16", "fp32"):
        dtype = DTYPES[precision]
        # As the evaluator holds them: in the computing precision.
        hidden, rows = hidden_NP.to(dtype), rows_VP.to(dtype)
        ceiling = Ceiling(dtype, min(predictions, POSITIONS), 8192, width, device)

        def score(hidden: Tensor = hidden, rows: Tensor = rows) -> Tensor:
            windows = zip(hidden.split(POSITIONS), targets_N.split(POSITIONS), strict=True)
            return torch.cat([full_softmax_part(here, rows, bias_V, targets).nats() for here, targets in windows])

        full_softmax_part(hidden[:1], rows[:1], bias_V[:1], targets_N[:1] * 0)
        before = peak_memory_from_here(device)
        times = []
        for _ in range(repeats):
            ceiling.measure()
            times.append(seconds_of(score, device))
        after = peak_memory(device)
        nats[precision] = score().mean()
        seconds = statistics.median(times)
        results.append(
            {
                "precision": precision,
                "vocabulary": vocabulary,
                "width": width,
                "predictions": predictions,
                "seconds": round(seconds, 4),
                "words_per_second_a_core" if device.type == "cpu" else "words_per_second": round(predictions / seconds, 1),
                "ceiling_gflops": ceiling.as_json(),
                "share_of_ceiling": round(2.0 * predictions * vocabulary * width / seconds / ceiling.flops_per_second(), 3),
                "memory_beside_rows_mb": round((after - before) / 2**20),
                "goal": goal if precision == "bf16" else None,
            }
        )
        del rows
    return [{**result, "nats_a_word": float(nats[result["precision"]])} for result in results]
