"""The report's table of perplexities: a row a result, beside the baselines on the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm1b.data.text.benchmark import HELD_OUT_COUNTS, VOCABULARY_SIZE
from lm1b.evaluation.baselines import Baselines, baseline_key
from lm1b.evaluation.records import RunRecord
from lm1b.evaluation.texts import TEST_FILE

COLUMNS = (
    "run", "step", "epochs", "tokens seen", "split", "files", "state", "weights", "precision", "predictions", "unknown", "perplexity",
    "/ unigram", "/ trigram",
)  # fmt: skip
LEFT_ALIGNED = {"run", "split", "files", "state", "weights", "precision"}


def table_rows(run: RunRecord, baselines: Baselines) -> list[list[str]]:
    """One row of COLUMNS a result; the best on validation is marked with a star."""
    best, rows = run.best(), []
    for line in run.evaluations:
        beside = baselines.get(baseline_key(line), {})
        perplexity = line["word_perplexity"]
        files = line.get("official") or ", ".join(Path(file).name for file in line["files"][:1])
        more = f" + {len(line['files']) - 1}" if len(line["files"]) > 1 else ""
        epoch = line.get("epoch")
        rows.append([
            run.name,
            str(line["step"]),
            "" if epoch is None else f"{epoch:.2f}" if isinstance(epoch, float) else str(epoch),
            f"{run.tokens_at(line['step']):,}",
            line["split"],
            files + more,
            line["state"],
            line["weights"],
            line["precision"],
            f"{line['predictions']:,}",
            unknown_share(line),
            "not finite" if perplexity is None else f"{perplexity:.2f}" + (" *" if line is best else "  "),
            *(_ratio(perplexity, beside.get(name)) for name in ("unigram", "trigram")),
        ])  # fmt: skip
    return rows


def baseline_rows(run: RunRecord, baselines: Baselines) -> list[tuple[list[str], str]]:
    """A row of COLUMNS for each baseline on each text that the run was scored on, and which baseline it is."""
    rows = []
    for key, line in {baseline_key(line): line for line in run.evaluations}.items():
        beside = baselines.get(key, {})
        for name, label in (("unigram", "unigram, add one"), ("trigram", "trigram, Kneser-Ney")):
            if beside.get(name) is not None:
                files = line.get("official") or Path(line["files"][0]).name
                more = f" + {len(line['files']) - 1}" if len(line["files"]) > 1 else ""
                counts = [f"{line['predictions']:,}", unknown_share(line), f"{beside[name]:.2f}  "]
                ratios = [_ratio(beside[name], beside["unigram"]), _ratio(beside[name], beside["trigram"])]
                seen = f"{beside['training_tokens']:,}"
                row = [f"{run.name}: {label}", "", "1", seen, line["split"], files + more, "", "", "", *counts, *ratios]
                rows.append((row, label))
    return rows


def unknown_share(line: dict[str, Any]) -> str:
    """Of a result's predictions; `none (open)` where every word is spelled out."""
    return "none (open)" if line.get("label") == "open" else f"{100 * line['unknown'] / line['predictions']:.2f} %"


def _ratio(perplexity: float | None, baseline: float | None) -> str:
    return "" if perplexity is None or baseline is None else f"{perplexity / baseline:.2f}"


def as_text(rows: list[list[str]]) -> str:
    """A plain table with aligned columns."""
    widths = [max(len(row[k]) for row in [list(COLUMNS), *rows]) for k in range(len(COLUMNS))]

    def line(row: list[str]) -> str:
        cells = (c.ljust(w) if name in LEFT_ALIGNED else c.rjust(w) for c, w, name in zip(row, widths, COLUMNS, strict=True))
        return "  ".join(cells).rstrip()

    return "\n".join([line(list(COLUMNS)), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def is_comparable(run: RunRecord) -> bool:
    """Whether the run was trained on the full benchmark and scored on its test file with the official words, or pieces closed by them."""

    def has_official_words(line: dict[str, Any]) -> bool:
        is_closed_alike = line.get("label") == "closed" and line.get("unknown") == HELD_OUT_COUNTS[TEST_FILE][2]
        return line.get("vocabulary_size") == VOCABULARY_SIZE or is_closed_alike

    return any(
        line.get("trained_on_official") and line.get("official") == TEST_FILE and has_official_words(line) for line in run.evaluations
    )
