"""A GPU's figures as text: what the card is, a table of training steps with the goals beside them, exact evaluation."""

from __future__ import annotations

from typing import Any

from lm1b.markdown import markdown_table
from parts.harness.results import revision_of


def head(figures: dict[str, Any]) -> list[str]:
    """The card, what drives it, and what it does in matrix products and copies alone."""
    machine = figures["machine"]
    products = "; ".join(
        f"{precision} " + ", ".join(f"{rate:,.0f} ({shape})" for shape, rate in rates.items())
        for precision, rates in machine["gemm_tflops"].items()
    )
    return [
        f"{machine['gpu']}, {machine['gpu_memory_gb']} GB, driver {machine['driver']}, CUDA {machine['cuda']}, cuDNN {machine['cudnn']}, "
        f"torch {machine['torch']}, DeepSpeed {machine['deepspeed']}, Python {machine['python']}; host {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gb']} GB; revision {revision_of(figures)}; {figures['seconds']} s in all",
        "",
        f"Matrix products alone, TFLOP/s: {products}. Copies: {machine['gpu_copy_gb_per_second']:,} GB/s read and written.",
        "",
    ]


def training(results: list[dict[str, Any]]) -> list[str]:
    """One row a shape. A goal stands in the cell of its figure, with whether it was met."""
    names = ("shape, lanes", "precision", "words/s", "of the products' rate", "GPU busy", "outside products", "GPU MB")
    columns = [*names, "where the GPU's time goes, ms"]
    rows = []
    for found in results:
        goal = found.get("goal") or {}
        parts = sorted(found["gpu_seconds"].items(), key=lambda item: -item[1])
        share, busy, outside = (found[name] for name in ("share_of_ceiling", "gpu_busy_share", "share_outside_products"))
        cells = [
            ", ".join([found["shape"], str(found["lanes"]), *_unusual(found)]),
            found["precision"],
            _beside(f"{found['words_per_second']:,}", found["words_per_second"], goal.get("words_per_second"), "{:,}"),
            _beside(f"{share:.1%} of {_tflops(found)}", share, goal.get("share_of_ceiling"), "{:.0%}"),
            "not seen" if busy is None else _beside(f"{busy:.0%}", busy, goal.get("gpu_busy_share"), "{:.0%}"),
            "not seen" if outside is None else f"{outside:.0%}",
            f"{found['gpu_peak_memory_mb']:,}",
            ", ".join(f"{name} {seconds * 1e3:.2f}" for name, seconds in parts if seconds >= 5e-6),
        ]
        rows.append(cells)
    return [markdown_table(columns, rows), ""]


def evaluation(found: dict[str, Any]) -> str:
    """One line a precision."""
    goal, share = found.get("goal") or {}, found["share_of_ceiling"]
    seconds_allowed = -goal["seconds"] if goal else None
    facts = [
        _beside(f"{found['seconds']:.2f} s", -found["seconds"], seconds_allowed, "under {:g} s"),
        f"{found['words_per_second']:,.0f} words/s",
        _beside(f"{share:.1%} of {_tflops(found)}", share, goal.get("share_of_ceiling"), "{:.0%}"),
        f"{found['memory_beside_rows_mb']:,} MB beside the rows",
        f"{found['nats_a_word']:.5f} nats a word",
    ]
    what = f"{found['predictions']:,} predictions, {found['vocabulary']:,} words x {found['width']}, {found['precision']}"
    return f"exact evaluation of {what}: {'; '.join(facts)}\n"


def _tflops(found: dict[str, Any]) -> str:
    """The best rate of matrix products alone that was measured beside it."""
    return f"{max(found['ceiling_gflops'].values()) / 1e3:,.0f} TFLOP/s"


def _unusual(found: dict[str, Any]) -> list[str]:
    """What is set on a case but for its lanes, which stand beside its shape; and whose kernels it took, where they are not torch's."""
    settings = [setting for setting in found["settings"] if not setting.startswith("batches.lanes=")]
    return [*settings, *(["Triton"] if found["triton"] else [])]


def _beside(text: str, value: float, goal: float | None, form: str) -> str:
    """A figure with its goal, where there is one. A figure below its goal has missed it: what should be small comes negated."""
    return f"{text} (goal {form.format(abs(goal))}: {'met' if value >= goal else 'missed'})" if goal else text
