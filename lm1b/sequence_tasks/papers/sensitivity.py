"""How sensitive a cell is to its learning rate: a table and sentences from the search's first rung, where every rate was tried by one seed.

Talathi's claim is that the np-RNN is not, where the IRNN is very much so.
"""

from __future__ import annotations

from lm1b.markdown import markdown_table
from lm1b.sequence_tasks.papers.kept_result import KeptResult, Rung

LEARNED_SHARE = 0.9  # of a constant answer's loss on dev


def first_rung(result: KeptResult) -> Rung:
    """The search's first rung, where every rate was tried, by one seed."""
    return result.rungs[0]


def num_learned(result: KeptResult) -> int:
    """Rates with which, at the first share of the budget, the loss on dev is below LEARNED_SHARE of a constant answer's."""
    rung, limit = first_rung(result), LEARNED_SHARE * result.facts["baseline_loss"]
    return sum(
        not diverged and loss is not None and loss < limit for loss, diverged in zip(rung["dev_loss"], rung["diverged"], strict=True)
    )


def num_diverged(result: KeptResult) -> int:
    """Rates with which it had diverged by then, as the runs themselves ended: see SequenceRun.has_diverged."""
    return sum(first_rung(result)["diverged"])


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


def rate_table(results: list[KeptResult]) -> str:
    """How many rates a cell learned with, and diverged with, where all were tried: a row a task and cell."""
    rows = []
    for result in sorted(results, key=lambda one: (one.title, one.label)):
        rates = first_rung(result)["learning_rates"]
        span = f"{min(rates):g} to {max(rates):g}"
        counts = [f"{count} of {len(rates)}" for count in (num_learned(result), num_diverged(result))]
        chosen = f"{result.learning_rate:g}"
        rows.append([result.title, result.label, span, f"{first_rung(result)['updates']:,}", *counts, chosen])
    columns = [
        "task",
        "cell",
        "rates tried",
        "updates each",
        "learned (loss below 90 % of a constant answer's)",
        "diverged (loss above twice a constant answer's, or not finite)",
        "chosen in the end",
    ]
    return markdown_table(columns, rows)
