"""What may be said of two cells, in one sentence each: they differ only where the ranges of their seeds do not overlap.

A seed that diverged counts as infinitely wrong. One seed has no range: then, whatever the difference, it cannot be told.
"""

from __future__ import annotations

import math
import statistics
from typing import Literal

from lm1b.sequence_tasks.papers.kept import CELL_NAMES, KeptResult
from lm1b.sequence_tasks.papers.published import Claim

SOLVED_SHARE = 0.06  # of a constant answer's squared error: 0.01 on adding
SCALES = {
    "lower": "the smaller scale is ahead",
    "higher": "the larger scale is ahead",
    "cannot tell": "cannot tell which is ahead, since the seeds' ranges overlap or there is one seed only",
}
Verdict = Literal["lower", "higher", "cannot tell"]


def shown(error: float, asked: str) -> str:
    """A test error for people: squared error, or the share of wrong answers as a percentage."""
    if math.isinf(error):
        return "diverged"
    return f"{error:.3g}" if asked == "number" else f"{100 * error:.1f} %"


def shown_range(result: KeptResult, *, accuracy: bool = False) -> str:
    """Median, then least to greatest over the seeds, diverged ones among them."""
    errors, asked = result.errors, result.facts["asked"]
    middle = shown_value(statistics.median(errors), asked, accuracy=accuracy)
    if len(errors) == 1:
        return middle
    ends = [shown_value(error, asked, accuracy=accuracy) for error in (errors[0], errors[-1])]
    return f"{middle} ({' to '.join(reversed(ends) if accuracy else ends)})"


def shown_value(error: float, asked: str, *, accuracy: bool) -> str:
    """An error, or the accuracy that belongs to it."""
    return shown(1.0 - error if accuracy and math.isfinite(error) else error, asked)


def compare(one: list[float], other: list[float]) -> Verdict:
    """Of errors, ascending, one a seed."""
    if len(one) < 2 or len(other) < 2:
        return "cannot tell"
    if one[-1] < other[0]:
        return "lower"
    return "higher" if one[0] > other[-1] else "cannot tell"


def num_solved(result: KeptResult) -> int:
    """Seeds whose squared error on test is below SOLVED_SHARE of a constant answer's."""
    return sum(error < SOLVED_SHARE * result.facts["baseline_loss"] for error in result.errors)


def best_of_cell(results: list[KeptResult], cell: str) -> KeptResult | None:
    """The plain result of a cell; where there are several (scales of the identity), the one with the lowest median error on dev."""
    plain = [result for result in results if result.cell == cell and result.is_plain]
    return min(plain, key=lambda result: statistics.median(result.dev_errors), default=None)


def judge(claim: Claim, results: list[KeptResult]) -> str:
    """Whether our results agree with a claim, in one sentence that says agrees, disagrees or cannot tell."""
    ours = best_of_cell(results, claim.cell)
    name = CELL_NAMES[claim.cell]
    if claim.kind in ("solves", "fails"):
        claimed = f"{claim.whose} {name} {'converges' if claim.kind == 'solves' else 'fails'}"
        if ours is None:
            return f"{claimed}. Cannot tell: not run here."
        solved, total = num_solved(ours), len(ours.errors)
        if total < 2:
            return f"{claimed}. Cannot tell from one seed, which {'solves it' if solved else 'does not'}."
        found = f"here {solved} of {total} seeds get below {SOLVED_SHARE * ours.facts['baseline_loss']:.2g}"
        if claim.kind == "fails":
            return f"{claimed}; {found}: {'it agrees' if solved == 0 else 'it disagrees' if solved > total / 2 else 'cannot tell'}."
        return f"{claimed}; {found}: {'it agrees' if solved > total / 2 else 'it disagrees' if solved == 0 else 'it agrees in part'}."
    other = best_of_cell(results, claim.other)
    relation = "is ahead of the" if claim.kind == "ahead" else "does as well as the"
    claimed = f"{claim.whose} {name} {relation} {CELL_NAMES[claim.other]}"
    if ours is None or other is None:
        return f"{claimed}. Cannot tell: the {name if ours is None else CELL_NAMES[claim.other]} was not run here."
    return f"{claimed}. {judge_pair(ours, other, level=claim.kind == 'level')}"


def judge_scales(results: list[KeptResult]) -> list[str]:
    """Of IRNNs that start from different multiples of the identity, which is ahead: a sentence a pair."""
    irnns = sorted((result for result in results if result.cell == "irnn" and result.is_plain), key=lambda one: one.model["identity_scale"])
    said = []
    for place, one in enumerate(irnns):
        for other in irnns[place + 1 :]:
            if one.model["identity_scale"] < other.model["identity_scale"]:
                names = f"W = {one.model['identity_scale']:g} I against W = {other.model['identity_scale']:g} I"
                ranges = f"{shown_range(one)} against {shown_range(other)}"
                said.append(f"IRNN, {names}: {SCALES[compare(one.errors, other.errors)]}, {ranges}.")
    return said


def judge_pair(ours: KeptResult, other: KeptResult, *, level: bool) -> str:
    """Whether `ours` is ahead of `other`, or (level) no worse, as a sentence."""
    verdict = compare(ours.errors, other.errors)
    asked = ours.facts["asked"]
    ranges = (
        f"{ours.label} {shown_range(ours)} against {other.label} {shown_range(other)} {'squared error' if asked == 'number' else 'wrong'}"
    )
    if ours.updates != other.updates:
        return f"Cannot tell: the budgets differ ({ours.updates:,} and {other.updates:,} updates). Seen: {ranges}."
    if asked == "number" and num_solved(ours) == num_solved(other) == 0:
        return f"Cannot tell: neither learns the task here, {ranges}."
    if min(len(ours.errors), len(other.errors)) < 2:
        return f"Cannot tell: a single seed has no spread. Seen: {ranges}."
    if verdict == "cannot tell":
        if level:
            return f"Here the seeds' ranges overlap, {ranges}: nothing speaks against it."
        return f"Cannot tell: the seeds' ranges overlap, {ranges}."
    if verdict == "lower":
        return f"{'It is even ahead here' if level else 'It agrees'}: {ranges}, no overlap."
    return f"It disagrees: {ranges}, no overlap."
