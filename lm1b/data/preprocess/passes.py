"""The two passes over a chunk of text, each run in a worker process and remembered on disk, so that a killed run goes on.

1. `count_chunk` reads the text once: checks it, numbers the chunk's own words in order of appearance, and writes
   `NAME.codes.npy` (the text as those numbers) and `NAME.words.arrow` (the words and how often each occurs).
2. `merge_counts` adds up the words of all training chunks.
3. `encode_chunks` has the vocabulary spell only each chunk's distinct words and translates the numbers: the text is not
   read, and not looked up word by word, a second time. It writes the token shard and removes the numbers.

The chunk `a b a` has the words `a `=0, `b `=1, `</S> `=2 and the codes 0 1 0 2. A vocabulary with the ids `</S>`=0, `a`=1, `<UNK>`=2,
`<S>`=3 spells those three words as 1, 2, 0; the shard is that array at the codes: 1 2 1 0.

When a chunk is counted or its shard written, a receipt says so (`NAME.count.json`, `NAME.shard.json`): see receipts.py.
Peak disk: the numbers (4 bytes a token) beside the shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from lm1b.data.receipts import is_sound, read_receipt, write_receipt
from lm1b.data.text.benchmark import official_md5
from lm1b.data.text.corpus import TextChunk
from lm1b.data.text.tokenized import as_numpy, code_dtype, number_tokens
from lm1b.data.tokens.arrays import map_array, write_array
from lm1b.data.tokens.directory import write_shard
from lm1b.data.tokens.manifest import CountedText, Shard
from lm1b.data.vocabulary.files import load_vocabulary
from lm1b.data.vocabulary.vocabulary import Vocabulary
from lm1b.errors import UserError
from lm1b.files import atomic_file
from lm1b.workers import Workers

CHUNKS_TO_ENCODE_TOGETHER = 8  # one look-up table of the vocabulary is built for so many
WORDS_TO_MERGE_TOGETHER = 1 << 20  # or as many as there are already, so that no word is added up often
_WORDS_SCHEMA = pa.schema([("word", pa.binary()), ("count", pa.int64())])


def start_workers(num_processes: int) -> Workers:
    """Processes for the passes. Where there are several, Arrow has one thread in each: it would start one a core in every one of them."""
    return Workers(
        num_processes,
        prepare=partial(pa.set_cpu_count, 1),
        if_killed="run it again to go on from there, with --set tokens.processes=1 to use less memory",
    )


def _codes_path(work: Path, shard: str) -> Path:
    return work / f"{shard}.codes.npy"


def _words_path(work: Path, shard: str) -> Path:
    return work / f"{shard}.words.arrow"


def write_words(path: Path, words: pa.BinaryArray, counts: np.ndarray) -> str:
    """Write a table of words and counts as an Arrow file, atomically. -> its SHA-256."""
    table = pa.table([words, counts.astype(np.int64, copy=False)], schema=_WORDS_SCHEMA)
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    data = memoryview(sink.getvalue())
    with atomic_file(path, outlives_power=False) as file:
        file.write(data)
    return hashlib.sha256(data).hexdigest()


def read_words(path: Path) -> pa.Table:
    """Read what `write_words` wrote. Raises UserError where the file is something else."""
    try:
        with pa.OSFile(str(path)) as file:
            table = ipc.open_file(file).read_all()
        if table.schema != _WORDS_SCHEMA:
            raise pa.ArrowInvalid("other columns")
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged ({error}): run launch/preprocess.py again") from None


def count_chunk(chunk: TextChunk, work: Path) -> CountedText:
    """First pass over a chunk. Raises UserError where the text is not UTF-8 or has endless lines, OSError where the disk is full."""
    data = chunk.read()
    words, codes, counts = number_tokens(chunk.text_of(data))
    words_sha256 = write_words(_words_path(work, chunk.shard), words, counts)
    _, codes_sha256 = write_array(_codes_path(work, chunk.shard), codes, outlives_power=False)
    may_be_official = chunk.official_name in official_md5() or chunk.split != "train"
    counted = CountedText(
        split=chunk.split,
        shard=chunk.shard,
        identity=chunk.identity,
        official_name=chunk.official_name,
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest() if may_be_official else None,
        num_tokens=len(codes),
    )
    files = {_words_path(work, chunk.shard).name: words_sha256, _codes_path(work, chunk.shard).name: codes_sha256}
    write_receipt(_count_receipt(work, chunk.shard), _count_key(chunk), files, counted.as_json(), outlives_power=False)
    return counted


def _count_receipt(work: Path, shard: str) -> Path:
    return work / f"{shard}.count.json"


def _count_key(chunk: TextChunk) -> list[object]:
    return [chunk.shard, chunk.split, chunk.identity.model_dump()]


def recall_count(chunk: TextChunk, work: Path) -> tuple[CountedText, bool] | None:
    """Result of an earlier run's first pass over the same chunk, where that still holds and its words are there, undamaged.

    With it, whether its numbers are there, undamaged, too, so that the second pass can be made.
    """
    codes = _codes_path(work, chunk.shard).name  # removed when the shard is written
    receipt = read_receipt(_count_receipt(work, chunk.shard), _count_key(chunk), CountedText.model_validate, may_be_gone=[codes])
    return (receipt.result, codes in receipt.files) if receipt else None


def merge_counts(tables: Iterable[pa.Table]) -> pa.Table:
    """Add up tables of words and counts, a few at a time. -> one table of distinct words."""
    merged = _WORDS_SCHEMA.empty_table()
    waiting: list[pa.Table] = []

    def add_up() -> pa.Table:
        table = pa.concat_tables([merged, *waiting])
        table = table.group_by("word", use_threads=False).aggregate([("count", "sum")]).rename_columns({"count_sum": "count"})
        return table.select(_WORDS_SCHEMA.names).combine_chunks()  # its chunks are slices: each would be sent with the whole memory

    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= max(WORDS_TO_MERGE_TOGETHER, len(merged)):
            merged, waiting = add_up(), []
    return add_up() if waiting else merged


def count_words(work: Path, shards: list[str]) -> pa.Table:
    """Words (with trailing space) and counts of several counted chunks together."""
    return merge_counts(read_words(_words_path(work, shard)) for shard in shards)


def _share_path(work: Path, rank: int) -> Path:
    return work / f"share-{rank:05d}.words.arrow"


def write_share(work: Path, rank: int, words: pa.Table) -> str:
    """Put what a rank has added up where the first one finds it. -> the file's SHA-256."""
    return write_words(_share_path(work, rank), words["word"].combine_chunks(), as_numpy(words["count"]))


