"""What is scored: a split of the token directory or text files, as one array of tokens with its counts.

Official files of the 1 Billion Word benchmark are recognised by MD5, whatever they are called, and their counts are
checked, so that a figure said to be on heldout-00000 is on heldout-00000.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from lm1b.config import Split
from lm1b.data.batches import cut_into_lanes
from lm1b.data.text.benchmark import HELD_OUT_COUNTS, VOCABULARY_SIZE, official_name_of
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.vocabulary.vocabulary import Label, Vocabulary
from lm1b.errors import UserError
from lm1b.training.evaluations import TEST_FILE, text_key

LOOKED_AT_TOGETHER = 1 << 20  # ids, which numpy makes int64


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """Whole sentences to score. tokens_N: unsigned integers (N,); sentence_ends: int64, exclusive ends in tokens_N.

    fingerprint, end_id, unknown_id, label: of the vocabulary that spells it. official: the benchmark's file that it is. is_test: whether to
    score it is a look at a test text, in whole or in part. begins_N: bool (N,), where a word begins or a sentence ends; None: everywhere,
    each id is a word.
    """

    split: Split | Literal["files"]
    files: list[str]
    tokens_N: np.ndarray
    sentence_ends: np.ndarray
    unknown: int
    fingerprint: str
    end_id: int
    unknown_id: int
    label: Label = "closed"
    official: str | None = None
    is_test: bool = False
    begins_N: np.ndarray | None = None

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, split: Split | Literal["files"], files: list[str], tokens_N: np.ndarray, ends: np.ndarray, unknown: int
    ) -> ScoredText:
        """With what the vocabulary says of it."""
        return cls(
            split=split,
            files=files,
            tokens_N=tokens_N,
            sentence_ends=ends,
            unknown=unknown,
            fingerprint=vocabulary.fingerprint,
            end_id=vocabulary.end_id,
            unknown_id=vocabulary.unknown_id,
            label=vocabulary.label,
            begins_N=None if vocabulary.kind == "words" else vocabulary.begins(tokens_N),
        )

    @property
    def key(self) -> str:
        """As `Evaluation.text_key` of a result on it."""
        return text_key(self.fingerprint, self.split, self.files, self.predictions, self.unknown)

    @property
    def sentences(self) -> int:
        """Number of sentences, each with one end to predict."""
        return len(self.sentence_ends)

    @property
    def predictions(self) -> int:
        """Words and sentences, whatever the ids: what the nats are divided by."""
        return len(self.tokens_N) if self.begins_N is None else int(np.count_nonzero(self.begins_N))

    @property
    def words(self) -> int:
        """Number of words, without the ends of sentences."""
        return self.predictions - self.sentences

    def distinct_ids(self) -> np.ndarray:
        """The ids that occur, and that of `</S>`, which stands before the first: int64, rising. No copy of a long text is made."""
        seen_V = np.zeros(max(int(self.tokens_N.max()), self.end_id) + 1, bool)
        for start in range(0, len(self.tokens_N), LOOKED_AT_TOGETHER):
            seen_V[self.tokens_N[start : start + LOOKED_AT_TOGETHER]] = True
        seen_V[self.end_id] = True
        return np.flatnonzero(seen_V)


def cut_for_scoring(text: ScoredText, state: str, lanes: int) -> list[np.ndarray]:
    """The text as sequences that start from zero state: `lanes` pieces cut at sentence ends (`carry`), or sentences (`reset`)."""
    if state == "carry":
        return cut_into_lanes(text.tokens_N, text.sentence_ends, lanes)
    return np.split(text.tokens_N, text.sentence_ends[:-1])


def text_of_split(tokens: TokenDirectory, name: Split) -> ScoredText:
    """A whole split. Raises UserError where it is empty."""
    split = tokens.split(name)
    if split.num_tokens == 0:
        raise UserError(f"the {name} split of {tokens.directory} holds no tokens; nothing to score")
    tokens_N, ends = split.joined()
    text = ScoredText.of(tokens.vocabulary, name, [shard.name for shard in split.shards], tokens_N, ends, split.num_unknown)
    if text.words != split.num_words:
        raise UserError(f"{tokens.directory}: {name} has {text.words} words, its manifest says {split.num_words}; preprocess again")
    official_names = [_official_name(source.md5) for source in tokens.manifest.made_from.texts if source.split == name]
    return _check_official(replace(text, is_test=name == "test"), official_names, tokens.vocabulary)


def digests_of_test(tokens: TokenDirectory) -> set[str | None]:
    """MD5 of the files that the test split was made from, as far as its manifest tells."""
    return {source.md5 for source in tokens.manifest.made_from.texts if source.split == "test"}


def text_of_files(vocabulary: Vocabulary, files: list[Path], of_test: Collection[str | None] = ()) -> ScoredText:
    """Tokenized text files, one sentence a line, in the given order. Raises UserError: missing, empty or not UTF-8.

    of_test: `digests_of_test` of the corpus at hand. The benchmark's own test file is known without.
    """
    parts, ends, digests, unknown, length = [], [], [], 0, 0
    for path in files:
        try:
            data = Path(path).read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; --files takes tokenized text, one sentence a line") from None
        encoded = vocabulary.encode(data, str(path))
        if encoded.sentences == 0:
            raise UserError(f"{path}: no sentence in it; nothing to score")
        ends.append(np.flatnonzero(encoded.ids_N == vocabulary.end_id) + 1 + length)
        parts.append(encoded.ids_N)
        digests.append(hashlib.md5(data, usedforsecurity=False).hexdigest())
        unknown, length = unknown + encoded.unknown, length + len(encoded.ids_N)
    names, official_names = [str(path) for path in files], [_official_name(digest) for digest in digests]
    text = ScoredText.of(vocabulary, "files", names, np.concatenate(parts), np.concatenate(ends), unknown)
    is_test = TEST_FILE in official_names or not set(of_test).isdisjoint(digests)
    return _check_official(replace(text, is_test=is_test), official_names, vocabulary)


def _official_name(md5: str | None) -> str | None:
    """The benchmark's file that has this MD5, without its folder."""
    found = official_name_of(md5)
    return found and found.rsplit("/", 1)[-1]


def _check_official(text: ScoredText, names: list[str | None], vocabulary: Vocabulary) -> ScoredText:
    """Call a single official file by its name. Raises UserError where its counts are not the official ones."""
    name = names[0] if len(names) == 1 else None
    if name is None:
        return text
    if name in HELD_OUT_COUNTS:
        found = (text.sentences, text.predictions, text.unknown)
        sentences, predictions, unknown = HELD_OUT_COUNTS[name]
        # How many words are unknown depends on the vocabulary; the published number is that of the official one.
        is_its_vocabulary = vocabulary.kind == "words" and vocabulary.size == VOCABULARY_SIZE
        expected = (sentences, predictions, unknown if is_its_vocabulary else text.unknown)
        if found != expected:
            raise UserError(
                f"{text.files[0]} is the official {name} by its MD5, but (sentences, predictions, unknown words) are {found} where the "
                f"benchmark has {expected}; run launch/preprocess.py again with another tokens.directory"
            )
    return replace(text, official=name)
