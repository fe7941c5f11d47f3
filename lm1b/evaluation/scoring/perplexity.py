"""Exact perplexity: full softmax over the whole vocabulary, sums of nats in float64, divided once.

1. A checkpoint is opened (trained/open.py) and read: of the input table only the rows of the text's own words.
2. The scorer (scorer.py) runs the text's sequences through it.
3. Every position's -log P(target) is added up in float64: word_perplexity = exp(nats / (words + sentences)).

Worked example: two sentences of 3 and 1 words give 6 predictions (the `</S>` of each is predicted); 30 nats in all are a
word perplexity of exp(30 / 6) = 148.4. Where words are spelled by pieces the nats are those of all pieces, and are divided by 6 all the
same.

Letters: N tokens of the text, T of a sequence of it, U distinct words of the text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from lm1b.config import EvaluationConfig
from lm1b.console import now
from lm1b.distributed import Ranks, agree, single_process
from lm1b.evaluation.scoring.spectrum import spectral_radii
from lm1b.evaluation.scoring.texts import ScoredText, cut_for_scoring
from lm1b.evaluation.trained.open import OpenedCheckpoint, open_checkpoint
from lm1b.evaluation.trained.scorer import Rows, Scorer
from lm1b.precision import DTYPES
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.evaluations import KINDS, Evaluation, Weights, perplexity


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    settings: EvaluationConfig,
    text: ScoredText,
    *,
    ranks: Ranks | None = None,
    on_scored: Callable[[int, int], object] = lambda n, total: None,
    on_nats: Callable[[Evaluation, list[np.ndarray]], object] | None = None,
) -> list[Evaluation]:
    """Score `text` with one checkpoint: one result a kind of weights asked for. A collective.

    on_scored is told of every number of tokens done, and of how many there are in all, each kind of weights anew; on_nats of each result
    and the nats of every token, sequence by sequence.
    Raises UserError where the checkpoint has gone, is damaged, or belongs to another vocabulary.
    """
    ranks = ranks or single_process()
    started_at = time.monotonic()
    opened = _open(checkpoint, settings, text, ranks)
    sequences = cut_for_scoring(text, settings.state, settings.lanes)
    loading_seconds = time.monotonic() - started_at
    kinds, results = opened.kinds(settings), []

    def scored(n: int) -> None:
        on_scored(n, len(kinds) * len(text.tokens_N))

    for kind in kinds:
        started_at = time.monotonic()
        opened.scorer.model.load_state_dict(opened.cores[kind])
        if on_nats is None:
            nats_of_each, nats = [], opened.scorer.nats(sequences, settings.lanes, scored)
        else:
            found = dict(opened.scorer.nats_of_each(sequences, settings.lanes, scored))
            nats_of_each = [found[number] for number in range(len(sequences))]
            nats = float(sum(nats_T.sum() for nats_T in nats_of_each))
        result = _result(opened, settings, text, kind, nats)
        results.append(replace(result, seconds=round(loading_seconds + time.monotonic() - started_at, 3), finished_at=now()))
        if on_nats is not None:
            on_nats(results[-1], nats_of_each)
    return results


@dataclass(frozen=True)
class _Opened:
    """What has been read of a checkpoint: float32 cores by kind of weights, and a scorer with the rows of the text's words."""

    trained: OpenedCheckpoint
    cores: dict[Weights, dict[str, Tensor]]
    scorer: Scorer

    def kinds(self, settings: EvaluationConfig) -> list[Weights]:
        """Kinds of weights to score, each once; `ema` falls back to `raw` where training kept no average."""
        return list(dict.fromkeys(kind if kind in self.cores else "raw" for kind in KINDS[settings.weights]))


def _open(checkpoint: Checkpoint, settings: EvaluationConfig, text: ScoredText, ranks: Ranks) -> _Opened:
    """Read the checkpoint, of the input table only the rows of the text's words; a failure of any rank is an error on all."""
    ids_U = text.distinct_ids()

    def read() -> tuple[OpenedCheckpoint, Rows, dict[Weights, dict[str, Tensor]]]:
        with open_checkpoint(checkpoint, text.fingerprint, ranks) as trained:
            return trained, trained.rows(ids_U), trained.cores()

    trained, rows, cores = agree(ranks, read, may_take_long=True)
    scorer = Scorer.of(
        trained.architecture.core(),
        rows,
        end_id=text.end_id,
        dtype=DTYPES[settings.precision],
        ranks=ranks,
        vocabulary_block=settings.vocabulary_block,
    )
    return _Opened(trained, cores, scorer)


def _result(opened: _Opened, settings: EvaluationConfig, text: ScoredText, kind: Weights, nats: float) -> Evaluation:
    """All of a result but the time that it took, which is known once it is there."""
    trained, core = opened.trained, opened.cores[kind]
    return Evaluation(
        step=trained.checkpoint.step,
        checkpoint=trained.checkpoint.path.name,
        split=text.split,
        files=text.files,
        state=settings.state,
        lanes=settings.lanes if settings.state == "carry" else None,
        precision=settings.precision,
        weights=kind,
        has_average="ema" in opened.cores,
        nats=_finite(nats),
        predictions=text.predictions,
        tokens=len(text.tokens_N),
        words=text.words,
        sentences=text.sentences,
        unknown=text.unknown,
        word_perplexity=_finite(perplexity(nats, text.predictions)),
        label=text.label,
        official=text.official,
        is_test=text.is_test,
        trained_on_official=trained.state.get("corpus", {}).get("official", False),
        vocabulary=text.fingerprint,
        vocabulary_size=trained.architecture.vocabulary_size,
        epoch=trained.state.get("epoch"),
        spectral_radius=spectral_radii(core, trained.architecture.model),
        seconds=0.0,
        finished_at="",
    )


def _finite(value: float) -> float | None:
    """As a line keeps it: None where the model is so wrong (or not finite) that no number says it."""
    return value if math.isfinite(value) else None
