"""Tables and curves of one or more runs, beside n-gram baselines on the same text and the published figures.

1. A run is read from its folder alone: config.json, environment.json, evaluations.jsonl, metrics.jsonl.
2. Baselines are counted on the run's own token directory, where it is there, and kept in report/baselines.json.
3. The table goes to stdout; the whole, with the published figures and the curves, to report/report.md and report.html, a page by itself.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from lm1b.evaluation.report.baselines import find_baselines, levels_of
from lm1b.evaluation.report.curves import Levels, axes_of, draw_curves, panel_svg
from lm1b.evaluation.report.page import Charts, render_page
from lm1b.evaluation.report.perplexity_table import as_text, baseline_rows, table_rows
from lm1b.evaluation.report.records import RunRecord
from lm1b.evaluation.report.sections import ChartsHere, report_parts, title_of
from lm1b.files import atomic_file


def report(run_directories: list[Path], out: Path) -> str:
    """Write report.md, curves.png and report.html into `out`. Returns the table as text."""
    runs = [RunRecord.read(directory) for directory in run_directories]
    rows: list[list[str]] = []
    notes: list[str] = []
    levels: Levels = []
    seen: set[str] = set()
    for run in runs:
        baselines, problems = find_baselines(run, run.folder.baselines)
        notes += problems
        levels += [level for level in levels_of(run, baselines) if level not in levels]  # runs on the same text share it
        rows += table_rows(run, baselines)
        # Runs on the same text share its baselines: shown once.
        more = {"".join(row[1:]) + label: row for row, label in baseline_rows(run, baselines)}
        rows += [row for key, row in more.items() if key not in seen]
        seen |= set(more)
    parts = report_parts(runs, rows, notes)
    draw_curves(runs, levels, out / "curves.png")
    with atomic_file(out / "report.md") as file:
        file.write(_as_markdown(parts).encode())
    with atomic_file(out / "report.html") as file:
        file.write(_as_page(runs, levels, parts).encode())
    return "\n".join([as_text(rows) if rows else "nothing has been scored yet", *(f"note: {note}" for note in notes)])


def _as_markdown(parts: list[str | ChartsHere]) -> str:
    texts = [part if isinstance(part, str) else part.picture for part in parts]
    return "\n\n".join(filter(None, texts)) + "\n"


def _as_page(runs: list[RunRecord], levels: Levels, parts: list[str | ChartsHere]) -> str:
    axes = {axis.name: axis for axis in axes_of(runs)}
    numbers = itertools.count(1)
    page: list[str | Charts] = []
    for part in parts:
        if isinstance(part, str):
            page.append(part)
            continue
        drawn = [
            (f"{panel.title}, against {name}", panel_svg(panel, runs, axes[name], levels, next(numbers)))
            for panel in part.panels
            for name in part.axes
        ]
        charts = [(caption, svg) for caption, svg in drawn if svg]
        if charts:
            page.append(Charts(part.title, part.note, charts))
    return render_page(title_of(runs), page)
