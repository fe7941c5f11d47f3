"""The tables of papers.md: each of the papers' tables with ours beside it, and stand-in data in tables of their own.

1. A result belongs to a published table where its task and the shape of its model are those of the table, and its data are the paper's
   own. Data of another origin (a sample of TIMIT's speakers, a wrist accelerometer) get a table apart, without any figure of a paper.
2. Every published row is shown: with our results, or with what it would take to have one.
3. Below each table stand one sentence a claim, and where every figure comes from.
"""

from __future__ import annotations

import math
import os
import statistics
from pathlib import Path

from lm1b.markdown import markdown_table
from lm1b.sequence_tasks.papers.kept_result import CELL_NAMES, KeptResult
from lm1b.sequence_tasks.papers.published import NOT_KNOWN, PublishedTable
from lm1b.sequence_tasks.papers.verdicts import (
    judge,
    judge_figure,
    judge_variants,
    num_solved,
    shown_range,
)

PAPERS_LAYOUT = {"phones": "TIMIT", "actions": "UCF-101 features"}  # of Task.sources where the data are the paper's own
CANNOT_TELL = "Cannot tell whether it agrees: of what the paper reports here nothing is known to us."


def is_papers_data(result: KeptResult) -> bool:
    """Whether a result is on the data set that the paper used: generated and MNIST always, others by their layout."""
    layout = PAPERS_LAYOUT.get(result.task.kind)
    return layout is None or result.facts["sources"].get("layout") == layout


def belongs(result: KeptResult, table: PublishedTable) -> bool:
    """Whether a result is of a published table's task and shape, whatever its data."""
    return all(
        getattr(section, key, None) == value
        for section, asked in ((result.task, table.task), (result.model, table.model))
        for key, value in asked.items()
    )


def data_of(result: KeptResult) -> str:
    """What a result is on, in words."""
    facts = result.facts
    counts = ", ".join(f"{count:,} {split}" for split, count in facts["sequences"].items())
    sources = "; ".join(f"{key}: {value}" for key, value in facts["sources"].items())
    return f"{facts['name']} ({sources}); sequences: {counts}"


def settings_of(results: list[KeptResult]) -> str:
    """What the cells of a table were trained with, each setting with its values over all of them."""

    def values(section: str, key: str) -> str:
        found = {"none" if value is None else f"{value:g}" if isinstance(value, float) else str(value) for value in _values(section, key)}
        return " or ".join(sorted(found))

    def _values(section: str, key: str) -> list[object]:
        return [getattr(getattr(result.config, section), key) for result in results]

    inputs: dict[str, list[str]] = {}
    for result in results:
        inputs.setdefault(result.model.input_weight, []).append(CELL_NAMES[result.cell])
    weights = ", ".join(f"{kind} ({', '.join(dict.fromkeys(cells))})" for kind, cells in inputs.items())
    return (
        f"Settings: {values('optimizer', 'kind')}, gradient clipped at norm {values('optimizer', 'clip_norm')}, "
        f"{values('training', 'batch')} sequences an update, {values('model', 'hidden')} units; initial input weights: {weights}."
        + _unlike_searches(results)
    )


def chance_of_test(results: list[KeptResult]) -> str:
    """How much the choice of test sequences may move a share of right answers: known for digits, of which each is drawn by itself."""
    kind = results[0].task.kind
    if kind in ("phones", "actions"):
        return " The seeds' ranges leave out which few people are the test: how far other ones would move the figures is not known."
    if kind != "pixel_mnist":
        return ""
    num_test = results[0].facts["sequences"]["test"]
    shares = [statistics.median(result.errors) for result in results]
    width = max((196.0 * math.sqrt(share * (1.0 - share) / num_test) for share in shares if math.isfinite(share)), default=0.0)
    return f" The seeds' ranges leave out which {num_test:,} sequences are the test: 95 % of such choices lie within {width:.1f} points."


def _unlike_searches(results: list[KeptResult]) -> str:
    """Which cells of a table were searched at other learning rates than the rest; nothing where all were searched alike."""
    cells: dict[str, list[str]] = {}
    for result in results:
        search = result.config.search
        rates = ", ".join(f"{rate:g}" for rate in search.learning_rates) if search else "none: its rate was given"
        cells.setdefault(rates, []).append(result.label)
    if len(cells) < 2:
        return ""
    usual = max(cells, key=lambda rates: len(cells[rates]))
    others = "; ".join(f"{' and '.join(labels)}: {rates}" for rates, labels in cells.items() if rates != usual)
    return f" Learning rates searched: {usual}; **other than the rest**, {others}."


def link(path: Path | None, out: Path) -> str:
    """A file, relative to the report's folder."""
    return "not kept" if path is None else f"[{path.stem}]({os.path.relpath(path, out)})"


