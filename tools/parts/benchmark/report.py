"""The benchmark's figures as text: one table of training steps, then what else was measured."""

from __future__ import annotations

from typing import Any

from lm1b.markdown import markdown_table
from parts.benchmark import report_gpu
from parts.harness.results import revision_of


def as_text(figures: dict[str, Any]) -> str:
    """A Markdown table and lines."""
    is_gpu = figures.get("device") == "cuda"
    lines = report_gpu.head(figures) if is_gpu else _head(figures)
    if "training" in figures:
        lines += report_gpu.training(figures["training"]) if is_gpu else _training(figures["training"])
    lines += [report_gpu.evaluation(result) if is_gpu else _evaluation(result) for result in figures.get("evaluation", [])]
    return "\n".join([*lines, *_the_rest(figures)]).rstrip("\n")


def _head(figures: dict[str, Any]) -> list[str]:
    machine = figures["machine"]
    return [
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, torch {machine['torch']}, "
        f"memory copied at {machine['copy_gb_per_second_a_core']} GB/s a core; revision {revision_of(figures)}; "
        f"{figures['seconds']} s in all",
        "",
    ]


def _evaluation(result: dict[str, Any]) -> str:
    ceiling = max(result["ceiling_gflops"].values())
    return (
        f"exact evaluation, {result['precision']}: {result['words_per_second_a_core']} words/s a core, "
        f"{result['share_of_ceiling']:.0%} of {ceiling:.0f} GFLOP/s, {result['memory_beside_rows_mb']} MB beside the rows, "
        f"{result['nats_a_word']:.5f} nats a word"
    )


def _the_rest(figures: dict[str, Any]) -> list[str]:
    lines = []
    if figures.get("checkpoint"):
        lines.append(_checkpoint(figures["checkpoint"]))
    if "logging" in figures:
        lines.append(_logging(figures["logging"]))
    if "against_plain" in figures:
        found = figures["against_plain"]
        lines.append(
            f"LSTM-512 against plain PyTorch (fp32, {found['plain']['threads']} threads: {found['plain']['words_per_second']:,} words/s), "
            f"two ranks in bf16 by turns: {found['ours_words_per_second_two_ranks_bf16']:,} words/s, {found['ratio']} times"
        )
    if "preprocessing" in figures:
        lines += _preprocessing(figures["preprocessing"])
    if "resume" in figures:
        found = figures["resume"]
        lines.append(
            f"{found['vocabulary']:,} words, one rank: first step {found['start_to_first_step_seconds']} s after the command, "
            f"{found['resume_to_first_step_seconds']} s when resumed from {found['checkpoint_mb']:,} MB, verified"
        )
    return lines


def _checkpoint(found: dict[str, Any]) -> str:
    rates = found["mb_per_second"]
    return (
        f"checkpoint of LSTM-512, {found['vocabulary']:,} words, one rank, {found['checkpoint_mb']:,} MB: saved at {rates['save']:,} MB/s "
        f"(a plain file, flushed: {rates['plain_write']:,}), verified at {rates['verify']:,}, read back at {rates['read']:,} "
        f"(a plain file, from the page cache: {rates['plain_read']:,})"
    )


def _logging(found: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {seconds * 1e6:.0f}" for name, seconds in found["seconds_a_step"].items())
    return (
        f"logs, a line every {found['log_every']} steps: {found['seconds_a_step_together'] * 1e6:.0f} µs a step ({parts}) "
        f"and {found['cpu_seconds_a_step_of_the_writer_thread'] * 1e6:.0f} µs of TensorBoard's thread beside it"
    )


def _threads(found: dict[str, float]) -> str:
    """CPU milliseconds a step of the main thread and of the two busiest others; what is under a millisecond is left out."""
    others = [f"{name} {seconds * 1e3:.0f}" for name, seconds in found.items() if name != "main" and seconds >= 1e-3]
    return " + ".join([f"{found['main'] * 1e3:.0f}", *others[:2]])


def _preprocessing(found: dict[str, Any]) -> list[str]:
    rates = ", ".join(f"{name} {rate}" for name, rate in found["phases"]["mb_per_cpu_second"].items())
    lines = [f"preprocessing {found['phases']['text_mb']} MB of text, MB a second of one core's time: {rates}"]
    for name, run in found["commands"].items():
        if "seconds" in run:
            lines.append(
                f"preprocessing, {name}, start-up included: {run['seconds']} s ({run['mb_per_second']} MB/s), "
                f"{run['cpu_seconds']} s of CPU, at most {max(run['peak_mb_of_each_process'])} MB a process"
            )
    unpacking = found["commands"]["unpacking_alone_seconds"]
    lines.append("unpacking that archive alone: " + ", ".join(f"{name} {seconds} s" for name, seconds in unpacking.items()))
    if "against_hf_wordlevel" in found:
        lines.append(f"against Hugging Face's WordLevel: {found['against_hf_wordlevel']}")
    return lines


def _training(results: list[dict[str, Any]]) -> list[str]:
    names = "shape, lanes", "vocabulary", "precision", "ranks x threads", "words/s", "of the products' rate", "outside products"
    columns = [*names, "tables", "waiting, sending", "behind the step, ms", "CPU by thread, ms", "MB a rank"]
    rows = []
    for found in results:
        parts, whole = found["parts_seconds"], sum(found["parts_seconds"].values())
        tables = (parts.get("row fetch", 0.0) + parts.get("table update", 0.0)) / whole
        cells = [
            f"{found['shape']}, {found['lanes']}",
            f"{found['vocabulary']:,}",
            found["precision"],
            f"{found['ranks']} x {found['threads']}",
            f"{found['words_per_second']:,}",
            f"{found['share_of_ceiling']:.0%} of {max(found['ceiling_gflops'].values()):.0f} GFLOP/s",
            f"{found['share_outside_products']:.0%}",
            f"{tables:.0%}",
            f"{parts.get('communication', 0.0) / whole:.0%}",
            f"{found['busy_seconds_behind_the_step'] * 1e3:.0f}",
            _threads(found["thread_cpu_seconds"]),
            f"{found['peak_memory_mb']:,}",
        ]
        rows.append(cells)
    return [markdown_table(columns, rows), ""]
