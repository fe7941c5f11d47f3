"""N-gram baselines on the texts that a run was scored on, counted on its own token directory and kept in report/baselines.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.remote import open_tokens
from lm1b.errors import UserError, in_words
from lm1b.evaluation.report.ngram import fit_baselines
from lm1b.evaluation.report.records import RunRecord
from lm1b.evaluation.scoring.texts import ScoredText, text_of_files, text_of_split
from lm1b.files import read_json, write_json
from lm1b.training.evaluations import Evaluation, perplexity

Baselines = dict[str, dict[str, Any]]


def find_baselines(run: RunRecord, cache: Path) -> tuple[Baselines, list[str]]:
    """Baselines of every text that the run was scored on, by `text_key`, and what could not be computed.

    Counted on the run's training tokens at the first call and kept in `cache`; the token directory may be gone later.
    """
    known: Baselines = read_json(cache) if cache.exists() else {}
    missing = {each.text_key: each for each in run.evaluations if each.text_key not in known}
    if not missing:
        return known, []
    try:
        tokens = open_tokens(run.config.tokens)
    except (UserError, OSError) as error:
        return known, [f"{run.name}: no baselines, since its token directory cannot be read ({in_words(error)})"]
    notes, texts = [], {}
    for key, evaluation in missing.items():
        try:
            texts[key] = _text_of(tokens, evaluation)
        except (UserError, OSError) as error:
            notes.append(f"{run.name}: no baselines on {evaluation.split} {' '.join(evaluation.files)} ({in_words(error)})")
    try:
        counted = _count_baselines(tokens, texts) if texts else {}
    except (UserError, OSError) as error:
        return known, [*notes, f"{run.name}: no baselines, since its training tokens cannot be read ({in_words(error)})"]
    if counted:
        known |= counted
        write_json(cache, known)
    return known, notes


def _text_of(tokens: TokenDirectory, evaluation: Evaluation) -> ScoredText:
    """The text that a result is on. Raises UserError where it is not the same any more."""
    if evaluation.vocabulary != tokens.fingerprint:
        raise UserError("the token directory has another vocabulary now")
    if evaluation.split == "files":
        text = text_of_files(tokens.vocabulary, [Path(file) for file in evaluation.files])
    else:
        text = text_of_split(tokens, evaluation.split)
    if (text.predictions, text.unknown) != (evaluation.predictions, evaluation.unknown):
        raise UserError("the text has changed since")
    return text


def _count_baselines(tokens: TokenDirectory, texts: dict[str, ScoredText]) -> Baselines:
    train = tokens.split("train")
    unigram, trigram = fit_baselines(
        lambda: (train.tokens(i)[:] for i in range(len(train.shards))), train.num_tokens, tokens.vocabulary.size, tokens.vocabulary.end_id
    )
    return {
        key: {
            "unigram": perplexity(unigram.nats(text.tokens_N).sum(), text.predictions),
            "trigram": None if trigram is None else perplexity(trigram.nats(text.tokens_N).sum(), text.predictions),
            "training_tokens": train.num_tokens,
        }
        for key, text in texts.items()
    }


def levels_of(run: RunRecord, baselines: Baselines) -> list[tuple[str, float]]:
    """The trigram's perplexity on validation, to draw beside the run's: what it is of, and the figure. Once a text and vocabulary."""
    on_validation = {each.text_key: each.predictions_in_words for each in run.evaluations if each.split == "validation"}
    found = ((text, baselines.get(key, {}).get("trigram")) for key, text in on_validation.items())
    return [(f"Kneser-Ney trigram, {text}", perplexity) for text, perplexity in found if perplexity is not None]
