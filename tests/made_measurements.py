"""A measurement of training, made up, and what the scaling model foretells of it."""

from __future__ import annotations

from typing import Any

from parts.harness.counts import read_counts
from parts.scaling_model.collectives import Network
from parts.scaling_model.layouts import Layout, Machine, Prediction, predict
from parts.scaling_model.measured import Measured
from parts.scaling_model.rows import Words

NETWORK = Network("wire", 20e-6, 1e9)
PARTS = {"sampler": 0.01, "row fetch": 0.03, "recurrent": 0.2, "softmax": 0.3, "core update": 0.05, "table update": 0.06}


def entry(**changes: Any) -> Measured:
    """One measurement, made up, but for these changes."""
    values = {
        "shape": "lstm_512",
        "precision": "bf16",
        "vocabulary": 20_000,
        "ranks": 1,
        "lanes": 16,
        "steps": 20,
        "samples": 500,
        "embedding": 64,
        "output_width": 32,
        "core_parameters": 40_000,
        "step_seconds": 0.8,
        "parts_seconds": PARTS,
        "peak_memory_mb": 900,
    }
    return Measured.model_validate(values | changes)


def zipf(vocabulary: int, samples: int) -> Words:
    """Words as frequent as ranks tell."""
    return Words(read_counts(None, vocabulary), samples)


def foretell(layout: Layout, ranks: int, network: Network = NETWORK, machine: Machine | None = None, **changes: Any) -> Prediction:
    """Weak scaling of a made-up measurement."""
    alone = entry(**changes)
    return predict(layout, alone, zipf(alone.vocabulary, alone.samples), ranks, alone.lanes, network, machine or Machine())
