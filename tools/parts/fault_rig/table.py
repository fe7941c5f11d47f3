"""What became of each trial, and the table of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lm1b.markdown import markdown_table


@dataclass
class Trial:
    """One fault and what became of it. None: not a question here.

    steps_lost: steps done before the fault that were done again, without those made while a save was under way, which are
    steps_while_saving. seconds: from the fault until no process was left. named: whether the others said which rank had died.
    problem: why the trial counts as lost. skipped: why it was not tried.
    """

    fault: str
    detail: str = ""
    phase: str | None = None
    steps_lost: int | None = None
    steps_while_saving: int | None = None
    wrong_bytes: int | None = None
    seconds: float | None = None
    named: bool | None = None
    problem: str | None = None
    skipped: str | None = None
    log: str | None = None

    @property
    def survived(self) -> bool:
        return self.problem is None and self.skipped is None and not self.wrong_bytes

    def fail(self, problem: str, log: Path | None = None) -> None:
        """Note the first problem."""
        if self.problem is None:
            self.problem = problem
            self.log = str(log) if log else self.log


@dataclass
class Row:
    """All trials of a fault."""

    fault: str
    trials: list[Trial] = field(default_factory=list)

    def most(self, name: str) -> str:
        values = [value for trial in self.trials if (value := getattr(trial, name)) is not None]
        return "" if not values else f"{max(values):.1f}" if isinstance(values[0], float) else str(max(values))

    def cells(self) -> list[str]:
        skipped = [trial.skipped for trial in self.trials if trial.skipped]
        tried = [trial for trial in self.trials if not trial.skipped]
        if skipped and not tried:
            return [self.fault, "0", f"skipped: {skipped[0]}", "", "", "", "", ""]
        named = [trial.named for trial in tried if trial.named is not None]
        return [
            self.fault,
            str(len(tried)),
            str(sum(trial.survived for trial in tried)),
            self.most("steps_lost"),
            self.most("steps_while_saving"),
            str(sum(values)) if (values := [trial.wrong_bytes for trial in tried if trial.wrong_bytes is not None]) else "",
            self.most("seconds"),
            f"{sum(named)} of {len(named)}" if named else "",
        ]


HEADERS = [
    "fault",
    "tried",
    "survived",
    "steps lost (most)",
    "and while saving (most)",
    "bytes wrong",
    "all ended within (s)",
    "the dead rank named",
]


def rows_of(trials: Sequence[Trial]) -> list[Row]:
    """Trials by fault, in the order in which the faults first appear."""
    rows: dict[str, Row] = {}
    for trial in trials:
        rows.setdefault(trial.fault, Row(trial.fault)).trials.append(trial)
    return list(rows.values())


def phase_counts(trials: Sequence[Trial]) -> dict[str, int]:
    """How many kills struck in each phase."""
    counts: dict[str, int] = {}
    for trial in trials:
        if trial.phase is not None:
            counts[trial.phase] = counts.get(trial.phase, 0) + 1
    return counts


def as_text(trials: Sequence[Trial], *, markdown: bool) -> str:
    """The table, in Markdown or in columns for a terminal."""
    rows = [row.cells() for row in rows_of(trials)]
    if markdown:
        return markdown_table(HEADERS, rows)
    lines = [HEADERS, *rows]
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(HEADERS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in lines)
