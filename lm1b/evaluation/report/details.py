"""The report's details of what each run scored last: where the nats go, how sure the perplexity is, whether two runs differ."""

from __future__ import annotations

import itertools
from pathlib import Path

from lm1b.evaluation.report.breakdown import Interval, Part, by_frequency, by_position, compare, confidence
from lm1b.evaluation.report.records import RunRecord
from lm1b.evaluation.scoring.token_nats import TokenNats, path_of, read_token_nats
from lm1b.markdown import literal, markdown_table
from lm1b.training.evaluations import Evaluation

EXPLAINED = (
    "Intervals hold 95 %, by the bootstrap over the text's sentences: how far this text lets one tell, not what another seed would give. "
    "Bands are of the vocabulary's entries, the commonest in training first; `</S>` and `<UNK>` are among them, with lines of their own."
)


def kept_nats(run: RunRecord) -> list[tuple[Evaluation, TokenNats]]:
    """Results whose nats of every token are still there: of each text and way of scoring the one that was scored last.

    Raises UserError for a damaged file.
    """
    paths = {path_of(run.folder, evaluation) for evaluation in run.evaluations}
    files = {path: read_token_nats(path) for path in paths if path.exists()}
    found: dict[Path, tuple[Evaluation, TokenNats]] = {}
    for evaluation in run.evaluations:
        path = path_of(run.folder, evaluation)
        if path in files and files[path].are_of(evaluation):
            found[path] = evaluation, files[path]
    return list(found.values())


def _scored(evaluation: Evaluation) -> str:
    return f"{literal(evaluation.text_name)}, {evaluation.state_in_words}, {evaluation.weights}, {evaluation.precision}"


def _shown(interval: Interval, digits: int) -> str:
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def _compared(kept: list[tuple[RunRecord, Evaluation, TokenNats]]) -> list[str]:
    """Every pair of runs on the same text, scored alike."""
    rows = []
    for (one, of_one, tokens), (other, of_other, other_tokens) in itertools.combinations(kept, 2):
        same_way = (of_one.protocol, of_one.weights) == (of_other.protocol, of_other.weights) and one.folder.path != other.folder.path
        if same_way and tokens.ids_key == other_tokens.ids_key:
            ratio = compare(tokens, other_tokens)
            verdict = (
                "cannot tell" if ratio.low <= 1.0 <= ratio.high else f"{literal((other if ratio.value < 1.0 else one).name)} is better"
            )
            rows.append([literal(one.name), literal(other.name), _scored(of_one), _shown(ratio, 4), verdict])
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
    rows = [[literal(run.name), str(each.step), _scored(each), _shown(confidence(tokens), 2)] for run, each, tokens in kept]
    parts = ["## Where the nats go", EXPLAINED, markdown_table(["run", "step", "text", "perplexity"], rows), *_compared(kept)]
    for run, each, tokens in kept:
        parts.append(f"### {literal(run.name)}, step {each.step}, {_scored(each)}")
        parts += [_bands("band", by_frequency(tokens)), _bands("place in the sentence", by_position(tokens))]
    return parts
