"""A few sentences, and vocabularies of pieces learnt from them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lm1b.config import VocabularyConfig
from lm1b.data.text.tokenized import number_tokens
from lm1b.data.vocabulary.piece_training import build_piece_vocabulary
from lm1b.data.vocabulary.pieces import PieceVocabulary
from lm1b.data.vocabulary.words import build_vocabulary

SENTENCES = [
    "the president said on monday that the talks would go on .",
    "the presidents of the banks said that they were talking .",
    "he said the bank would pay , and on tuesday it paid .",
    "they talk , they walk , they pay : the bankers said so on monday .",
]
TEXT = "".join(f"{sentence}\n" for sentence in [*SENTENCES * 5, "the rarest words"]).encode()
SETTINGS = VocabularyConfig(kind="sentencepiece", pieces=295)


def counted(text: bytes) -> tuple[pa.BinaryArray, np.ndarray]:
    """The words of a text, and how often each is there."""
    keys, _, counts = number_tokens(text)
    return pa.array([key[:-1] for key in keys.to_pylist()], pa.binary()), counts


def learnt(model: str = "unigram", *, closed: bool = False, text: bytes = TEXT, pieces: int = 295) -> PieceVocabulary:
    """A vocabulary of this many pieces of a text's words. closed: by the words that are there five times."""
    words, counts = counted(text)
    known = build_vocabulary(words, counts, 5) if closed else None
    return build_piece_vocabulary(words, counts, SETTINGS.model_copy(update={"piece_model": model, "pieces": pieces}), known)