def read_share(work: Path, rank: int, sha256: str) -> pa.Table:
    """Read the table that `write_share` wrote. Raises UserError where it is not there, or something else is."""
    path = _share_path(work, rank)
    if not is_sound(path, sha256):
        raise UserError(f"{path}: not what rank {rank} has written; is the folder shared by all machines? Run it again")
    return read_words(path)


@lru_cache(maxsize=1)
def _vocabulary_at(path: Path, fingerprint: str) -> Vocabulary:
    """The vocabulary, read once a process."""
    vocabulary = load_vocabulary(path)
    if vocabulary.fingerprint != fingerprint:
        raise UserError(f"{path}: changed while preprocessing; run it again")
    return vocabulary


def encode_chunks(shards: dict[str, int], work: Path, vocabulary_path: Path, fingerprint: str) -> list[Shard]:
    """Second pass over counted chunks: write their token shards into `work`. Raises OSError where the disk is full.

    shards: names, and the length of each one's stream.
    """
    vocabulary = _vocabulary_at(vocabulary_path, fingerprint)
    words = [read_words(_words_path(work, shard))["word"].combine_chunks() for shard in shards]
    spelling = vocabulary.spell(pa.concat_arrays(words))
    spelling = spelling._replace(ids_K=spelling.ids_K.astype(vocabulary.token_dtype))
    infos = []
    start = 0
    for (shard, stream_length), own_words in zip(shards.items(), words, strict=True):
        codes = map_array(_codes_path(work, shard), code_dtype(len(own_words)), stream_length)
        tokens = spelling.part(start, start + len(own_words)).ids_of(codes)
        start += len(own_words)
        info = write_shard(work, shard, tokens, vocabulary.end_id, vocabulary.unknown_id, stream_length=stream_length)
        files = {path.name: sha256 for path, _, sha256 in info.files(work)}
        write_receipt(_shard_receipt(work, shard), [shard, fingerprint], files, info.as_json(), outlives_power=False)
        _codes_path(work, shard).unlink()
        infos.append(info)
    return infos


def _shard_receipt(work: Path, shard: str) -> Path:
    return work / f"{shard}.shard.json"


def may_have_shard(shard: str, work: Path) -> bool:
    """Whether an earlier run has written the shard, of whatever vocabulary."""
    return _shard_receipt(work, shard).is_file()


def recall_shard(shard: str, work: Path, fingerprint: str) -> Shard | None:
    """The shard that an earlier run wrote into `work` with the same vocabulary, where it is there, undamaged."""
    receipt = read_receipt(_shard_receipt(work, shard), [shard, fingerprint], Shard.model_validate)
    return receipt.result if receipt else None
