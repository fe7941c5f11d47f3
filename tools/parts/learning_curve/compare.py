"""What learning curves say: when a perplexity was reached, and whether two groups of seeds learn alike.

A curve is a list of points {"step", "words", "seconds", "word_perplexity"}, rising in words; a perplexity that is not finite is null.
Between points the logarithm of the perplexity is taken to go straight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm1b.errors import UserError
from lm1b.markdown import markdown_table

Curve = Sequence[dict[str, Any]]
# What two groups must share to be compared; precision, threads and the device may differ.
SHARED = ("text", "evaluation", "vocabulary", "batches", "model", "softmax", "tables", "optimizer", "schedule", "length")


def seconds_to(curve: Curve, perplexity: float) -> float | None:
    """Seconds of training until the curve first comes down to a perplexity: at most so many where its first point is there already.

    None where it never is.
    """
    before: dict[str, Any] | None = None
    for point in curve:
        value = point["word_perplexity"]
        if value is not None and value <= perplexity:
            if before is None:
                return point["seconds"]
            high, low = math.log(before["word_perplexity"]), math.log(value)
            share = (high - math.log(perplexity)) / (high - low)
            return before["seconds"] + share * (point["seconds"] - before["seconds"])
        before = before if value is None else point
    return None


@dataclass(frozen=True)
class Row:
    """Two groups after as many words.

    ours, theirs: the perplexity of the mean nats. spread: largest less smallest nats of a group's seeds, of the wider group.
    """

    words: int
    ours: float
    theirs: float
    spread: float

    @property
    def difference(self) -> float:
        """Of the means, in nats a word: ours less theirs."""
        return math.log(self.ours / self.theirs)

    @property
    def is_within(self) -> bool:
        return abs(self.difference) <= self.spread

    def as_json(self) -> dict[str, Any]:
        numbers = {"ours": self.ours, "theirs": self.theirs, "difference_nats": self.difference, "spread_nats": self.spread}
        return {"words": self.words, **{name: round(value, 5) for name, value in numbers.items()}, "is_within_spread": self.is_within}


def compare(ours: Sequence[Curve], theirs: Sequence[Curve]) -> list[Row]:
    """After each number of words at which all of `ours` were scored, within what `theirs` cover.

    Raises UserError where a group has fewer than two seeds, or where they share no words.
    """
    for curves in (ours, theirs):
        if len(curves) < 2:
            raise UserError(f"seed noise needs two seeds of each, found {len(curves)}; train one more with --seeds")
        if any(all(point["word_perplexity"] is None for point in curve) for curve in curves):
            raise UserError("a seed has no finite perplexity at all, so there is nothing to compare; train another one with --seeds")
    first, last = max(curve[0]["words"] for curve in theirs), min(curve[-1]["words"] for curve in theirs)
    shared = set.intersection(*({point["words"] for point in curve} for curve in ours))
    words_n = [words for words in sorted(shared) if first <= words <= last]
    if not words_n:
        raise UserError("the two were scored after no common number of words; train them for as long, with the same --points")
    groups = [np.array([_nats(curve, words_n) for curve in curves]) for curves in (ours, theirs)]
    spread_n = np.max([np.ptp(group, axis=0) for group in groups], axis=0)
    means = [np.exp(group.mean(axis=0)) for group in groups]
    return [Row(words, float(a), float(b), float(c)) for words, a, b, c in zip(words_n, *means, spread_n, strict=True)]


def _nats(curve: Curve, words_n: list[int]) -> np.ndarray:
    points = [(point["words"], math.log(point["word_perplexity"])) for point in curve if point["word_perplexity"] is not None]
    return np.interp(words_n, *np.array(points, float).T)


def check_comparable(ours: dict[str, Any], theirs: dict[str, Any], where: str) -> None:
    """Raise UserError where two experiments are not the same one but for the machine."""
    different = [name for name in SHARED if ours.get(name) != theirs.get(name)]
    if different:
        raise UserError(f"{where}: of another experiment, it differs in {', '.join(different)}; train both with the same options")


def as_text(rows: Sequence[Row], ours: str, theirs: str) -> str:
    """A Markdown table and the verdict."""
    cells = [
        [
            f"{row.words:,}",
            f"{row.ours:.2f}",
            f"{row.theirs:.2f}",
            f"{row.difference:+.2%}",
            f"{row.spread:.2%}",
            "within" if row.is_within else "beyond",
        ]
        for row in rows
    ]
    table = markdown_table(["words", ours, theirs, "difference", "spread of the seeds", ""], cells)
    within = sum(row.is_within for row in rows)
    return f"{table}\n\nThe difference of the means is within the spread of the seeds at {within} of {len(rows)} points."
