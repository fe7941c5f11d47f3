"""A vocabulary of a few letters, and a directory of tokens made with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from lm1b.config import Split
from lm1b.data.tokens.directory import write_shard
from lm1b.data.tokens.manifest import MANIFEST_NAME, CorpusFacts, MadeFrom, Manifest, Shard
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME
from lm1b.data.vocabulary.words import WordVocabulary, build_vocabulary
from lm1b.files import digest_of_file

# Of the files of `make_directory`: every kind, and an empty one.
FILE_NAMES = ["manifest.json", "vocabulary.txt", "train-00001.tokens.npy", "train-00001.ends.npy", "test-00000.tokens.npy"]


def plain_tokens(data: bytes) -> list[bytes]:
    """The stream's tokens, by plain Python: what `tokens_of` must give."""
    out = []
    for line in data.split(b"\n"):
        if words := line.split():
            out += [b"<UNK>" if word in (b"</S>", b"<S>") else word for word in words] + [b"</S>"]
    return out


def small_vocabulary(text: bytes = b"b a b c\nb a d b\n", minimum_count: int = 2) -> WordVocabulary:
    """Of `</S>`, `<UNK>`, a few letters."""
    counts = Counter(plain_tokens(text))
    return build_vocabulary(pa.array(list(counts), pa.binary()), np.array(list(counts.values()), dtype=np.int64), minimum_count)


def make_directory(folder: Path) -> Path:
    """Tokens of a few letters: one training shard, one of validation, an empty one of test."""
    vocabulary = small_vocabulary()
    vocabulary.save(folder / VOCABULARY_NAME)
    tokens = vocabulary.encode(b"a b c\nb\n").ids_N
    shard = write_shard(folder, "train-00001", tokens.astype(np.uint16), vocabulary.end_id, vocabulary.unknown_id)
    held_out = vocabulary.encode(b"c b a\na\n").ids_N
    validation = write_shard(folder, "validation-00001", held_out.astype(np.uint16), vocabulary.end_id, vocabulary.unknown_id)
    empty = write_shard(folder, "test-00000", tokens[:0].astype(np.uint16), vocabulary.end_id, vocabulary.unknown_id)
    corpus = CorpusFacts.of("text", False, [])
    shards: dict[Split, list[Shard]] = {"train": [shard], "validation": [validation], "test": [empty]}
    manifest = Manifest.of(vocabulary, digest_of_file(folder / VOCABULARY_NAME), shards, corpus, MadeFrom())
    manifest.write(folder / MANIFEST_NAME)
    return folder
