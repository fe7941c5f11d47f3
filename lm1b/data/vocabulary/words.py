"""The words that have an id, by falling training count.

1. `build_vocabulary` takes counted training words: those seen `minimum_count` times or more get an id, the rest are
   counted for `<UNK>`. Ids fall by count, ties go by bytes, because the log-uniform sampler takes id k for the k-th
   most frequent word. `</S>` and `<UNK>` are sorted among the words by their own counts; `<S>` never occurs in the
   stream and has the last id (Chelba et al. 2013 count it in their 793,471).
2. `WordVocabulary.save` writes `word count` lines in id order; `WordVocabulary.load` reads them back.
3. `read_given_vocabulary` reads someone else's list.
4. The fingerprint is the SHA-256 of the words in id order: it travels with shards, checkpoints and reports.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from lm1b.data.text.tokenized import END, RESERVED, START, UNKNOWN, as_numpy, check_utf8, compute, without_mark
from lm1b.data.vocabulary.vocabulary import Label, Spelling, Vocabulary
from lm1b.errors import UserError
from lm1b.files import atomic_file

# Bounds of what is read, so that a file which is no vocabulary cannot take the memory: the benchmark's has 11 MB and 0.8 million words.
LARGEST_FILE_BYTES = 128 << 20
LARGEST_SIZE = 1 << 23
LARGEST_GIVEN_SIZE = 1 << 22  # read word by word

_IS_COUNT = re.compile(rb"[0-9]{1,18}")
_IS_SEPARATOR = np.isin(np.arange(256), [0x20, 0x0A])


def with_space(words: pa.BinaryArray) -> pa.BinaryArray:
    """Words as a text's tokens are given: with one trailing space."""
    return compute.binary_join_element_wise(words, pa.scalar(b""), pa.scalar(b" ", pa.binary()))


def is_reserved(words: pa.BinaryArray) -> pa.BooleanArray:
    """Which of them are `</S>`, `<S>` or `<UNK>`."""
    return compute.is_in(words, value_set=pa.array([symbol.encode() for symbol in RESERVED], pa.binary()))


