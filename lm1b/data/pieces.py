"""The two passes over a piece of text, each run in a worker process and remembered on disk, so that a killed run goes on.

1. `count_piece` reads the text once: checks UTF-8, numbers the piece's own words in order of appearance, and writes
   `NAME.codes.npy` (the text as those numbers) and `NAME.words.arrow` (the words and how often each occurs).
2. `merge_counts` adds up the words of all training pieces.
3. `encode_pieces` looks up only each piece's distinct words in the vocabulary and translates the numbers: the text is not
   read, and not looked up word by word, a second time. It writes the token shard and removes the numbers.

A `NAME.count.json` or `NAME.shard.json` is written after what it vouches for, and says which text and vocabulary it is of.
Peak disk: the numbers (4 bytes a token) beside the shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from lm1b.data.corpus import Piece
from lm1b.data.official import official_md5
from lm1b.data.shards import ShardInfo, write_array, write_shard
from lm1b.data.text import check_utf8, compute, number_words
from lm1b.data.vocabulary import Vocabulary
from lm1b.errors import UserError
from lm1b.files import atomic_file, read_json, write_json

PIECES_TO_ENCODE_TOGETHER = 8  # one look-up table of the vocabulary is built for so many
PIECES_TO_MERGE_TOGETHER = 8


@dataclass(frozen=True)
class CountedPiece:
    """What the first pass found. sha256, md5: of the piece's bytes (md5 where held out, or where the benchmark has a file of that name)."""

    split: str
    shard: str
    identity: dict[str, Any]
    official_name: str | None
    num_bytes: int
    sha256: str
    md5: str | None
    num_tokens: int


def _codes_path(work: Path, shard: str) -> Path:
    return work / f"{shard}.codes.npy"


def _words_path(work: Path, shard: str) -> Path:
    return work / f"{shard}.words.arrow"


def write_words(path: Path, words: pa.BinaryArray, counts: np.ndarray) -> None:
    """Write a table of words and counts as an Arrow file, atomically."""
    table = pa.table({"word": words, "count": counts.astype(np.int64, copy=False)})
    with atomic_file(path) as file, ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_words(path: Path) -> pa.Table:
    """Read what `write_words` wrote."""
    with pa.OSFile(str(path)) as file:
        return ipc.open_file(file).read_all()


def count_piece(piece: Piece, work: Path) -> CountedPiece:
    """First pass over a piece. Raises UserError where the text is not UTF-8, OSError where the disk is full."""
    data = piece.read()
    check_utf8(data, piece.source, piece.start)
    words, codes = number_words(data)
    write_words(_words_path(work, piece.shard), words, np.bincount(codes, minlength=len(words)))
    write_array(_codes_path(work, piece.shard), codes.astype(np.uint16) if len(words) <= 1 << 16 else codes)
    may_be_official = piece.official_name in official_md5() or piece.split != "train"
    counted = CountedPiece(
        split=piece.split,
        shard=piece.shard,
        identity=piece.identity,
        official_name=piece.official_name,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest() if may_be_official else None,
        num_tokens=len(codes),
    )
    write_json(work / f"{piece.shard}.count.json", asdict(counted))
    return counted


def recall_count(piece: Piece, work: Path) -> CountedPiece | None:
    """What an earlier run's first pass found for the same piece, where that still holds."""
    path = work / f"{piece.shard}.count.json"
    if not path.is_file():
        return None
    counted = CountedPiece(**read_json(path))
    return counted if counted.identity == piece.identity else None


def has_words(work: Path, shard: str) -> bool:
    """Whether a counted piece's words are there."""
    return _words_path(work, shard).is_file()


def has_codes(work: Path, shard: str) -> bool:
    """Whether the second pass can still be made for a counted piece."""
    return _codes_path(work, shard).is_file() and has_words(work, shard)


def merge_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """Add up tables of words and counts, a few at a time. -> one table of distinct words, without their trailing space."""
    merged: pa.Table | None = None
    waiting: list[pa.Table] = []

    def add_up() -> pa.Table:
        table = pa.concat_tables([merged, *waiting] if merged is not None else waiting)
        return table.group_by("word", use_threads=False).aggregate([("count", "sum")]).rename_columns({"count_sum": "count"})

    for table in tables:
        waiting.append(table)
        if len(waiting) == PIECES_TO_MERGE_TOGETHER:
            merged, waiting = add_up(), []
    if waiting:
        merged = add_up()
    assert merged is not None, "nothing to add up"
    return merged.set_column(merged.column_names.index("word"), "word", compute.binary_slice(merged["word"], 0, -1))


def count_words(work: Path, shards: list[str]) -> pa.Table:
    """Words and counts of several counted pieces together."""
    return merge_counts(read_words(_words_path(work, shard)) for shard in shards)


@lru_cache(maxsize=1)
def _vocabulary_at(path: Path, fingerprint: str) -> Vocabulary:
    """The vocabulary, read once a process."""
    vocabulary = Vocabulary.load(path)
    if vocabulary.fingerprint != fingerprint:
        raise UserError(f"{path}: changed while preprocessing; run it again")
    return vocabulary


def encode_pieces(shards: list[str], work: Path, directory: Path, vocabulary_path: Path, fingerprint: str) -> list[ShardInfo]:
    """Second pass over counted pieces: write their token shards. Raises OSError where the disk is full."""
    vocabulary = _vocabulary_at(vocabulary_path, fingerprint)
    words = [read_words(_words_path(work, shard))["word"].combine_chunks() for shard in shards]
    ids = vocabulary.ids_of(pa.concat_arrays(words)).astype(vocabulary.token_dtype)
    infos = []
    start = 0
    for shard, own_words in zip(shards, words, strict=True):
        codes = np.load(_codes_path(work, shard), mmap_mode="r" if len(own_words) else None, allow_pickle=False)
        tokens = ids[start : start + len(own_words)][codes]
        start += len(own_words)
        info = write_shard(directory, shard, tokens, vocabulary.end_id, vocabulary.unknown_id)
        write_json(work / f"{shard}.shard.json", {"fingerprint": fingerprint, "info": asdict(info)})
        _codes_path(work, shard).unlink()
        infos.append(info)
    return infos


def recall_shard(shard: str, work: Path, directory: Path, fingerprint: str) -> ShardInfo | None:
    """The shard that an earlier run wrote with the same vocabulary, where it is there."""
    path = work / f"{shard}.shard.json"
    if not path.is_file():
        return None
    record = read_json(path)
    info = ShardInfo(**record["info"])
    return info if record["fingerprint"] == fingerprint and info.is_there(directory) else None
