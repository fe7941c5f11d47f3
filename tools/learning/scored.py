"""The exact perplexity of a run in training, as it stands: no checkpoint is written for it."""

from __future__ import annotations

import math

import numpy as np
import torch

from lm1b.evaluation.scorer import Scorer, cut_for_scoring
from lm1b.evaluation.shape import Shape, output_layer
from lm1b.evaluation.texts import ScoredText
from lm1b.training.run import Run


def first_sentences(text: ScoredText, count: int) -> ScoredText:
    """The first `count` sentences of a text."""
    ends = text.sentence_ends[:count]
    begins_N = None if text.begins_N is None else text.begins_N[: ends[-1]]
    return ScoredText(text.split, text.files, text.tokens_N[: ends[-1]], ends, 0, begins_N=begins_N, label=text.label)


def word_perplexity(run: Run, text: ScoredText, dtype: torch.dtype) -> float:
    """Exact, over the whole vocabulary, of the averaged weights as they are now; infinite where it is beyond a float.

    run: of one rank, which scores on its own device. dtype: in which the evaluator computes.
    """
    step, config, device = run.training_step, run.config, run.ranks.device
    core = step.engine.core_state()
    kind = "ema" if config.training.ema_decay is not None else "weights"
    shape = Shape(config.model, config.softmax, run.tokens.vocabulary.size)
    model = shape.core().to(device, dtype).eval()
    model.load_state_dict({name.split("/", 1)[1]: tensor for name, tensor in core.items() if name.startswith(kind + "/")})
    ids_U = np.union1d(text.tokens_N, [run.tokens.vocabulary.end_id]).astype(np.int64)
    input_rows = step.tables.input.rows  # in the host's memory, perhaps, as all of them
    outputs, bias = step.tables.output, step.tables.bias
    block = config.evaluation.vocabulary_block
    scorer = Scorer(
        model,
        ids_U,
        input_rows[torch.from_numpy(ids_U).to(input_rows.device)].to(device, dtype),
        output_layer(model, outputs and outputs.rows.to(device, dtype), bias and bias.rows.flatten().to(device), run.ranks, block),
        run.tokens.vocabulary.end_id,
        run.ranks,
    )
    sequences = cut_for_scoring(text, "carry", config.evaluation.lanes)
    nats = scorer.nats(sequences, config.evaluation.lanes) / text.predictions
    return math.exp(nats) if nats < 700 else math.inf