class WordVocabulary(Vocabulary):
    """Words in id order with their training counts.

    counts_V: int64 (V,). `<S>` must be the last word; `</S>` and `<UNK>` must be among the words.
    """

    kind = "words"

    def __init__(self, words: pa.BinaryArray, counts_V: np.ndarray) -> None:
        assert len(words) == len(counts_V)
        assert counts_V.dtype == np.int64
        self._words = words
        self.counts_V = counts_V
        self.end_id, self.unknown_id = self._id_of_symbol(END), self._id_of_symbol(UNKNOWN)

    @property
    def label(self) -> Label:
        """A word model pays once for `<UNK>`, whatever the word."""
        return "closed"

    @cached_property
    def id_to_token(self) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride] (a property, made once)
        """Words in id order."""
        return self._words.cast(pa.string()).to_pylist()

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] (a property, made once)
        """Hex SHA-256 of the words in id order."""
        digest = hashlib.sha256(b"lm1b vocabulary 1\n")
        digest.update(_joined(self._words, b"\n"))
        return digest.hexdigest()

    @cached_property
    def _keys(self) -> pa.BinaryArray:
        """The words as `tokens_of` shows them."""
        return with_space(self._words)

    def _id_of_symbol(self, symbol: str) -> int:
        return compute.index(self._words, pa.scalar(symbol.encode(), pa.binary())).as_py()

    def ids_of(self, keys: pa.BinaryArray) -> np.ndarray:
        """Ids of words given with their trailing space; unknown words get `unknown_id`. -> uint32, same length."""
        ids = compute.index_in(keys, value_set=self._keys)
        return as_numpy(compute.fill_null(ids, self.unknown_id)).view(np.uint32)

    def spell(self, keys: pa.BinaryArray) -> Spelling:
        """One id a word."""
        return Spelling(self.ids_of(keys))

    def word_of(self, ids: Sequence[int]) -> str:
        """The word of one id."""
        (number,) = ids
        return self.id_to_token[number]

    def begins(self, ids_N: np.ndarray) -> np.ndarray:
        """Everywhere: an id is a word or a sentence's end."""
        return np.ones(len(ids_N), dtype=bool)

    def counted(self, words: pa.BinaryArray, counts: np.ndarray) -> WordVocabulary:
        """The same words in the same order, with the counts of a training text (other words are counted for `<UNK>`)."""
        places = compute.index_in(words, value_set=self._words)
        ids = as_numpy(compute.fill_null(places, self.unknown_id))
        return WordVocabulary(self._words, np.bincount(ids, weights=counts, minlength=self.size).astype(np.int64))

    def save(self, path: Path) -> None:
        """Write `word count` lines in id order, atomically. Raises UserError where it would be too large to be read again."""
        counts = pa.array(self.counts_V).cast(pa.string()).cast(pa.binary())
        data = _joined(compute.binary_join_element_wise(self._words, counts, pa.scalar(b" ", pa.binary())), b"\n")
        if self.size > LARGEST_SIZE or len(data) > LARGEST_FILE_BYTES:
            raise UserError(f"a vocabulary of {self.size:,} words; at most {LARGEST_SIZE:,} are possible: raise vocabulary.minimum_count")
        with atomic_file(path) as file:
            file.write(data)

    @classmethod
    def load(cls, path: Path, data: bytes | None = None) -> WordVocabulary:
        """Read what `save` wrote: the lines' order is the ids'. data: of the file, where it has been read. Raises UserError where it is
        not such a file.
        """
        data = read_vocabulary_file(path) if data is None else data
        num_lines = data.count(b"\n")
        if num_lines == data.count(b" ") and num_lines <= LARGEST_SIZE and data.endswith(b"\n"):
            vocabulary = cls._of_lines(data)
            if vocabulary is not None:
                return vocabulary
        raise UserError(
            f"{path}: not a vocabulary written by preprocessing (`word count` lines, `{START}` last): run launch/preprocess.py again"
        )

    @classmethod
    def _of_lines(cls, data: bytes) -> WordVocabulary | None:
        """The vocabulary of `word count` lines; None where they are something else, or the words are not a vocabulary's."""
        letters = np.frombuffer(data, dtype=np.uint8)
        separators = np.flatnonzero(_IS_SEPARATOR[letters])
        kinds = letters[separators]
        if not ((kinds[::2] == 0x20).all() and (kinds[1::2] == 0x0A).all()):
            return None
        offsets = np.concatenate([[0], separators + 1]).astype(np.int32)
        fields = pa.Array.from_buffers(pa.binary(), len(separators), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
        fields = compute.binary_slice(fields, 0, -1)
        words, counts = (fields.take(pa.array(np.arange(start, len(fields), 2))) for start in (0, 1))
        symbols = is_reserved(words)
        if (
            words[-1].as_py() != START.encode()
            or compute.sum(symbols).as_py() != len(RESERVED)
            or compute.min(compute.binary_length(words)).as_py() == 0
            or compute.max(compute.binary_length(counts)).as_py() > 18
            or not compute.all(compute.ascii_is_decimal(counts.cast(pa.string()))).as_py()
        ):
            return None  # that no word is there twice is vouched for by the fingerprint
        return cls(words, as_numpy(counts.cast(pa.string()).cast(pa.int64())))


def _joined(words: pa.BinaryArray, separator: bytes) -> bytes:
    """Every item followed by `separator`."""
    ended = compute.binary_join_element_wise(words, pa.scalar(b"", pa.binary()), pa.scalar(separator, pa.binary()))
    return ended.buffers()[2].to_pybytes() if len(ended) else b""


def build_vocabulary(words: pa.BinaryArray, counts: np.ndarray, minimum_count: int) -> WordVocabulary:
    """The vocabulary of counted training words.

    words: distinct, without trailing space, the stream's own `</S>` (and perhaps `<UNK>`) among them. counts: int64, same length.
    """
    reserved = is_reserved(words).to_numpy(zero_copy_only=False)
    by_symbol = dict(zip(words.filter(pa.array(reserved)).to_pylist(), counts[reserved].tolist(), strict=True))
    kept = (counts >= minimum_count) & ~reserved
    num_unknown = int(counts[~kept & ~reserved].sum()) + by_symbol.get(UNKNOWN.encode(), 0)
    names = pa.concat_arrays([words.filter(pa.array(kept)), pa.array([END.encode(), UNKNOWN.encode()], pa.binary())])
    totals = np.concatenate([counts[kept], [by_symbol.get(END.encode(), 0), num_unknown]]).astype(np.int64)
    return _sorted(names, totals)


def _sorted(names: pa.BinaryArray, totals: np.ndarray) -> WordVocabulary:
    """By falling count, ties by bytes; `<S>` is put last."""
    table = pa.table({"word": names, "count": totals})
    order = compute.sort_indices(table, sort_keys=[("count", "descending"), ("word", "ascending")])
    words = pa.concat_arrays([names.take(order), pa.array([START.encode()], pa.binary())])
    return WordVocabulary(words, np.append(totals[as_numpy(order)], 0))


def read_vocabulary_file(path: Path) -> bytes:
    """The file's bytes. Raises UserError where it is missing, too large to be a vocabulary or not UTF-8."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such vocabulary file")
    with open(path, "rb") as file:
        data = file.read(LARGEST_FILE_BYTES + 1)
    if len(data) > LARGEST_FILE_BYTES:
        raise UserError(f"{path}: larger than {LARGEST_FILE_BYTES >> 20} MiB; expected a vocabulary, one word a line")
    check_utf8(data, str(path))
    return data


def _read_lines(path: Path) -> tuple[list[bytes], list[int] | None]:
    """Words, and counts where every line has one. Raises UserError naming the line that is wrong."""
    data = io.BytesIO(without_mark(read_vocabulary_file(path)))
    words: list[bytes] = []
    counts: list[int] = []
    for number, line in enumerate(data, 1):
        fields = line.split(maxsplit=2)
        if not fields:
            continue
        if len(words) == LARGEST_GIVEN_SIZE:
            raise UserError(f"{path}: has more than {LARGEST_GIVEN_SIZE:,} words; expected a vocabulary, one word a line")
        if len(fields) > 2 or (len(fields) == 2 and not _IS_COUNT.fullmatch(fields[1])) or (words and (len(fields) == 2) != bool(counts)):
            raise UserError(f"{path}:{number}: expected `word count` on every line, or one word on every line")
        words.append(fields[0])
        if len(fields) == 2:
            counts.append(int(fields[1]))
    if len(set(words)) != len(words):
        seen: set[bytes] = set()
        twice = next(word for word in words if word in seen or seen.add(word))
        raise UserError(f"{path}: the word `{twice.decode()}` is there twice; expected every word once")
    return words, counts or None


class GivenVocabulary(NamedTuple):
    """Someone's own word list, and whether the file had counts."""

    vocabulary: WordVocabulary
    has_counts: bool


def read_given_vocabulary(path: Path) -> GivenVocabulary:
    """Someone's own word list.

    With counts the words are sorted by them; without, the file's order is the ids' order and counts are 0. `<S>` is
    moved to the end. Raises UserError where `</S>` or `<UNK>` is missing.
    """
    words, counts = _read_lines(path)
    for symbol in (END, UNKNOWN):
        if symbol.encode() not in words:
            raise UserError(
                f"{path}: has no `{symbol}`; expected a vocabulary with `{START}`, `{END}` and `{UNKNOWN}` among its {len(words)} words"
            )
    kept = [index for index, word in enumerate(words) if word != START.encode()]
    names = pa.array([words[index] for index in kept], pa.binary())
    if counts is not None:
        return GivenVocabulary(_sorted(names, np.array([counts[index] for index in kept], dtype=np.int64)), True)
    words_V = pa.concat_arrays([names, pa.array([START.encode()], pa.binary())])
    return GivenVocabulary(WordVocabulary(words_V, np.zeros(len(kept) + 1, dtype=np.int64)), False)
