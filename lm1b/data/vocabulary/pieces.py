"""Words spelled by pieces: a SentencePiece model (Kudo and Richardson 2018) behind the interface of vocabulary.py.

1. A word is spelled on its own, as the library segments it: the best segmentation of a unigram model, the merges of BPE. No piece
   reaches over a space, so this is the segmentation of the whole sentence too, but for ties that rounding breaks otherwise.
2. A word's first piece begins with the library's mark of a space, U+2581; no other does. So the words of a stream can be counted and
   put together again. Text is never normalised; a character without a piece is spelled by its bytes. Every word comes back as it was.
3. The library would read a U+2581 in the text as a space; a word that contains U+2581 is therefore spelled as the mark followed by its
   UTF-8 bytes.
4. `open`: every word is spelled. `closed`: a word outside of a word vocabulary is the one id `<UNK>`, as it is for a word model with that
   vocabulary, so that the figures of both can be laid side by side.
5. Ids are not the library's: pieces are ranked by their training counts, ties by bytes.

On disk: `vocabulary.txt` (a head line with the SHA-256 of the others, then `piece count` lines in id order), `vocabulary.model` (the
library's own file) and, where it is closed, `vocabulary.words.txt` (the word vocabulary).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from sentencepiece import SentencePieceProcessor

from lm1b.data.text.tokenized import END, START, UNKNOWN, compute
from lm1b.data.vocabulary.vocabulary import Label, Spelling, Vocabulary
from lm1b.data.vocabulary.words import WordVocabulary
from lm1b.errors import UserError
from lm1b.files import atomic_file, digest_of_file

SPACE = "\u2581"  # the library's mark of a space
HEAD = b"lm1b-pieces 1 "  # of vocabulary.txt; a word list has no line of three words
NO_FILE = "-"
LARGEST_FILE_BYTES = 256 << 20
WORDS_TO_SPELL_TOGETHER = 1 << 16  # the library answers with lists of Python's numbers
_WHITE_SPACE = b" \t\n\r\v\f"  # these bytes part words and lines, so that no word has them


def model_path(path: Path) -> Path:
    """Path of the library's file beside vocabulary.txt (`path`)."""
    return path.with_name("vocabulary.model")


def known_words_path(path: Path) -> Path:
    """Path of the word vocabulary of a closed one, beside vocabulary.txt (`path`)."""
    return path.with_name("vocabulary.words.txt")


class Head(NamedTuple):
    """The first line of vocabulary.txt: SHA-256 of the library's file, and of the known words (None: it is open)."""

    model_sha256: str
    words_sha256: str | None

    @classmethod
    def of_line(cls, line: bytes) -> Head | None:
        """None where the line is something else."""
        fields = line.decode("ascii", "replace").split(" ")
        if not line.startswith(HEAD) or len(fields) != 4 or any(len(field) != 64 and field != NO_FILE for field in fields[2:]):
            return None
        return cls(fields[2], None if fields[3] == NO_FILE else fields[3])

    @property
    def line(self) -> bytes:
        """As the first line of vocabulary.txt."""
        return HEAD + f"{self.model_sha256} {self.words_sha256 or NO_FILE}".encode()

    def files(self, path: Path) -> dict[Path, str]:
        """The files beside vocabulary.txt and their SHA-256."""
        files = {model_path(path): self.model_sha256}
        return files | {known_words_path(path): self.words_sha256} if self.words_sha256 else files


