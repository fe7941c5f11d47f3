"""What a vocabulary is to the rest of the program: text becomes a stream of ids, ids become text, and words are counted.

There are two: of words (words.py), where every word is one id, and of pieces of words (pieces.py), where a word is
spelled by one id or more. In both

1. ids fall by training count, because the log-uniform sampler takes id k for the k-th most frequent; ties go by bytes;
2. `</S>` ends a sentence and is an id of its own, `<UNK>` stands for words outside of a closed vocabulary, and `<S>`, which never
   occurs in the stream, has the last id;
3. how a word is spelled does not depend on the words around it. So only the distinct words of a text are looked up (`spell`), and the
   text, as numbers of its distinct words, is translated by an array look-up (`Spelling.ids_of`);
4. a perplexity is per word whatever the ids are: exp(nats / (words + sentences)), and `begins` says where one is counted.

>>> vocabulary.encode(b"He said so .\\n")        # Encoded(ids_N=[...], words=4, sentences=1, unknown=0)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from lm1b.data.text.tokenized import check_text, number_tokens, without_mark

VOCABULARY_NAME = "vocabulary.txt"  # what else a vocabulary needs lies beside it: files.py
WORDS_AT_ONCE = 1 << 18  # translated at a time: bounded memory, and arrays that stay in the processor's cache

Label = Literal["closed", "open"]
Kind = Literal["words", "sentencepiece"]


class Encoded(NamedTuple):
    """A text as ids. ids_N: uint32 (N,), `end_id` at every sentence's end. unknown: how many of the words are `<UNK>`."""

    ids_N: np.ndarray
    words: int
    sentences: int
    unknown: int


class Spelling(NamedTuple):
    """The ids of W distinct words, one word after another. ids_K: uint32 (K,). lengths_W: int64 (W,), how many each has; None: one."""

    ids_K: np.ndarray
    lengths_W: np.ndarray | None = None

    def part(self, first: int, last: int) -> Spelling:
        """Of words `first` to before `last`."""
        if self.lengths_W is None:
            return Spelling(self.ids_K[first:last])
        start = int(self.lengths_W[:first].sum())
        return Spelling(self.ids_K[start : start + int(self.lengths_W[first:last].sum())], self.lengths_W[first:last])

    def ids_of(self, codes_N: np.ndarray) -> np.ndarray:
        """The ids of a text that is given as numbers of these words, in ids_K's type."""
        if self.lengths_W is None:
            return self.ids_K[codes_N]
        starts_W = np.cumsum(self.lengths_W) - self.lengths_W
        parts = [self._translate(codes_N[start : start + WORDS_AT_ONCE], starts_W) for start in range(0, len(codes_N), WORDS_AT_ONCE)]
        return np.concatenate([self.ids_K[:0], *parts])

    def _translate(self, codes_N: np.ndarray, starts_W: np.ndarray) -> np.ndarray:
        assert self.lengths_W is not None
        lengths_N = self.lengths_W[codes_N]
        before_N = np.cumsum(lengths_N) - lengths_N  # ids of the words before each
        places = np.repeat(starts_W[codes_N] - before_N, lengths_N)
        return self.ids_K[places + np.arange(len(places))]


class Vocabulary(ABC):
    """Ids in order with their training counts. counts_V: int64 (V,). id_to_token: what each id stands for. kind, label: see the classes."""

    kind: ClassVar[Kind]
    counts_V: np.ndarray
    end_id: int
    unknown_id: int

    @property
    @abstractmethod
    def label(self) -> Label:
        """`closed`: `<UNK>` is a word. `open`: every word is spelled out. Figures of the two do not compare."""

    @property
    @abstractmethod
    def id_to_token(self) -> Sequence[str]:
        """The word, or piece of one, that each id stands for, in id order."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that decides which ids a text has."""

    @abstractmethod
    def spell(self, keys: pa.BinaryArray) -> Spelling:
        """Ids of distinct words, given with one trailing space (`</S> ` is the sentence's end)."""

    @abstractmethod
    def word_of(self, ids: Sequence[int]) -> str:
        """The text of one word from its ids. Bytes that are not UTF-8, which only a model can put together, become U+FFFD."""

    @abstractmethod
    def begins(self, ids_N: np.ndarray) -> np.ndarray:
        """bool (N,): where a word begins or a sentence ends, which is what a perplexity per word counts."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write `path` (vocabulary.txt) and what belongs beside it, atomically. Raises UserError where it could not be read again."""

    @property
    def size(self) -> int:
        """V, the symbols included."""
        return len(self.counts_V)

    @property
    def start_id(self) -> int:
        """Id of `<S>`, which is always the last."""
        return self.size - 1

    @property
    def token_dtype(self) -> np.dtype:
        """The narrowest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16 if self.size <= 1 << 16 else np.uint32)

    @cached_property
    def never_drawn(self) -> list[int]:
        """Ids that stand for nothing that could be written, beside `<UNK>`."""
        return [self.start_id]

    def encode(self, data: bytes, source: str = "text") -> Encoded:
        """The stream of a tokenized text. Raises UserError that names `source` where it is not UTF-8 or a line is too long."""
        check_text(data, source)
        keys, codes, _ = number_tokens(without_mark(data))
        ids_N = self.spell(keys).ids_of(codes)
        sentences = int(np.count_nonzero(ids_N == self.end_id))
        return Encoded(ids_N, len(codes) - sentences, sentences, int(np.count_nonzero(ids_N == self.unknown_id)))

    def decode(self, ids_N: np.ndarray) -> list[str]:
        """The sentences of a stream of ids as text, words parted by spaces; an unfinished last one too."""
        sentences: list[list[str]] = [[]]
        for word in np.split(ids_N, np.flatnonzero(self.begins(ids_N))[1:]) if len(ids_N) else []:
            if word[0] == self.end_id:
                sentences.append([])
            else:
                sentences[-1].append(self.word_of(word.tolist()))
        return [" ".join(words) for words in (sentences if sentences[-1] else sentences[:-1])]
