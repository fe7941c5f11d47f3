"""What may be said of two cells, in one sentence each: they differ only where the ranges of their seeds do not overlap.

A seed that diverged counts as infinitely wrong. One seed has no range: then, whatever the difference, it cannot be told.

How sensitive a cell is to its learning rate is judged by the search's first rung, where every rate was tried with one seed. Talathi's claim
is that the np-RNN is not, where the IRNN is very much so.
"""

from __future__ import annotations

import math
import statistics
from typing import Any, Literal

from lm1b.sequence_tasks.experiment.trainer import DIVERGED_LOSS
from lm1b.sequence_tasks.papers.kept import CELL_NAMES, KeptResult
from lm1b.sequence_tasks.papers.published import Claim, Row

LEARNED_SHARE = 0.9  # of a constant answer's loss on dev
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


def rates_that_solved(result: KeptResult) -> list[float]:
    """Learning rates with which the search's own run solved the task on dev, in the whole budget or less of it."""
    limit, found = SOLVED_SHARE * result.facts["baseline_loss"], set()
    for rung in result.value["search"]:
        outcomes = zip(rung["learning_rates"], rung["dev_error"], rung["diverged"], strict=True)
        found |= {rate for rate, error, diverged in outcomes if not diverged and error is not None and error < limit}
    return sorted(found)


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
    if ours is None or row.share is None:
        return None
    errors, asked = ours.errors, ours.facts["asked"]
    theirs = f"{CELL_NAMES[row.cell]}: the paper has {row.figure} ({row.certainty})"
    if errors[0] <= row.share <= errors[-1]:
        return f"{theirs}; that lies within our seeds' range ({shown_range(ours)} wrong): it agrees."
    middle = statistics.median(errors)
    if math.isinf(middle):
        return f"{theirs}; more than half of our seeds diverged: it disagrees."
    distance = shown(abs(middle - row.share), asked).replace("%", "points")
    seen = f"{theirs}; ours gives {distance} {'more' if middle > row.share else 'fewer'} wrong answers after {ours.epochs:.3g} epochs"
    if len(errors) < 2:
        return f"{seen}, of one seed: it does not agree to the point, and whether another seed or more epochs would, it cannot tell."
    return f"{seen}: it disagrees."


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
    asked, is_accuracy = ours.facts["asked"], ours.is_accuracy
    unit = "squared error" if asked == "number" else "correct" if is_accuracy else "wrong"
    ranges = (
        f"{ours.label} {shown_range(ours, accuracy=is_accuracy)} against {other.label} {shown_range(other, accuracy=is_accuracy)} {unit}"
    )
    if ours.updates != other.updates:
        return f"Cannot tell: the budgets differ ({ours.updates:,} and {other.updates:,} updates). Seen: {ranges}."
    if asked == "number" and num_solved(ours) == num_solved(other) == 0:
        return f"Cannot tell: neither learns the task here, {ranges}."
    if (
        level
        and asked == "number"
        and (num_solved(ours), num_solved(other)) == (len(ours.errors), len(other.errors))
        and len(ours.errors) > 1
    ):
        left = {"lower": ours.label, "higher": other.label}.get(verdict)
        beside = (
            "the seeds' ranges overlap" if left is None else f"less error is left to the {left} after {ours.updates:,} updates, no overlap"
        )
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
    plain = next((one for one in beside if one.is_plain and one.cell == guarded.cell and one.model["identity_scale"] in (1.0, None)), None)
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


def first_rung(result: KeptResult) -> dict[str, Any]:
    """The search's first rung, where every rate was tried, by one seed."""
    return result.value["search"][0]


def num_learned(result: KeptResult) -> int:
    """Rates with which, at the first share of the budget, the loss on dev is below LEARNED_SHARE of a constant answer's."""
    rung, limit = first_rung(result), LEARNED_SHARE * result.facts["baseline_loss"]
    return sum(
        not diverged and loss is not None and loss < limit for loss, diverged in zip(rung["dev_loss"], rung["diverged"], strict=True)
    )


def num_diverged(result: KeptResult) -> int:
    """Rates with which it had diverged by then: given up, or twice a constant answer's loss and more."""
    rung, limit = first_rung(result), DIVERGED_LOSS * result.facts["baseline_loss"]
    return sum(diverged or loss is None or loss > limit for loss, diverged in zip(rung["dev_loss"], rung["diverged"], strict=True))


def rate_sentences(results: list[KeptResult]) -> list[str]:
    """For every task with both cells, whether the np-RNN is the less sensitive one."""
    said = []
    for name in sorted({result.title for result in results}):
        cells = {}
        for cell in ("np_rnn", "irnn"):
            found = [result for result in results if result.title == name and result.cell == cell]
            if found:
                cells[cell] = max(found, key=num_learned)
        if len(cells) < 2:
            continue
        new, old = cells["np_rnn"], cells["irnn"]
        total = len(first_rung(new)["learning_rates"])
        counts = (
            f"the np-RNN learns with {num_learned(new)} of {total} rates and diverges with {num_diverged(new)}, "
            f"the {old.label} learns with {num_learned(old)} and diverges with {num_diverged(old)}"
        )
        plain = next((result for result in results if result.title == name and result.cell == "relu_rnn"), None)
        beside = (
            ""
            if plain is None
            else f" A ReLU RNN with a Gaussian matrix learns with {num_learned(plain)} and diverges with {num_diverged(plain)}."
        )
        said.append(f"{name}: {counts}. {_judge_rates(new, old)}{beside}")
    return said or ["Cannot tell whether the np-RNN is less sensitive than the IRNN: no task was searched with both."]


def _judge_rates(new: KeptResult, old: KeptResult) -> str:
    """One seed a rate: said only where learning and diverging point the same way."""
    learned, diverged = num_learned(new) - num_learned(old), num_diverged(new) - num_diverged(old)
    if num_learned(new) == num_learned(old) == 0:
        stable = " It is the more stable of the two, of which neither has learned anything yet." if diverged < 0 else ""
        return f"Cannot tell: neither learns with any rate in so few updates.{stable}"
    if num_learned(new) == 0:
        return "It disagrees: the np-RNN learns with no rate at all, so that it is insensitive says nothing."
    if learned >= 1 and diverged <= 0:
        return "It agrees in part with the paper's claim that the np-RNN is the less sensitive one: one seed a rate tells no more."
    if learned <= -1 and diverged >= 0:
        return "It speaks against the paper's claim that the np-RNN is the less sensitive one: one seed a rate tells no more."
    return "Cannot tell which is the less sensitive one."