class PieceVocabulary(Vocabulary):
    """Pieces in id order with their training counts.

    model: the library's file. order_V: int64 (V,), the library's number of each id, `<S>` the last. known: the words that are spelled;
    None: all.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, order_V: np.ndarray, counts_V: np.ndarray, known: WordVocabulary | None) -> None:
        self._model, self._known = model, known
        self._processor = SentencePieceProcessor(model_proto=model)
        assert len(order_V) == len(counts_V) == self._processor.get_piece_size()
        self.counts_V = counts_V
        self._pieces = [self._processor.id_to_piece(number) for number in order_V.tolist()]
        ids = dict(zip(self._pieces, range(len(self._pieces)), strict=True))
        self.end_id, self.unknown_id, self._space_id = ids[END], ids[UNKNOWN], ids[SPACE]
        self._ids_by_byte = np.array([ids[f"<0x{byte:02X}>"] for byte in range(256)])
        self._id_of_number = np.argsort(order_V).astype(np.uint32)
        self._is_byte = frozenset(self._ids_by_byte.tolist())
        begins = [piece.startswith(SPACE) for piece in self._pieces]
        self._begins_V = np.array(begins, dtype=bool)
        self._begins_V[[self.end_id, self.unknown_id]] = True

    @property
    def label(self) -> Label:
        """Whether `<UNK>` is a word."""
        return "open" if self._known is None else "closed"

    @property
    def id_to_token(self) -> list[str]:
        """Pieces in id order, as the library writes them."""
        return self._pieces

    @cached_property
    def fingerprint(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride] (a property, made once)
        """Hex SHA-256 of the library's file, of the known words and of the ids' order."""
        known = self._known.fingerprint if self._known else NO_FILE
        digest = hashlib.sha256(f"lm1b pieces 1\n{hashlib.sha256(self._model).hexdigest()} {known}\n".encode())
        digest.update("\n".join(self.id_to_token).encode())
        return digest.hexdigest()

    @cached_property
    def never_drawn(self) -> list[int]:
        """`<S>`, bytes that part words, and `<UNK>` where it is no word."""
        unknown = [self.unknown_id] if self._known is None else []
        return [self.start_id, *self._ids_by_byte[list(_WHITE_SPACE)].tolist(), *unknown]

    def spell(self, keys: pa.BinaryArray, threads: int = 1) -> Spelling:
        """The pieces of each word, `</S>` as itself."""
        parts = [
            self._spell(keys[start : start + WORDS_TO_SPELL_TOGETHER], threads) for start in range(0, len(keys), WORDS_TO_SPELL_TOGETHER)
        ]
        if not parts:
            return Spelling(np.zeros(0, np.uint32), np.zeros(0, np.int64))
        lengths = [part.lengths_W for part in parts if part.lengths_W is not None]
        return Spelling(np.concatenate([part.ids_K for part in parts]), np.concatenate(lengths))

    def _spell(self, keys: pa.BinaryArray, threads: int) -> Spelling:
        words = compute.binary_slice(keys, 0, -1)
        is_end = compute.equal(words, END.encode())
        is_spelled = compute.invert(is_end)
        if self._known is not None:
            is_spelled = compute.and_(is_spelled, pa.array(self._known.ids_of(keys) != self._known.unknown_id))
        symbols = np.where(is_end.to_numpy(zero_copy_only=False), self.end_id, self.unknown_id)
        spelled = np.flatnonzero(is_spelled.to_numpy(zero_copy_only=False))
        texts = words.take(pa.array(spelled)).cast(pa.string()).to_pylist()
        found = self._processor.encode(texts, num_threads=threads)
        lengths = np.ones(len(keys), np.int64)
        lengths[spelled] = np.fromiter(map(len, found), np.int64, len(found))
        marked = [(place, text) for place, text in enumerate(texts) if SPACE in text]
        for place, text in marked:
            lengths[spelled[place]] = 1 + len(text.encode())
        ids_K = np.empty(int(lengths.sum()), np.uint32)
        is_of_spelled = np.repeat(is_spelled.to_numpy(zero_copy_only=False), lengths)
        for place, _ in marked:
            found[place] = [0] * int(lengths[spelled[place]])
        numbers = np.fromiter(itertools.chain.from_iterable(found), np.int64, int(np.count_nonzero(is_of_spelled)))
        ids_K[is_of_spelled] = self._id_of_number[numbers]
        ids_K[~is_of_spelled] = np.delete(symbols, spelled)
        starts = np.cumsum(lengths) - lengths
        for place, text in marked:
            start = int(starts[spelled[place]])
            ids_K[start] = self._space_id
            ids_K[start + 1 : start + int(lengths[spelled[place]])] = self._ids_by_byte[list(text.encode())]
        return Spelling(ids_K, lengths)

    def word_of(self, ids: Sequence[int]) -> str:
        """The pieces joined, without the mark at the front."""
        pieces = [(number in self._is_byte, self._pieces[number]) for number in ids]
        parts = [bytes([int(piece[1:-1], 16)]) if is_byte else piece.encode() for is_byte, piece in pieces]  # of a byte: `<0x41>`
        return b"".join(parts).removeprefix(SPACE.encode()).decode("utf-8", "replace")

    def begins(self, ids_N: np.ndarray) -> np.ndarray:
        """The ids that begin with the mark, `</S>` and `<UNK>`."""
        return self._begins_V[ids_N]

    def save(self, path: Path) -> None:
        """Write the three files (two where it is open), vocabulary.txt last."""
        head = Head(hashlib.sha256(self._model).hexdigest(), None)
        with atomic_file(model_path(path)) as file:
            file.write(self._model)
        if self._known is not None:
            self._known.save(known_words_path(path))
            head = head._replace(words_sha256=digest_of_file(known_words_path(path)))
        lines = [f"{piece} {count}\n".encode() for piece, count in zip(self.id_to_token, self.counts_V.tolist(), strict=True)]
        with atomic_file(path) as file:
            file.write(b"".join([head.line, b"\n", *lines]))

    @classmethod
    def load(cls, path: Path, data: bytes) -> PieceVocabulary:
        """data: of vocabulary.txt. Raises UserError where the files are not those of one vocabulary written by preprocessing."""
        first, *lines = data.split(b"\n")
        head = Head.of_line(first)
        if head is None or lines[-1:] != [b""]:
            raise _damaged(path)
        for beside, sha256 in head.files(path).items():
            found = digest_of_file(beside) if beside.is_file() and beside.stat().st_size <= LARGEST_FILE_BYTES else "no file"
            if found != sha256:
                raise UserError(f"{beside}: belongs to {path.name} with SHA-256 {sha256}, found {found}; run launch/preprocess.py again")
        fields = [line.rpartition(b" ") for line in lines[:-1]]
        model = model_path(path).read_bytes()
        known = WordVocabulary.load(known_words_path(path)) if head.words_sha256 else None
        try:
            processor = SentencePieceProcessor(model_proto=model)
            order_V = np.array([processor.piece_to_id(piece.decode()) for piece, _, _ in fields])
            counts_V = np.array([int(count) for _, _, count in fields], dtype=np.int64)
            if np.array_equal(np.sort(order_V), np.arange(processor.get_piece_size())) and fields[-1][0] == START.encode():
                return cls(model, order_V, counts_V, known)
        except (ValueError, RuntimeError, OverflowError, IndexError, KeyError):
            pass
        raise _damaged(path)


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: not a vocabulary of pieces written by preprocessing: run launch/preprocess.py again")
