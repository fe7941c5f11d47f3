"""Exact perplexity: full softmax over the whole vocabulary, sums of nats in float64, divided once.

1. A checkpoint is leased, verified and read: of the input table only the rows of the text's own words.
2. The scorer (scorer.py) runs the text's sequences through it.
3. Every position's -log P(target) is added up in float64: word_perplexity = exp(nats / (words + sentences)).

Worked example: two sentences of 3 and 1 words give 6 predictions (the `</S>` of each is predicted); 30 nats in all are a
word perplexity of exp(30 / 6) = 148.4. Where words are spelled by pieces the nats are those of all pieces, and are divided by 6 all the
same.

Letters: D embedding, P output width, V vocabulary, U distinct words of the text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm1b.config import Config
from lm1b.console import now
from lm1b.distributed import Ranks, agree, all_reduce_sum, single_process
from lm1b.errors import UserError
from lm1b.evaluation.scorer import Scorer, cut_for_scoring
from lm1b.evaluation.shape import Shape, output_layer, shape_of
from lm1b.evaluation.spectrum import spectral_radii
from lm1b.evaluation.texts import ScoredText
from lm1b.training.checkpoint import Checkpoint
from lm1b.training.evaluations import KINDS, Evaluation, Weights


@dataclass(frozen=True)
class _Reading:
    """What one rank reads of a checkpoint: its rows (float32; input rows only where it holds them, else 0) and the whole core.

    output_rows_VP, output_bias_V: None where the softmax has none.
    """

    state: dict[str, Any]
    shape: Shape
    input_rows_UD: Tensor
    output_rows_VP: Tensor | None
    output_bias_V: Tensor | None
    cores: dict[Weights, dict[str, Tensor]]


def _read(checkpoint: Checkpoint, fingerprint: str, ids_U: Tensor, ranks: Ranks) -> _Reading:
    """Read the checkpoint while it is leased; of the input table only the rows `ids_U` are kept. No collective. Raises UserError."""
    try:
        return _read_leased(checkpoint, fingerprint, ids_U, ranks)
    except FileNotFoundError:
        # Retention had looked for leases just before this one was there.
        raise UserError(f"{checkpoint.path}: the checkpoint has been deleted meanwhile") from None


def _read_leased(checkpoint: Checkpoint, fingerprint: str, ids_U: Tensor, ranks: Ranks) -> _Reading:
    with checkpoint.lease():
        state = checkpoint.state()
        if state["vocabulary"] != fingerprint:
            raise UserError(
                f"{checkpoint.path}: trained with vocabulary {state['vocabulary'][:12]}, found {fingerprint[:12]} in tokens.directory; "
                "evaluate with the token directory that it was trained on"
            )
        checkpoint.verify(ranks.rank, ranks.size)
        mine_U = ids_U % ranks.size == ranks.rank
        table = checkpoint.read_table("input_table", ranks.rank, ranks.size)
        input_rows_UD = torch.zeros(len(ids_U), table.shape[1])
        input_rows_UD[mine_U] = table[ids_U[mine_U] // ranks.size]
        shape = shape_of(checkpoint, state)
        output_rows_VP, bias_V = table if shape.model.tie_tables else None, None
        del table
        if shape.has_output_rows:
            bias_V = checkpoint.read_table("output_bias", ranks.rank, ranks.size).flatten()
            if output_rows_VP is None:
                output_rows_VP = checkpoint.read_table("output_table", ranks.rank, ranks.size)
        raw, average = checkpoint.core("weights"), checkpoint.core("ema")
        assert raw is not None, "core.safetensors holds no weights"
        cores: dict[Weights, dict[str, Tensor]] = {"raw": raw} if average is None else {"ema": average, "raw": raw}
        return _Reading(state, shape, input_rows_UD, output_rows_VP, bias_V, cores)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    config: Config,
    text: ScoredText,
    *,
    fingerprint: str,
    end_id: int,
    kinds: Sequence[Weights] | None = None,
    ranks: Ranks | None = None,
    on_scored: Callable[[int], object] = lambda n: None,
    on_nats: Callable[[Evaluation, list[np.ndarray]], object] | None = None,
) -> list[Evaluation]:
    """Score `text` with one checkpoint: one result a kind of weights asked for.

    config: the run's, its `evaluation` section says how. kinds: of weights to score, where not all that it asks for.
    on_scored is told of every number of predictions done; on_nats of each result and the nats of every token, piece by piece of the text.
    Raises UserError where the checkpoint has gone, is damaged, or belongs to another vocabulary.
    """
    ranks = ranks or single_process()
    settings = config.evaluation
    started = time.monotonic()
    ids_U = np.union1d(text.tokens_N, [end_id]).astype(np.int64)
    reading = agree(ranks, lambda: _read(checkpoint, fingerprint, torch.from_numpy(ids_U), ranks))
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    model = reading.shape.core().to(ranks.device, dtype).eval()
    rows_VP, bias_V = reading.output_rows_VP, reading.output_bias_V
    scorer = Scorer(
        model,
        ids_U,
        # Each row is on one rank and 0 on the others, so the sum brings every row to every rank unchanged.
        all_reduce_sum(reading.input_rows_UD.to(ranks.device), ranks).to(dtype),
        output_layer(
            model,
            None if rows_VP is None else rows_VP.to(ranks.device, dtype),
            None if bias_V is None else bias_V.to(ranks.device),
            ranks,
            settings.vocabulary_block,
        ),
        end_id,
        ranks,
    )
    sequences = cut_for_scoring(text, settings.state, settings.lanes)
    loading_seconds = time.monotonic() - started
    results = []
    for kind in _kinds(kinds or KINDS[settings.weights], reading.cores):
        started = time.monotonic()
        scorer.model.load_state_dict(reading.cores[kind])
        if on_nats is None:
            pieces, nats = [], scorer.nats(sequences, settings.lanes, on_scored)
        else:
            found = dict(scorer.nats_of_each(sequences, settings.lanes, on_scored))
            pieces = [found[number] for number in range(len(sequences))]
            nats = float(sum(piece.sum() for piece in pieces))
        result = Evaluation(
            step=checkpoint.step,
            checkpoint=checkpoint.path.name,
            split=text.split,
            files=text.files,
            state=settings.state,
            lanes=settings.lanes if settings.state == "carry" else None,
            precision=settings.precision,
            weights=kind,
            has_average="ema" in reading.cores,
            nats=nats if math.isfinite(nats) else None,
            predictions=text.predictions,
            tokens=len(text.tokens_N),
            words=text.words,
            sentences=text.sentences,
            unknown=text.unknown,
            word_perplexity=_perplexity(nats, text.predictions),
            label=text.label,
            official=text.official,
            trained_on_official=reading.state.get("corpus", {}).get("official", False),
            vocabulary=fingerprint,
            vocabulary_size=reading.shape.vocabulary_size,
            epoch=reading.state.get("epoch"),
            spectral_radius=spectral_radii(reading.cores[kind], reading.shape.model),
            seconds=round(loading_seconds + time.monotonic() - started, 3),
            finished_at=now(),
        )
        results.append(result)
        if on_nats is not None:
            on_nats(result, pieces)
    return results


def _kinds(asked: Sequence[Weights], cores: dict[Weights, Any]) -> list[Weights]:
    """Kinds of weights to score, each once; `ema` falls back to `raw` where training kept no average."""
    return list(dict.fromkeys(kind if kind in cores else "raw" for kind in asked))


def _perplexity(nats: float, predictions: int) -> float | None:
    """exp(nats / predictions); None where the model is so wrong (or not finite) that no number says it."""
    mean = nats / predictions
    return math.exp(mean) if math.isfinite(mean) and mean < 700 else None
