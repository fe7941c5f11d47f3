"""The report's details of each run's newest scores: where the nats go, how sure the perplexity is, whether two runs differ."""

from __future__ import annotations

import itertools

from lm1b.evaluation.report.breakdown import Interval, Part, by_frequency, by_position, compare, confidence
from lm1b.evaluation.report.records import RunRecord
from lm1b.evaluation.scoring.token_nats import TokenNats, read_token_nats
from lm1b.markdown import literal, markdown_table
from lm1b.training.evaluations import Evaluation

EXPLAINED = (
    "Intervals hold 95 %, by the bootstrap over the text's sentences: how far this text lets one tell, not what another seed would give. "
    "Bands are of training counts: words 1 to 10 are the ten commonest."
)


def kept_nats(run: RunRecord) -> list[tuple[Evaluation, TokenNats]]:
    """Results whose nats of every token are still there. Raises UserError for a damaged file."""
    latest = {(each.split, tuple(each.files), each.state, each.weights, each.precision): each for each in run.evaluations}
    found = ((each, read_token_nats(run.folder, each)) for each in latest.values())
    return [(each, tokens) for each, tokens in found if tokens is not None]


def _text(each: Evaluation) -> str:
    return f"{literal(each.text_name)}, {each.state}, {each.weights}, {each.precision}"


def _shown(interval: Interval, digits: int) -> str:
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _compared(kept: list[tuple[RunRecord, Evaluation, TokenNats]]) -> list[str]:
    """Every pair of runs on the same text, scored alike."""
    rows = []
    for (one, of_one, tokens), (other, of_other, other_tokens) in itertools.combinations(kept, 2):
        scored = [(each.state, each.precision, each.weights) for each in (of_one, of_other)]
        same_way = scored[0] == scored[1] and one.folder.path != other.folder.path
        if same_way and tokens.text_key == other_tokens.text_key:
            ratio = compare(tokens, other_tokens)
            verdict = (
                "cannot tell" if ratio.low <= 1.0 <= ratio.high else f"{literal((other if ratio.value < 1.0 else one).name)} is better"
            )
            rows.append([literal(one.name), literal(other.name), _text(of_one), _shown(ratio, 4), verdict])
    if not rows:
        return []
    return ["### Two runs on one text", markdown_table(["run", "other run", "text", "perplexity, other / run", "on this text"], rows)]


def _bands(name: str, parts: list[Part]) -> str:
    rows = [[part.name, f"{part.predictions:,}", f"{part.share_of_nats:.1%}", f"{part.perplexity:,.1f}"] for part in parts]
    return markdown_table([name, "predictions", "of all nats", "perplexity"], rows, left=[0])


def render_details(runs: list[RunRecord]) -> list[str]:
    """Parts of the report's Markdown; none where no nats were kept."""
    kept = [(run, each, tokens) for run in runs for each, tokens in kept_nats(run)]
    if not kept:
        return []
    rows = [[literal(run.name), str(each.step), _text(each), _shown(confidence(tokens), 2)] for run, each, tokens in kept]
    parts = ["## Where the nats go", EXPLAINED, markdown_table(["run", "step", "text", "perplexity"], rows), *_compared(kept)]
    for run, each, tokens in kept:
        parts.append(f"### {literal(run.name)}, step {each.step}, {_text(each)}")
        parts += [_bands("band", by_frequency(tokens)), _bands("place in the sentence", by_position(tokens))]
    return parts
