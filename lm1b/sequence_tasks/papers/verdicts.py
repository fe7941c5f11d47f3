"""What may be said of two cells, in one sentence each: they differ only where the ranges of their seeds do not overlap.

A seed that diverged counts as infinitely wrong. One seed has no range: then, whatever the difference, it cannot be told.
"""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Literal

from lm1b.sequence_tasks.papers.kept_result import CELL_NAMES, KeptResult
from lm1b.sequence_tasks.papers.published import Claim, Row

SOLVED_SHARE = 0.06  # of a constant answer's squared error: 0.01 on adding
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
    """An error for people, or (accuracy) the share of right answers that belongs to it."""
    return shown(1.0 - error if accuracy and math.isfinite(error) else error, asked)


def compare(one: list[float], other: list[float]) -> Verdict:
    """Which errors are lower, where the ranges do not overlap. one, other: ascending, one a seed, infinite where it diverged."""
    if len(one) < 2 or len(other) < 2:
        return "cannot tell"
    if one[-1] < other[0]:
        return "lower"
    return "higher" if one[0] > other[-1] else "cannot tell"


def num_solved(result: KeptResult) -> int:
    """Seeds whose squared error on test is below SOLVED_SHARE of a constant answer's."""
    return sum(error < SOLVED_SHARE * result.facts["baseline_loss"] for error in result.errors)


def _is_solved(result: KeptResult) -> bool:
    """Whether what is asked for is a number, and every seed solves the task."""
    return result.facts["asked"] == "number" and num_solved(result) == len(result.errors)


def rates_that_solved(result: KeptResult) -> list[float]:
    """Learning rates with which the search's own run solved the task on dev, in the whole budget or less of it."""
    limit, found = SOLVED_SHARE * result.facts["baseline_loss"], set()
    for rung in result.rungs:
        outcomes = zip(rung["learning_rates"], rung["dev_error"], rung["diverged"], strict=True)
        found |= {rate for rate, error, diverged in outcomes if not diverged and error is not None and error < limit}
    return sorted(found)


def best_of_cell(results: list[KeptResult], cell: str) -> KeptResult | None:
    """The plain result of a cell; where there are several (scales of the identity), the one with the lowest median error on dev."""
    plain = [result for result in results if result.cell == cell and result.is_plain]
    return min(plain, key=lambda result: statistics.median(result.dev_errors), default=None)


def judge(claim: Claim, results: list[KeptResult]) -> str:
    """Whether our results agree with a claim, in one sentence that says agrees, disagrees or cannot tell.

    A second one names a cell that was tried from several initialisations, each with a search of its own, of which the best on dev is laid
    beside the others.
    """
    cells = dict.fromkeys(cell for cell in (claim.cell, claim.other) if cell)
    tries = {cell: sum(result.cell == cell and result.is_plain for result in results) for cell in cells}
    several = "".join(
        f" The {CELL_NAMES[cell]} here is the one of {count} initialisations that was best on dev."
        for cell, count in tries.items()
        if count > 1
    )
    return _judge(claim, results) + several


def _judge(claim: Claim, results: list[KeptResult]) -> str:
    ours = best_of_cell(results, claim.cell)
    name = CELL_NAMES[claim.cell]
    if claim.kind in ("solves", "fails"):
        claimed = f"{claim.whose} {name} {'converges' if claim.kind == 'solves' else 'fails'}"
        if ours is None:
            return f"{claimed}. Cannot tell: not run here."
        return f"{claimed}{_judge_solving(ours, fails=claim.kind == 'fails')}."
    other = best_of_cell(results, claim.other)
    relation = "is ahead of the" if claim.kind == "ahead" else "does as well as the"
    claimed = f"{claim.whose} {name} {relation} {CELL_NAMES[claim.other]}"
    if ours is None or other is None:
        return f"{claimed}. Cannot tell: the {name if ours is None else CELL_NAMES[claim.other]} was not run here."
    return f"{claimed}. {judge_pair(ours, other, level=claim.kind == 'level')}"


def _judge_solving(ours: KeptResult, *, fails: bool) -> str:
    """The rest of a sentence: how many seeds solve the task, and whether that is the claim that they do, or (fails) that they do not."""
    solved, total = num_solved(ours), len(ours.errors)
    if total < 2:
        return f". Cannot tell from one seed, which {'solves it' if solved else 'does not'}"
    found = f"; here {solved} of {total} seeds get below {SOLVED_SHARE * ours.facts['baseline_loss']:.2g}"
    share = "all" if solved == total else "none" if solved == 0 else "some"
    if not fails:
        return f"{found}: {({'all': 'it agrees', 'some': 'it agrees in part', 'none': 'it disagrees'})[share]}"
    by_search = rates_that_solved(ours)
    if share == "none" and by_search:
        rates = " and ".join(f"{rate:g}" for rate in by_search)
        return f"{found}, while a run of the search did with learning rate {rates}: it agrees in part"
    return f"{found}: {({'all': 'it disagrees', 'some': 'it agrees in part', 'none': 'it agrees'})[share]}"


