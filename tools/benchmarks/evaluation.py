"""The exact evaluator's softmax over the whole vocabulary: words/s, share of the ceiling, memory beside the rows, agreement of bf16."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.machine import Ceiling, cpu_seconds, peak_memory, peak_memory_from_here
from lm1b.evaluation.scorer import POSITIONS
from lm1b.model.full_softmax import full_softmax_nats
from lm1b.training.engine import DTYPES


def measure_evaluation(vocabulary: int, width: int, repeats: int) -> list[dict[str, Any]]:
    """One result a precision; one thread. The rows are as a trained model's: logits spread over about ten nats."""
    rows_VP, bias_V = torch.randn(vocabulary, width) * (2.0 / width**0.5), torch.randn(vocabulary)
    hidden_NP = torch.randn(POSITIONS, width)
    targets_N = torch.randint(0, vocabulary, (POSITIONS,))
    results, nats = [], {}
    for precision in ("bf16", "fp32"):
        dtype = DTYPES[precision]
        # As the evaluator holds them: in the computing precision.
        hidden, rows = hidden_NP.to(dtype), rows_VP.to(dtype)
        ceiling = Ceiling(dtype, POSITIONS, 8192, width)
        full_softmax_nats(hidden[:1], rows[:1], bias_V[:1], targets_N[:1] * 0)
        before = peak_memory_from_here()
        times = []
        for _ in range(repeats):
            ceiling.measure()
            times.append(cpu_seconds(lambda hidden=hidden, rows=rows: full_softmax_nats(hidden, rows, bias_V, targets_N)))
        after = peak_memory()
        nats[precision] = full_softmax_nats(hidden, rows, bias_V, targets_N).mean()
        seconds = statistics.median(times)
        results.append(
            {
                "precision": precision,
                "vocabulary": vocabulary,
                "width": width,
                "words_per_second_a_core": round(POSITIONS / seconds, 1),
                "ceiling_gflops": ceiling.as_json(),
                "share_of_ceiling": round(2.0 * POSITIONS * vocabulary * width / seconds / ceiling.flops_per_second(), 3),
                "memory_beside_rows_mb": round((after - before) / 2**20),
            }
        )
        del rows
    return [{**result, "nats_a_word": float(nats[result["precision"]])} for result in results]
