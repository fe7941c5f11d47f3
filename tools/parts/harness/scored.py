"""The exact perplexity of a run in training, as it stands: no checkpoint is written for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from lm1b.evaluation.scoring.texts import ScoredText, cut_for_scoring
from lm1b.evaluation.trained.architecture import Architecture
from lm1b.evaluation.trained.scorer import Rows, Scorer
from lm1b.training.evaluations import perplexity
from lm1b.training.run import Run


def first_sentences(text: ScoredText, count: int) -> ScoredText:
    """The first `count` sentences of a text."""
    ends = text.sentence_ends[:count]
    begins_N = None if text.begins_N is None else text.begins_N[: ends[-1]]
    return replace(text, tokens_N=text.tokens_N[: ends[-1]], sentence_ends=ends, begins_N=begins_N, unknown=0, official=None)


def word_perplexity(run: Run, text: ScoredText, dtype: torch.dtype) -> float:
    """Exact, over the whole vocabulary, of the averaged weights as they are now; infinite where it is beyond a float.

    run: of one rank, which scores on its own device. dtype: in which the evaluator computes.
    """
    step, config = run.training_step, run.config
    core = step.engine.core_state()
    kind = "ema" if config.training.ema_decay is not None else "weights"
    model = Architecture(config.model, config.softmax, run.tokens.vocabulary.size).core()
    model.load_state_dict({name.split("/", 1)[1]: tensor for name, tensor in core.items() if name.startswith(kind + "/")})
    ids_U = text.distinct_ids()
    tables, block = step.tables, config.evaluation.vocabulary_block
    input_UD = tables.input.rows[torch.from_numpy(ids_U).to(tables.input.rows.device)]  # in the host's memory, perhaps
    rows = Rows(ids_U, input_UD, tables.output and tables.output.rows, tables.bias and tables.bias.rows.flatten())
    scorer = Scorer.of(model, rows, end_id=text.end_id, dtype=dtype, ranks=run.ranks, vocabulary_block=block)
    sequences = cut_for_scoring(text, "carry", config.evaluation.lanes)
    return perplexity(scorer.nats(sequences, config.evaluation.lanes), text.predictions)