def judge_figure(row: Row, results: list[KeptResult]) -> str | None:
    """How far our figure is from the paper's, where both are known and on the same data."""
    ours = best_of_cell(results, row.cell)
    if ours is None or row.test_error is None:
        return None
    errors, asked = ours.errors, ours.facts["asked"]
    theirs = f"{CELL_NAMES[row.cell]}: the paper has {row.figure} ({row.certainty})"
    middle = statistics.median(errors)
    if math.isinf(middle):
        return f"{theirs}; at least half of our seeds diverged: it disagrees."
    finite = [error for error in errors if math.isfinite(error)]
    if finite[0] <= row.test_error <= finite[-1]:
        verdict = "it agrees" if finite == errors else f"it agrees in part, for {len(errors) - len(finite)} of {len(errors)} diverged"
        return f"{theirs}; that lies within our seeds' range ({shown_range(ours)} wrong): {verdict}."
    distance = shown(abs(middle - row.test_error), asked).replace("%", "points")
    seen = f"{theirs}; ours gives {distance} {'more' if middle > row.test_error else 'fewer'} wrong answers after {ours.epochs:.3g} epochs"
    if len(errors) < 2:
        return f"{seen}, of one seed: it does not agree to the point, and whether another seed or more epochs would, it cannot tell."
    return f"{seen}: it disagrees."


def judge_variants(results: list[KeptResult]) -> list[str]:
    """Of a cell's plain results that began otherwise (scale of the identity, input weights), which is ahead: a sentence a pair."""
    said = []
    for cell in CELL_NAMES:
        variants = sorted((result for result in results if result.cell == cell and result.is_plain), key=lambda one: one.label)
        for one, other in itertools.combinations(variants, 2):
            found = {
                "lower": f"the {one.label} is ahead",
                "higher": f"the {other.label} is ahead",
                "cannot tell": "cannot tell which is ahead, since the seeds' ranges overlap or there is one seed only",
            }[compare(one.errors, other.errors)]
            said.append(f"{one.label} against {other.label}: {found}, {shown_range(one)} against {shown_range(other)}.")
    return said


def judge_pair(ours: KeptResult, other: KeptResult, *, level: bool) -> str:
    """Whether `ours` is ahead of `other`, or (level) no worse, as a sentence."""
    verdict = compare(ours.errors, other.errors)
    asked, is_accuracy = ours.facts["asked"], ours.is_accuracy
    unit = "squared error" if asked == "number" else "correct" if is_accuracy else "wrong"
    ranges = (
        f"{ours.label} {shown_range(ours, accuracy=is_accuracy)} against {other.label} {shown_range(other, accuracy=is_accuracy)} {unit}"
    )
    if ours.updates != other.updates:
        return f"Cannot tell: the budgets differ ({ours.updates:,} and {other.updates:,} updates). Seen: {ranges}."
    if asked == "number" and num_solved(ours) == num_solved(other) == 0:
        return f"Cannot tell: neither learns the task here, {ranges}."
    if level and len(ours.errors) > 1 and _is_solved(ours) and _is_solved(other):
        left = {"lower": ours, "higher": other}.get(verdict)
        beside = f"less error is left to the {left.label} after {ours.updates:,} updates" if left else "the seeds' ranges overlap"
        return f"It agrees, both solve the task with every seed; {beside}: {ranges}."
    if min(len(ours.errors), len(other.errors)) < 2:
        return f"Cannot tell: a single seed has no spread. Seen: {ranges}."
    if verdict == "cannot tell":
        if level:
            return f"Here the seeds' ranges overlap, {ranges}: nothing speaks against it."
        return f"Cannot tell: the seeds' ranges overlap, {ranges}."
    if verdict == "lower":
        return f"{'It is even ahead here' if level else 'It agrees'}: {ranges}, no overlap."
    return f"It disagrees: {ranges}, no overlap."


def guard_sentence(guarded: KeptResult, beside: list[KeptResult]) -> str:
    """What a guard does beside the plain result of the same cell and settings: seeds that diverged, and the error of the others."""
    plain = next((one for one in beside if one.is_bare and one.cell == guarded.cell), None)
    name = f"{guarded.facts['name']}, {guarded.label}"
    if plain is None:
        return f"{name}: no run without the guard to lay beside it."
    counts = [f"{sum(math.isinf(error) for error in one.errors)} of {len(one.errors)}" for one in (guarded, plain)]
    finite = [[error for error in one.errors if math.isfinite(error)] for one in (guarded, plain)]
    verdict = {
        "lower": "the seeds that did not diverge do better with it, no overlap",
        "higher": "the seeds that did not diverge do worse with it, no overlap",
        "cannot tell": "the errors of the seeds that did not diverge cannot be told apart",
    }[compare(*finite)]
    return f"{name}: {counts[0]} seeds diverge, {counts[1]} without it, too few to tell a chance; {verdict}."
