"""Figures that pages show stand in the kept files, or in the lists of what others have published, from which they were copied by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from tiny import REPOSITORY

from lm1b.evaluation.report.published import PUBLISHED
from lm1b.files import read_json

RESULTS = REPOSITORY / "results"
# How a table of results/README.md begins, its file, and the columns that are looked at.
TABLES = [
    ("| trial | CPU s", "settings", ("CPU s", "perplexity")),
    ("| softmax | parameters", "softmax_kinds", ("CPU ms a step", "steps", "perplexity")),
    ("| shape, lanes", "benchmark", ("words/s", "MB a rank")),
    ("| harm to one", "cluster_faults", ("within (s)",)),
    ("| hosts | vocabulary", "cluster_traffic", ("a host sends in a step", "rows in order", "by the formula")),
]


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def is_among(shown: str, numbers: list[float]) -> bool:
    """Whether one of the numbers rounds to what is shown, as it is, in thousandths, in thousands or in millions."""
    decimals = len(shown.partition(".")[2])
    return any(f"{number / unit:.{decimals}f}" == shown for number in numbers for unit in (1e-3, 1.0, 1e3, 1e6))


def table_of(beginning: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table of results/README.md whose first line begins so."""
    _, _, after = (RESULTS / "README.md").read_text().partition(beginning)
    lines = (beginning + after).split("\n\n")[0].splitlines()
    columns, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return columns, rows


@pytest.mark.parametrize(("beginning", "file", "shown_columns"), TABLES, ids=[file for _, file, _ in TABLES])
def test_the_tables_of_results_are_those_of_their_files(beginning: str, file: str, shown_columns: tuple[str, ...]) -> None:
    columns, rows = table_of(beginning)
    numbers = list(numbers_in(read_json(RESULTS / f"{file}.json")))
    figures = [re.findall(r"[\d,]+(?:\.\d+)?", row[columns.index(column)])[0].replace(",", "") for row in rows for column in shown_columns]
    assert len(figures) >= 6
    assert not [figure for figure in figures if not is_among(figure, numbers)]


@pytest.mark.parametrize("page", ["README.md", "results/README.md"])
def test_perplexities_are_those_of_their_files(page: str) -> None:
    files = ("news_sample", "news_sample_settings", "news_mix", "papers/language_models")
    numbers = [number for file in files for number in numbers_in(read_json(RESULTS / f"{file}.json"))]
    figures = re.findall(r"\*\*(\d+\.\d)\b(?! %)", (REPOSITORY / page).read_text())
    assert len(figures) >= 4
    assert not [figure for figure in figures if not is_among(figure, numbers)]


def test_published_figures_of_the_readme_are_those_of_the_report() -> None:
    _, _, after = (REPOSITORY / "README.md").read_text().partition("**The published figures**")
    shown = re.findall(r"(?<![\d.])\d\d\.\d(?:\d)?(?![\d.])", after.partition("**Ours**")[0])
    known = {f"{row.perplexity:g}" for row in PUBLISHED}
    text = " ".join(str(row) for row in PUBLISHED)
    assert len(shown) > 12
    assert not [figure for figure in shown if f"{float(figure):g}" not in known and figure not in text]
