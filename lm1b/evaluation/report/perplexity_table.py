"""The report's table of perplexities: a row a result, beside the baselines on the same text."""

from __future__ import annotations

from lm1b.data.text.benchmark import HELD_OUT_COUNTS, VOCABULARY_SIZE
from lm1b.evaluation.report.baselines import Baselines
from lm1b.evaluation.report.records import RunRecord
from lm1b.training.evaluations import TEST_FILE, Evaluation

COLUMNS = (
    "run", "step", "epochs", "words seen", "split", "files", "state", "weights", "precision", "predictions", "unknown", "perplexity",
    "/ unigram", "/ trigram",
)  # fmt: skip
LEFT_ALIGNED = {"run", "split", "files", "state", "weights", "precision"}


def table_rows(run: RunRecord, baselines: Baselines) -> list[list[str]]:
    """One row of COLUMNS a result; the best on validation is marked with a star."""
    best, rows = run.best(), []
    words_seen = run.words_at([each.step for each in run.evaluations])
    for each, seen in zip(run.evaluations, words_seen, strict=True):
        beside = baselines.get(each.text_key, {})
        perplexity, epoch = each.word_perplexity, each.epoch
        rows.append([
            run.name,
            str(each.step),
            "" if epoch is None else f"{epoch:.2f}" if isinstance(epoch, float) else str(epoch),
            f"{int(seen):,}",
            each.split,
            each.files_in_short,
            each.state_in_words,
            each.weights,
            each.precision,
            f"{each.predictions:,}",
            _unknown(each),
            "not finite" if perplexity is None else f"{perplexity:.2f}" + (" *" if each is best else "  "),
            *(_ratio(perplexity, beside.get(name)) for name in ("unigram", "trigram")),
        ])  # fmt: skip
    return rows


def baseline_rows(run: RunRecord, baselines: Baselines) -> list[tuple[list[str], str]]:
    """A row of COLUMNS for each baseline on each text that the run was scored on, and which baseline it is."""
    rows = []
    for key, each in {each.text_key: each for each in run.evaluations}.items():
        beside = baselines.get(key, {})
        for name, label in (("unigram", "unigram, add one"), ("trigram", "trigram, Kneser-Ney")):
            if beside.get(name) is not None:
                counts = [f"{each.predictions:,}", _unknown(each), f"{beside[name]:.2f}  "]
                ratios = [_ratio(beside[name], beside["unigram"]), _ratio(beside[name], beside["trigram"])]
                seen = f"{beside['training_tokens']:,}"
                row = [f"{run.name}: {label}", "", "1", seen, each.split, each.files_in_short, "", "", "", *counts, *ratios]
                rows.append((row, label))
    return rows


def _unknown(evaluation: Evaluation) -> str:
    """Share of a result's predictions; `none (open)` where every word is spelled out."""
    return "none (open)" if evaluation.label == "open" else f"{evaluation.unknown_percent:.2f} %"


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

    def has_official_words(each: Evaluation) -> bool:
        is_closed_alike = each.label == "closed" and each.unknown == HELD_OUT_COUNTS[TEST_FILE][2]
        return each.vocabulary_size == VOCABULARY_SIZE or is_closed_alike

    return any(each.trained_on_official and each.official == TEST_FILE and has_official_words(each) for each in run.evaluations)
