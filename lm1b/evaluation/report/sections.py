"""The report's parts, in order: Markdown, and places where charts go."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from typing import NamedTuple

from lm1b.evaluation.report.curves import HEALTH, LOSS, PERPLEXITY, Panel
from lm1b.evaluation.report.details import render_details
from lm1b.evaluation.report.perplexity_table import COLUMNS, LEFT_ALIGNED, is_comparable
from lm1b.evaluation.report.published import PUBLISHED
from lm1b.evaluation.report.records import RunRecord, model_in_words
from lm1b.evaluation.report.settings import commands_to_repeat, environment_rows, settings_rows
from lm1b.markdown import literal, markdown_table
from lm1b.progress import duration
from lm1b.training.evaluations import count_test_looks

LEFT_COLUMNS = [number for number, name in enumerate(COLUMNS) if name in LEFT_ALIGNED]


class ChartsHere(NamedTuple):
    """What stands at a place between parts of Markdown: on the page each of the panels against each of the axes, named; picture: of
    report.md, as Markdown.
    """

    title: str
    note: str
    panels: Sequence[Panel]
    axes: Sequence[str]
    picture: str = ""


PROGRESS = ChartsHere(
    "Against words, steps and time",
    "The training loss is the sampled softmax's where a run samples, which is no perplexity; thin lines as logged, thick smoothed.",
    (LOSS, PERPLEXITY),
    ("words", "steps", "time"),
    "![Training loss and validation perplexity against words, steps and time](curves.png)",
)
HOW_IT_WENT = ChartsHere(
    "How it went",
    "Of several layers the largest spectral radius; a dead ReLU puts out 0 at every position of a step.",
    HEALTH,
    ("words",),
)


def title_of(runs: list[RunRecord]) -> str:
    """Of the whole report."""
    return "Report: " + ", ".join(run.name for run in runs)


def report_parts(runs: list[RunRecord], rows: list[list[str]], notes: list[str]) -> list[str | ChartsHere]:
    """The whole report. rows: of the table of perplexities. Raises UserError for kept nats that are damaged."""
    return [
        "# " + literal(title_of(runs)),
        _at_a_glance(runs),
        PROGRESS,
        "## Perplexity",
        "Exact perplexities a word, over the whole vocabulary: predictions = words + sentences, each `</S>` is predicted. `<UNK>` is a "
        "word, but where a vocabulary of pieces is open: that spells every word, and its figures do not compare with the others. "
        "\\*: best on validation. The last two columns divide by the baselines on the same text and vocabulary. "
        f"Looks at a test text: {sum(count_test_looks(run.evaluations) for run in runs)}.",
        _escaped_table(list(COLUMNS), rows, LEFT_COLUMNS) if rows else "Nothing has been scored yet.",
        *(f"Note: {literal(note)}" for note in notes),
        *_published(runs),
        *render_details(runs),
        HOW_IT_WENT,
        *_settings(runs),
        *_environment(runs),
        *_how_to_repeat(runs),
    ]


def _escaped_table(header: list[str], rows: list[list[str]], left: Collection[int] | None = None) -> str:
    return markdown_table([literal(cell) for cell in header], [[literal(cell) for cell in row] for row in rows], left=left)


def _at_a_glance(runs: list[RunRecord]) -> str:
    """One row a run."""
    rows = []
    for run in runs:
        best, last = run.best(), run.metrics[-1] if run.metrics else {}
        parameters = sum(run.environment.get(key) or 0 for key in ("core_parameters", "table_parameters"))
        speeds = [line["words_per_second"] for line in run.metrics if line.get("words_per_second")]
        rows.append([
            run.name,
            model_in_words(run),
            f"{parameters / 1e6:,.1f} million" if parameters else "",
            f"{best.word_perplexity:.2f} at step {best.step:,}" if best else "not scored on validation",
            f"{last['words']:,}" if last.get("words") else "",
            duration(last["elapsed_seconds"]) if last.get("elapsed_seconds") else "",
            f"{statistics.median(speeds):,.0f}" if speeds else "",
        ])  # fmt: skip
    return _escaped_table(
        ["run", "model", "parameters", "best validation perplexity", "words trained on", "time", "words/s (median)"], rows
    )


def _published(runs: list[RunRecord]) -> list[str]:
    others = [literal(run.name) for run in runs if not is_comparable(run)]
    warning = ""
    if others:
        warning = (
            f"**These do not compare with {', '.join(others)}**, which did not train on the full benchmark with its 793,471 words and get "
            "scored on heldout-00000: another corpus, another vocabulary or another test text gives another perplexity. "
        )
    return [
        "## Published figures on the 1 Billion Word benchmark (test file heldout-00000)",
        warning + "Figures marked as recalled come from memory of the paper and were not read again.",
        markdown_table(
            ["model", "perplexity", "source", "protocol"],
            [[figure.model, str(figure.perplexity), figure.source, figure.protocol] for figure in PUBLISHED],
        ),
    ]


def _settings(runs: list[RunRecord]) -> list[str]:
    rows = settings_rows(runs)
    if len(runs) == 1:
        return ["## Settings", "Fields that differ from their defaults.", _escaped_table(["field", "value", "default"], rows)]
    table = _escaped_table(["field", *(run.name for run in runs)], rows) if rows else "The runs have the same settings."
    return ["## Settings side by side", "Fields in which the runs differ; `null` is off.", table]


def _environment(runs: list[RunRecord]) -> list[str]:
    rows = environment_rows(runs)
    return ["## Environment", _escaped_table(["", *(run.name for run in runs)], rows)] if rows else []


def _how_to_repeat(runs: list[RunRecord]) -> list[str]:
    """Indented code, which no text can end."""
    parts: list[str] = []
    for run in runs:
        commands = commands_to_repeat(run)
        if commands:
            lines = [line for command in commands for line in command.splitlines()]
            parts += [f"### {literal(run.name)}", "\n".join(f"    {line}" for line in lines)]
    about = (
        "In a clone of the repository, on as many ranks; another machine rounds otherwise, so the figures come near and not to the digit."
    )
    return ["## How to repeat it", about, *parts] if parts else []
