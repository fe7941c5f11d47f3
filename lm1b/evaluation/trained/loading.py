"""A trained model to ask: `lm1b.load("runs/irnn_lm").score(["The president said ."])`.

1. `load_run` reads one checkpoint of a run, its weights and its tables, and the vocabulary of its token directory. No DeepSpeed.
2. Text becomes sentences of ids, one a line, as evaluation reads it: scores add up to those of `evaluate.py --state reset`. Where words
   are spelled by pieces, a word's log-probability is the sum of its pieces'.
3. Sentences of like length are scored side by side, and come back in the order in which they were given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm1b.config import EvaluationConfig
from lm1b.data.text.tokenized import blank_lines
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.remote import open_tokens
from lm1b.data.vocabulary.vocabulary import Vocabulary
from lm1b.devices import chosen_device
from lm1b.distributed import single_process
from lm1b.errors import UserError
from lm1b.evaluation.trained.open import choose_checkpoint, open_checkpoint
from lm1b.evaluation.trained.scorer import Scorer, dtype_of
from lm1b.precision import DTYPES
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.evaluations import Weights, perplexity
from lm1b.training.run_folder import RunFolder

SIDE_BY_SIDE = 32  # sentences at least


@dataclass(frozen=True)
class SentenceScore:
    """nats: of all words and of the sentence's end. log_probabilities: natural, of each word and, the last, of the end; float64.

    words: how many, the end left out. unknown: words that the vocabulary does not have. perplexity: exp(nats / (words + 1)).
    An empty line is no sentence: 0 words, 0 nats, no perplexity and no log-probabilities.
    """

    words: int
    unknown: int
    log_probabilities: np.ndarray

    @property
    def nats(self) -> float:
        """Of the whole sentence."""
        return math.fsum(-self.log_probabilities)

    @property
    def perplexity(self) -> float | None:
        """A word, the end counted as one; None for an empty line, and where the number is beyond a float."""
        found = perplexity(self.nats, len(self.log_probabilities)) if len(self.log_probabilities) else math.inf
        return found if math.isfinite(found) else None

    def as_json(self, *, with_words: bool = False) -> dict[str, Any]:
        """One line of launch/score.py."""
        line = {"nats": self.nats, "words": self.words, "unknown": self.unknown, "perplexity": self.perplexity}
        return {**line, "log_probabilities": self.log_probabilities.tolist()} if with_words else line


class LoadedModel:
    """A model with its vocabulary and all of its rows, in memory, on one device."""

    def __init__(self, scorer: Scorer, vocabulary: Vocabulary) -> None:
        self.scorer, self.vocabulary = scorer, vocabulary

    def score(self, sentences: Sequence[str]) -> list[SentenceScore]:
        """Each sentence (tokenized, words parted by spaces) alone, from zero state. Raises UserError for one that holds a newline."""
        for number, sentence in enumerate(sentences):
            if "\n" in sentence:
                raise UserError(f"sentence {number}: holds a newline; give one sentence a string")
        return self.score_lines("\n".join([*sentences, ""]).encode())

    def score_lines(self, text: bytes, source: str = "text") -> list[SentenceScore]:
        """Each line of UTF-8 text. Raises UserError that names `source` where it is not UTF-8."""
        ids_N = self.vocabulary.encode(text, source).ids_N
        ends = np.flatnonzero(ids_N == self.vocabulary.end_id) + 1
        sequences = np.split(ids_N.astype(np.int64), ends[:-1]) if len(ends) else []
        nats = dict(self.scorer.nats_of_each(sequences, SIDE_BY_SIDE))
        scored = (self._score(sequence, nats[number]) for number, sequence in enumerate(sequences))
        nothing = SentenceScore(0, 0, np.zeros(0))
        return [nothing if is_blank else next(scored) for is_blank in blank_lines(text)]

    def _score(self, ids_T: np.ndarray, nats_T: np.ndarray) -> SentenceScore:
        nats_W = np.add.reduceat(nats_T, np.flatnonzero(self.vocabulary.begins(ids_T)))
        return SentenceScore(len(nats_W) - 1, int(np.count_nonzero(ids_T == self.vocabulary.unknown_id)), -nats_W)

    def score_stream(self, lines: Iterator[bytes], together: int) -> Iterator[SentenceScore]:
        """Line after line, `together` at a time: as much memory whatever the length of the stream, and output as input comes."""
        while chunk := [line for _, line in zip(range(together), lines, strict=False)]:
            yield from self.score_lines(b"".join(chunk), "standard input")


def load_run(
    run_directory: Path, *, checkpoint: str = "latest", weights: Weights = "ema", precision: str = "fp32", device: str | None = None
) -> LoadedModel:
    """A checkpoint of a run (`latest`, `best` or a step), ready to be asked. weights: `ema` falls back to `raw` where there is no average.

    device: a GPU if there is one where None. Raises UserError where there is no such run, checkpoint, token directory or device.
    """
    config, computes_on = RunFolder(run_directory).read_config(), chosen_device(device)
    dtype_of(precision)  # refuses what is none
    settings = config.evaluation.model_copy(update={"precision": precision})
    tokens = open_tokens(config.tokens)
    return load_checkpoint(choose_checkpoint(run_directory, checkpoint), tokens, settings, weights, computes_on)


def load_checkpoint(
    checkpoint: Checkpoint, tokens: TokenDirectory, settings: EvaluationConfig, weights: Weights, device: torch.device
) -> LoadedModel:
    """The same of a checkpoint and tokens at hand. settings: `precision` and `vocabulary_block` are meant."""
    vocabulary, ranks = tokens.vocabulary, single_process(device)
    with open_checkpoint(checkpoint, tokens.fingerprint) as trained:
        (core, _), rows = trained.core(weights), trained.rows()
    model = trained.architecture.core()
    model.load_state_dict(core)
    dtype, block = DTYPES[settings.precision], settings.vocabulary_block
    return LoadedModel(Scorer.of(model, rows, end_id=vocabulary.end_id, dtype=dtype, ranks=ranks, vocabulary_block=block), vocabulary)
