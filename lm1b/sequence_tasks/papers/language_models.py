"""The language-model part of papers.md, from the file that tools/paper_results.py language-models writes.

The paper's table is on the 1 Billion Word benchmark, ours at half its widths on a news corpus: they stand apart, and only ratios within
each of them are compared. A ratio's range over the seeds is from the least of the one over the greatest of the other to the opposite.

1. Each budget has a table of its own. Where cells have several seeds, it gives median, least and greatest over them, and their spread.
2. One seed: how far apart two cells are, and whether that is near what the paper has or too far from it to be a seed's doing.
3. Several seeds: whether the paper's ratio lies within the range of ours, and whether their spread tells the paper's 1 % from its 3.5 %.
"""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from lm1b.errors import UserError
from lm1b.markdown import markdown_table
from lm1b.sequence_tasks.papers.published import LANGUAGE_MODELS, LE
from lm1b.sequence_tasks.papers.tables import link


class Cell(NamedTuple):
    """One of ours. beside: what it is compared with, as in the paper. other_scale: of the identity; the better one stands for both."""

    label: str
    beside: str | None = None
    other_scale: str | None = None


LSTM = "lstm_256"
CELLS = {
    LSTM: Cell("LSTM 256"),
    "irnn_4x256": Cell("IRNN 4 x 256, W = 0.5 I", beside=LSTM),
    "irnn_512": Cell("IRNN 1 x 512, projection 256, W = 0.5 I", beside=LSTM, other_scale="irnn_512_identity"),
    "irnn_512_identity": Cell("IRNN 1 x 512, projection 256, W = I"),
    "tanh_4x256": Cell("tanh RNN 4 x 256", beside="irnn_4x256"),
    "tanh_512": Cell("tanh RNN 1 x 512, projection 256", beside="irnn_512"),
    "np_rnn_512": Cell("np-RNN 1 x 512, projection 256"),
    "relu_512": Cell("ReLU RNN 1 x 512, projection 256, Gaussian"),
}
EPOCH_TOKENS = 13_470_528  # of news_mix's training text
TOLERANCE = 0.005  # half a percent: ratios nearer than that are called the same
LEVEL = 0.01  # the paper's IRNN is within 1 % of its LSTM
APART = 0.025  # from there to its tanh RNN, 3.5 % behind: what seeds must be able to tell


class Group(NamedTuple):
    """All runs of one budget. perplexities: cell -> text -> one a seed; rates: of the core; tokens: of a run.

    origins: commit, machine and precision of training -> the cells that were trained so.
    """

    title: str
    perplexities: dict[str, dict[str, list[float]]]
    rates: dict[str, float]
    tokens: int
    origins: dict[str, list[str]]


def read_groups(value: dict[str, Any]) -> list[Group]:
    """The runs by budget, the smallest first. Raises UserError for a file of another kind."""
    found: dict[float, Group] = {}
    try:
        for cell, facts in value["cells"].items():
            for run in facts.get("runs", {}).values():
                epochs, tokens = run["epochs"] or 0.0, run["last_metrics"]["words"]
                title = f"{run['epochs']:g} epoch{'s' if epochs != 1 else ''}" if epochs else f"{tokens / 1e6:.1f} million tokens"
                group = found.setdefault(epochs, Group(title, {}, {}, tokens, {}))
                group.rates[cell] = facts["learning_rate"]
                cells = group.origins.setdefault(_origin(run), [])
                if cell not in cells:
                    cells.append(cell)
                for line in run["scored"]:
                    text = line["split"] if line["split"] != "files" else line["files"][0]
                    group.perplexities.setdefault(cell, {}).setdefault(text, []).append(line["word_perplexity"] or math.inf)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"language_models.json: not what tools/paper_results.py language-models writes ({error!r})") from None
    return [found[epochs] for epochs in sorted(found)]


def _origin(run: dict[str, Any]) -> str:
    """Commit, machine and precision of a run's training, as far as it says them."""
    revision, given = str(run.get("revision") or "not recorded")[:12], "training.precision="
    precision = next((setting.removeprefix(given) for setting in run["settings"] if setting.startswith(given)), "a precision not recorded")
    return f"commit {revision}, in {precision}" + (f", on {run['machine']}" if run.get("machine") else "")


def _label(cell: str) -> str:
    return CELLS[cell].label if cell in CELLS else cell