OUR_COLUMNS = [
    "on test, median (least to greatest)",
    "seeds",
    "diverged",
    "updates skipped; seeds with bursts",
    "learning rate",
    "budget",
    "file",
]


def our_columns(result: KeptResult, out: Path) -> list[str]:
    """OUR_COLUMNS of one result. out: folder of papers.md, which links are relative to. Figures are accuracies where those decide."""
    total = len(result.runs)
    solved = f"{total}, {num_solved(result)} solve it" if result.facts["asked"] == "number" else str(total)
    budget = f"{result.updates:,} updates ({result.epochs:.3g} epochs)"
    meaning = "" if result.facts["asked"] == "number" else " correct" if result.is_accuracy else " wrong"
    return [
        shown_range(result, accuracy=result.is_accuracy) + meaning,
        solved,
        f"{sum(run['diverged'] for run in result.runs)} of {total}",
        f"{result.num_skipped}; {result.num_with_bursts}",
        f"{result.learning_rate:g}" + (" (an end of the grid)" if result.is_at_an_end else ""),
        budget,
        link(result.path, out),
    ]


def evidence(results: list[KeptResult], out: Path) -> str:
    """Where each figure comes from: a list of file, command, revision and date, a line a result."""
    lines = []
    for result in results:
        facts = result.provenance
        command = f"`{facts['command']}`" if facts.get("command") else "command not recorded"
        revision = f"commit {str(facts.get('revision'))[:12]}" if facts.get("revision") else "commit not recorded"
        dirty = ", with changes that are not committed" if str(facts.get("revision")).endswith("-dirty") else ""
        when = f", finished {facts['finished_at'][:10]}" if facts.get("finished_at") else ""
        where = f" on {facts['machine']}" if facts.get("machine") else ""
        lines.append(f"- {link(result.path, out)}: {command}; {revision}{dirty}{when}{where}")
    return "\n".join(["Where the figures come from:", "", *lines])


def render_published(table: PublishedTable, results: list[KeptResult], out: Path) -> str:
    """One of the papers' tables: every row of it, our results of that task and shape on the paper's own data, and what may be said."""
    ours = [result for result in results if belongs(result, table) and is_papers_data(result) and result.is_plain]
    rows = []
    for row in table.rows:
        known = row.figure if row.figure == NOT_KNOWN else f"{row.figure} ({row.certainty})"
        of_cell = [result for result in ours if result.cell == row.cell]
        for result in of_cell:
            rows.append([row.system, known, result.label, *our_columns(result, out)])
        if not of_cell:
            rows.append([row.system, known, f"not run here: needs {table.needs}", *[""] * len(OUR_COLUMNS)])
    others = [result for result in ours if result.cell not in {row.cell for row in table.rows}]
    place = "not in the paper's table" if table.rows_are_known else "no row of the paper known to us"
    rows += [[place, "", result.label, *our_columns(result, out)] for result in others]
    parts = [f"### {table.title}", f"{table.paper}." + (f" {table.note}" if table.note else "")]
    parts.append(markdown_table(["the paper's system", f"the paper's figure ({table.unit})", "ours", *OUR_COLUMNS], rows))
    if ours:
        found = [judge_figure(row, ours) for row in table.rows]
        said = [*(sentence for sentence in found if sentence), *(judge(claim, ours) for claim in table.claims), *judge_variants(ours)]
        parts.append("\n".join(f"- {sentence}" for sentence in said) if said else CANNOT_TELL)
        parts.append(f"Data: {data_of(ours[0])}. {settings_of(ours)}{chance_of_test(ours)}")
        parts.append(evidence(ours, out))
    else:
        parts.append("Cannot tell: not run here.")
    return "\n\n".join(parts)


def render_stand_ins(tables: list[PublishedTable], results: list[KeptResult], out: Path) -> list[str]:
    """Tables of results on other data than the paper's: a table a data set and shape, no figure of a paper in it."""
    groups: dict[str, list[KeptResult]] = {}
    for result in results:
        if not is_papers_data(result) and result.is_plain:
            groups.setdefault(f"{result.facts['name']}, {result.shape}", []).append(result)
    parts = []
    for title, ours in groups.items():
        ours = sorted(ours, key=lambda result: result.label)
        claims = [claim for table in tables if belongs(ours[0], table) for claim in table.claims]
        rows = [[result.label, str(result.model.hidden), *our_columns(result, out)] for result in ours]
        said = [judge(claim, ours) for claim in claims] or ["The paper has no table of this shape."]
        said += judge_variants(ours)
        parts += [
            f"### Stand-in data: {title}",
            "**Not the paper's data set**, so no figure of the paper stands here; only the order of the cells is looked at. "
            f"{data_of(ours[0])}. {settings_of(ours)}{chance_of_test(ours)}",
            markdown_table(["cell", "units", *OUR_COLUMNS], rows),
            "\n".join(f"- {sentence}" for sentence in said),
            evidence(ours, out),
        ]
    return parts
