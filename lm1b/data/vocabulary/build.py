"""From the training split's counted words to the vocabulary that the config asks for.

1. `vocabulary_origin` says which settings, and which given file, the ids depend on: a later run compares it.
2. `make_vocabulary` makes the words that have an id, from the counts or from the given file.
3. For pieces of words it learns them from the same counts (piece_training.py); closed by those words, or open.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from lm1b.config import VocabularyConfig
from lm1b.data.text.tokenized import as_numpy, compute
from lm1b.data.vocabulary.piece_training import build_piece_vocabulary
from lm1b.data.vocabulary.vocabulary import Vocabulary
from lm1b.data.vocabulary.words import GivenVocabulary, build_vocabulary
from lm1b.errors import UserError
from lm1b.files import digest_of_file

PIECE_SETTINGS = ("pieces", "piece_model", "character_coverage", "sample_words", "seed")


def vocabulary_origin(config: VocabularyConfig) -> dict[str, Any]:
    """Identifies the settings and the given file of a vocabulary. Raises UserError where that file is missing."""
    if config.kind == "words":
        return _words_origin(config)
    settings = {"kind": config.kind} | {name: getattr(config, name) for name in PIECE_SETTINGS}
    return settings | {"closed": _words_origin(config) if config.closed else None}


def _words_origin(config: VocabularyConfig) -> dict[str, Any]:
    if config.file is None:
        return {"minimum_count": config.minimum_count}
    path = Path(config.file)
    if not path.is_file():
        raise UserError(f"{path}: no such vocabulary file (vocabulary.file); expected `word count` or one word a line")
    return {"file_sha256": digest_of_file(path)}


def make_vocabulary(table: pa.Table, given: GivenVocabulary | None, config: VocabularyConfig) -> Vocabulary:
    """table: distinct training words with their trailing space, and counts; may be empty where only a given vocabulary with counts is
    asked for. Raises UserError where it cannot be made.
    """
    words, counts = compute.binary_slice(table["word"].combine_chunks(), 0, -1), as_numpy(table["count"])
    if config.kind == "words" or config.closed:
        if given is None:
            known = build_vocabulary(words, counts, config.minimum_count)
        else:
            known = given.vocabulary if given.has_counts else given.vocabulary.counted(words, counts)
        if config.kind == "words":
            return known
    else:
        known = None
    return build_piece_vocabulary(words, counts, config, known)