def _range(values: list[float]) -> str:
    """Median, then least to greatest over the seeds."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _spread_of(values: list[float]) -> float | None:
    """(greatest - least) / median over the seeds, as a share; None where there is one seed, or one that is not finite."""
    return (max(values) - min(values)) / statistics.median(values) if len(values) > 1 and math.isfinite(max(values)) else None


def spread(groups: list[Group], text: str) -> float | None:
    """The largest spread over all cells that have one; None where none has."""
    spreads = [_spread_of(scores[text]) for group in groups for scores in group.perplexities.values() if text in scores]
    return max((value for value in spreads if value is not None), default=None)


def ratio_range(one: list[float], other: list[float]) -> tuple[float, float]:
    """Least and greatest share by which `one` is behind `other` over the seeds, negative where it is ahead. Finite perplexities."""
    return min(one) / max(other) - 1.0, max(one) / min(other) - 1.0


def _standing_for(cell: str, group: Group) -> str:
    """The cell itself, or its other scale where that is better on validation."""
    other = CELLS[cell].other_scale
    candidates = [name for name in (cell, other) if name in group.perplexities]
    return min(candidates, key=lambda name: statistics.median(group.perplexities[name].get("validation", [math.inf])), default=cell)


def judge_ratio(cell: str, other: str, group: Group, text: str, known_spread: float | None) -> str:
    """Whether `cell` is as far behind `other` as in the paper, in one sentence."""
    published = {row.ours: row for row in LANGUAGE_MODELS}
    claimed = published[cell].perplexity / published[other].perplexity - 1.0
    said = f"The paper has {published[cell].system} {100 * claimed:.1f} % behind {published[other].system}"
    one, two = _standing_for(cell, group), _standing_for(other, group)
    a, b = group.perplexities.get(one, {}).get(text), group.perplexities.get(two, {}).get(text)
    if not a or not b:
        return f"{said}. Cannot tell: {_label(one if not a else two)} was not run with this budget."
    wild = [name for name, values in ((one, a), (two, b)) if math.isinf(max(values))]
    if wild:
        return f"{said}. Cannot tell: {_label(wild[0])} has no finite perplexity with some seed."
    if min(len(a), len(b)) < 2:
        seen = statistics.median(a) / statistics.median(b) - 1.0
        # Two cells, each of which another seed may move by the spread.
        allowed = max(APART, 2 * (known_spread or 0.0))
        is_near = abs(seen - claimed) <= allowed
        found = f"within {100 * allowed:.1f} points of" if is_near else f"more than {100 * allowed:.1f} points from"
        place = f"{100 * abs(seen):.1f} % {'behind' if seen >= 0 else 'ahead of'} {_label(two)}"
        beside = "" if known_spread is None else f" (where several were run, they differ by up to {100 * known_spread:.1f} %)"
        # An allowance, not a test: a difference within it may well be another one with other seeds.
        return (
            f"{said}. Here {_label(one)} is {place}, {found} what the paper found. One seed{beside} cannot tell differences as small as "
            "the paper's."
        )
    least, greatest = ratio_range(a, b)
    seen = f"Here {100 * least:+.1f} to {100 * greatest:+.1f} % over the seeds, {_label(one)} against {_label(two)}"
    if least - TOLERANCE <= claimed <= greatest + TOLERANCE:
        if greatest - least > APART:
            return f"{said}. {seen}: cannot tell, the seeds' range is too wide to tell 1 % from 3.5 %."
        return f"{said}. {seen}: it agrees."
    side = "further behind" if least > claimed else "less far behind" if least > 0 else "level" if greatest > 0 else "ahead"
    return f"{said}. {seen}: it disagrees, here it is {side}."


def _best_irnn(group: Group, text: str) -> str | None:
    """Of IRNNs with several finite seeds on this text the one that is best on validation; None: there is none, or no such LSTM."""
    several = [cell for cell, scores in group.perplexities.items() if text in scores and _spread_of(scores[text]) is not None]
    irnns = [cell for cell in several if cell.startswith("irnn") and "validation" in group.perplexities[cell]]
    if LSTM not in several:
        return None
    return min(irnns, key=lambda cell: statistics.median(group.perplexities[cell]["validation"]), default=None)


def judge_spread(group: Group, text: str) -> str | None:
    """Whether the seeds tell 1 % from 3.5 %, and whether an IRNN is within 1 % of the LSTM, in one sentence; None: one seed each."""
    known = spread([group], text)
    if known is None:
        return None
    power = "little enough to tell" if 2 * known <= APART else "too much to tell"
    said = f"Seeds of one cell differ by up to {100 * known:.1f} %, {power} 1 % from 3.5 %"
    best = _best_irnn(group, text)
    if best is None:
        return f"{said}; whether an IRNN is within 1 % of the LSTM here cannot be told without several finite seeds of both."
    least, greatest = ratio_range(group.perplexities[best][text], group.perplexities[LSTM][text])
    if max(abs(least), abs(greatest)) <= LEVEL:
        verdict = "is within 1 % of the LSTM here"
    elif least > LEVEL or greatest < -LEVEL:
        verdict = "is not within 1 % of the LSTM here"
    else:
        verdict = "cannot be said to be within 1 % of the LSTM here or not"
    beside = [
        f"{100 * low:+.1f} to {100 * high:+.1f} % on {other}"
        for other in group.perplexities[best]
        if other not in ("validation", text) and _best_irnn(group, other) == best
        for low, high in [ratio_range(group.perplexities[best][other], group.perplexities[LSTM][other])]
    ]
    elsewhere = f"; {', '.join(beside)}" if beside else ""
    return f"{said}, and {_label(best)} {verdict}: {100 * least:+.1f} to {100 * greatest:+.1f} % over the seeds{elsewhere}."


def _our_table(group: Group) -> str:
    """A row a cell; where cells have several seeds, with their spread on `test`."""
    has_spread = spread([group], "test") is not None
    texts = sorted({text for cells in group.perplexities.values() for text in cells}, key=lambda text: (text.startswith("news"), text))
    texts = [text for text in ("validation", "test") if text in texts] + [text for text in texts if text not in ("validation", "test")]
    lstm = group.perplexities.get(LSTM, {}).get("test")
    rows = []
    for cell, scores in group.perplexities.items():
        test = scores.get("test")
        behind = f"{100 * (statistics.median(test) / statistics.median(lstm) - 1):+.1f} %" if test and lstm and cell != LSTM else ""
        seeds = str(max(len(values) for values in scores.values()))
        texts_shown = [_range(scores[text]) if text in scores else "" for text in texts]
        own = _spread_of(test) if test else None
        spread_shown = ([""] if own is None else [f"{100 * own:.1f} %"]) if has_spread else []
        rows.append([_label(cell), *texts_shown, behind, seeds, *spread_shown, f"{group.rates[cell]:g}"])
    spread_column = ["the seeds' spread on test"] if has_spread else []
    return markdown_table(["cell", *texts, "test, against the LSTM", "seeds", *spread_column, "core learning rate"], rows)


def render_language_models(value: dict[str, Any] | None, path: Path, out: Path) -> list[str]:
    """The section's parts. value: what `path` holds, None where there is no such file."""
    lstm = LANGUAGE_MODELS[0].perplexity
    rows = [
        [
            row.system,
            f"{row.perplexity} ({row.certainty})",
            f"{100 * (row.perplexity / lstm - 1):+.1f} %" if row.perplexity != lstm else "",
            "not run here: needs the 1 Billion Word benchmark, and time",
        ]
        for row in LANGUAGE_MODELS
    ]
    parts = [
        "## Language model",
        "### 1 Billion Word benchmark, test perplexity",
        f"{LE}, 60 hours on 32 replicas.",
        markdown_table(["the paper's system", "the paper's figure (test perplexity)", "against the LSTM", "ours"], rows),
        "### Stand-in data: news_mix, half the paper's widths",
    ]
    groups = read_groups(value) if value else []
    if value is None or not groups:
        return [*parts, "Not run here: needs time (`python tools/paper_results.py language-models --help`)."]
    parts.append(
        "**Not the paper's data set**: 13.5 million training tokens of news, 82,453 words; `test` is its own held-out file, "
        "`news.en.heldout-...` are files of the benchmark. 4,096 samples; exact perplexity in float32, state carried over 32 lanes, "
        "averaged weights. The core's rate, by Adam, is searched alike for all cells. Not alike: the IRNN of one layer was tried from two "
        "scales of the identity, the one of four layers from 0.5 I alone, where the paper's is I; the LSTM with forget bias 1 alone; the "
        "np-RNN has its own paper's input weights and a Glorot normal projection."
    )
    for group in groups:
        over_seeds = judge_spread(group, "test")
        shown = "" if over_seeds is None else " Median (least to greatest) over the seeds."
        parts += [f"Budget: {group.title} ({group.tokens:,} tokens, {group.tokens / EPOCH_TOKENS:.3g} of an epoch) a run.{shown}"]
        parts += [_our_table(group)]
        known = spread(groups, "test")
        sentences = [judge_ratio(cell, other, group, "test", known) for cell, (_, other, _) in CELLS.items() if other]
        said = [*([over_seeds] if over_seeds else []), *sentences]
        parts.append("On `test`:\n\n" + "\n".join(f"- {sentence}" for sentence in said))
    parts.append(
        f"Where the figures come from: {link(path, out)}: `{value.get('command')}`; config {value.get('config')}. Trained:\n\n"
        + "\n".join(
            f"- {group.title}, {', '.join(_label(cell) for cell in cells)}: {origin}"
            for group in groups
            for origin, cells in group.origins.items()
        )
    )
    return parts
