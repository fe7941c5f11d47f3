"""The nats of every token of a text that was scored: what breakdowns, confidence intervals and paired tests are made from.

An evaluation leaves one file a text, way of scoring and kind of weights in the run's `token_nats/`, the latest taking the place of the
one before: safetensors with `nats` (float32 [N]) and `ids` (uint32 [N], in the order of the text, `</S>` at every sentence's end), and
what they are of in its metadata. Where words are spelled by pieces, `begins` (uint8 [N]) is 1 where a word begins or a sentence ends.
8 bytes a token, 9 of pieces; texts of more than LARGEST_TOKENS leave none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lm1b.errors import UserError
from lm1b.evaluation.scoring.texts import ScoredText
from lm1b.files import atomic_file
from lm1b.training.evaluations import Evaluation
from lm1b.training.run_folder import RunFolder

LARGEST_TOKENS = 5_000_000
FACTS = ("step", "split", "files", "state", "lanes", "precision", "weights", "vocabulary")  # of the evaluation


@dataclass(frozen=True)
class TokenNats:
    """nats_N: float32, ids_N: uint32, in the order of the text. facts: FACTS of the evaluation, `end_id` and `unknown_id`.

    begins_N: bool, where a word begins or a sentence ends; None: everywhere.
    """

    nats_N: np.ndarray
    ids_N: np.ndarray
    facts: dict[str, Any]
    begins_N: np.ndarray | None = None

    @property
    def counts_N(self) -> np.ndarray:
        """What each id counts for in a perplexity per word: int64, 1 or 0."""
        return np.ones(len(self.ids_N), np.int64) if self.begins_N is None else self.begins_N.astype(np.int64)

    @property
    def ids_key(self) -> str:
        """Equal for two evaluations whose tokens may be compared one by one: same vocabulary, same text."""
        return hashlib.sha256(f"{self.facts['vocabulary']}\n".encode() + self.ids_N.astype("<u4").tobytes()).hexdigest()

    def are_of(self, evaluation: Evaluation) -> bool:
        """Whether they are of this result, and not of another whose place in the run's folder is the same."""
        is_its = {key: self.facts.get(key) for key in FACTS} == evaluation.only(FACTS)
        return is_its and int(self.counts_N.sum()) == evaluation.predictions

    @property
    def sentence_starts(self) -> np.ndarray:
        """Where each sentence begins: int64."""
        return np.concatenate([[0], np.flatnonzero(self.ids_N == self.facts["end_id"])[:-1] + 1])

    def by_sentence(self, values_N: np.ndarray) -> np.ndarray:
        """Sums of values over the sentences, float64."""
        return np.add.reduceat(values_N.astype(np.float64), self.sentence_starts)


def path_of(folder: RunFolder, evaluation: Evaluation) -> Path:
    """Where the nats of an evaluation are kept."""
    files = hashlib.sha256("\n".join(evaluation.files).encode()).hexdigest()[:12]
    text = files if evaluation.is_of_files else evaluation.split
    return folder.token_nats / f"{text}_{evaluation.state}_{evaluation.weights}_{evaluation.precision}.safetensors"


def write_token_nats(
    folder: RunFolder,
    evaluation: Evaluation,
    text: ScoredText,
    nats: Sequence[np.ndarray],
) -> None:
    """Keep the nats of an evaluation. nats: of each token of the text's sequences, in order; any float, kept as float32."""
    facts = {**evaluation.only(FACTS), "end_id": text.end_id, "unknown_id": text.unknown_id}
    tensors: dict[str, np.ndarray] = {"nats": np.concatenate(nats).astype(np.float32), "ids": text.tokens_N.astype(np.uint32)}
    if text.begins_N is not None:
        tensors["begins"] = text.begins_N.astype(np.uint8)
    with atomic_file(path_of(folder, evaluation), outlives_power=False) as file:
        file.write(save(tensors, {"facts": json.dumps(facts)}))


def read_token_nats(path: Path) -> TokenNats:
    """The nats of a file of `path_of`. Raises UserError for one that is not whole."""
    try:
        with safe_open(path, "numpy") as file:
            facts = json.loads(file.metadata()["facts"])
            begins_N = file.get_tensor("begins").astype(bool) if "begins" in file.keys() else None  # noqa: SIM118 (no mapping)
            found = TokenNats(file.get_tensor("nats"), file.get_tensor("ids"), facts, begins_N)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); evaluate again") from None
    if not len(found.nats_N) == len(found.ids_N) == len(found.counts_N):
        raise UserError(f"{path}: damaged (its tensors are not of one length); evaluate again")
    return found
