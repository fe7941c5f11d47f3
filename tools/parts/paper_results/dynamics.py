"""What each initialisation does to a state over time, and what half precision does to an IRNN's. Measured, no training; a minute.

    python tools/paper_results.py dynamics --json results/papers/dynamics.json

lm1b/sequence_tasks/dynamics.py says how. The file is what report/papers.md plots.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from lm1b.sequence_tasks.dynamics import (
    PIXELS_LIT,
    ROUNDINGS,
    SEQUENCES,
    STEPS,
    UNITS,
    initializations,
    irnn_cases,
    spectrum,
    state_errors,
    state_norms,
    steps_to_overflow,
)
from lm1b.sequence_tasks.papers.kept import rounded, write_compact_json
from parts.harness.results import made_by

SHORT_STEPS = 20
GROWTH = 1.014


def places(steps: int) -> list[int]:
    """Steps that are kept: all of the first ten, then ever fewer, the last."""
    found, step = [], 0
    while step < steps:
        found.append(step)
        step += max(1, step // 10)
    return [*found, steps]


def measure() -> dict[str, Any]:
    """All of it."""
    kept = places(STEPS)
    cells = {}
    for name, config in initializations().items():
        norms = {key: state_norms(config, STEPS, has_input=key == "pixels") for key in ("nothing", "pixels")}
        # Equal ones once: those of a multiple of the identity are all the same.
        real, imaginary = zip(*sorted(set(zip(*rounded(list(spectrum(config)), 3), strict=True))), strict=True)
        cells[name] = {
            "norms": {key: [max(values[step], 1e-30) for step in kept] for key, values in norms.items()},
            "eigenvalues": {"real": list(real), "imaginary": list(imaginary)},
        }
    precision = {}
    for steps in (SHORT_STEPS, STEPS):
        at = [step for step in places(steps) if step > 0]
        for case_name, case in irnn_cases(steps).items():
            errors = {name: state_errors(case, rounding) for name, rounding in ROUNDINGS.items()}
            precision[f"{steps} steps, {case_name}"] = {
                "steps": at,
                "errors": {name: [values[step - 1] for step in at] for name, values in errors.items()},
            }
    overflow = {}
    for name, dtype in (("float32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        step, growth = steps_to_overflow(GROWTH, dtype)
        overflow[name] = {"growth": growth, "infinite_at_step": step}
    return {"steps": kept, "cells": cells, "precision": precision, "overflow": {"asked_growth": GROWTH, "types": overflow}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--json", type=Path, required=True, help="what was measured")


def run(arguments: argparse.Namespace) -> None:
    """Measure, and write the file."""
    torch.set_num_threads(1)
    facts = {"units": UNITS, "sequences": SEQUENCES, "share_of_pixels_lit": PIXELS_LIT}
    found = measure()
    overflow = found.pop("overflow")  # whose growth differs in the fourth digit
    write_compact_json(arguments.json, {"provenance": made_by(), **facts, **rounded(found), "overflow": rounded(overflow, 6)})
    print(f"{arguments.json}: {arguments.json.stat().st_size:,} bytes", flush=True)
