"""Our text to ids beside Hugging Face's WordLevel tokenizer, as a user would write it: one core each, in turns, on the same text."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from lm1b.data.text.corpus import TextChunk
from lm1b.data.text.tokenized import UNKNOWN
from lm1b.data.vocabulary.words import WordVocabulary
from lm1b.errors import UserError

LINES_IN_A_BATCH = 1000
SLICE_BYTES = 8 << 20


def import_tokenizers() -> Any:
    """Hugging Face's `tokenizers`, held to one thread. Raises UserError where it is not installed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        raise UserError("--against hf-wordlevel: Hugging Face's `tokenizers` is not installed; pip install tokenizers") from None


class WordLevel:
    """Hugging Face's tokenizer with our vocabulary."""

    def __init__(self, vocabulary: WordVocabulary) -> None:
        library = import_tokenizers()
        models, splitters = (importlib.import_module(f"tokenizers.{name}") for name in ("models", "pre_tokenizers"))
        ids = {word: place for place, word in enumerate(vocabulary.id_to_token)}
        self._tokenizer = library.Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
        self._tokenizer.pre_tokenizer = splitters.WhitespaceSplit()
        self._encode = getattr(self._tokenizer, "encode_batch_fast", self._tokenizer.encode_batch)

    def encode(self, lines: list[str]) -> list[list[int]]:
        """Ids of every line, without an end mark."""
        ids = []
        for start in range(0, len(lines), LINES_IN_A_BATCH):
            batch = self._encode(lines[start : start + LINES_IN_A_BATCH], add_special_tokens=False)
            ids += [encoding.ids for encoding in batch]
        return ids


def measure_against_wordlevel(chunks: list[TextChunk], vocabulary_path: Path, repeats: int) -> dict[str, Any]:
    """MB of text a second of CPU time from text to ids, `WordVocabulary.encode` and WordLevel in turns, on the first chunks up to 8 MiB."""
    vocabulary = WordVocabulary.load(vocabulary_path)
    theirs = WordLevel(vocabulary)
    texts: list[bytes] = []
    for chunk in chunks:
        if texts and sum(map(len, texts)) + chunk.stop - chunk.start > SLICE_BYTES:
            break
        texts.append(chunk.read())
    lines = [line for text in texts for line in text.decode().split("\n")[:-1]]
    seconds: dict[str, list[float]] = {"ours": [], "hf_wordlevel": []}
    our_ids, their_ids = [], []
    for _ in range(repeats + 1):
        started_at = time.process_time()
        our_ids = [vocabulary.encode(text).ids_N for text in texts]
        seconds["ours"].append(time.process_time() - started_at)
        started_at = time.process_time()
        their_ids = theirs.encode(lines)
        seconds["hf_wordlevel"].append(time.process_time() - started_at)
    text_mb = sum(map(len, texts)) / 1e6
    rates = {name: text_mb / statistics.median(values[1:]) for name, values in seconds.items()}
    with_ends = np.concatenate([[*ids, vocabulary.end_id] for ids in their_ids])
    return {
        "text_mb": round(text_mb, 1),
        "mb_per_cpu_second": {name: round(rate, 1) for name, rate in rates.items()},
        "times_as_fast": round(rates["ours"] / rates["hf_wordlevel"], 1),
        "same_ids": bool(np.array_equal(with_ends, np.concatenate(our_ids))),
    }
