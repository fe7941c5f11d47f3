"""Token shards: what preprocessing writes and training reads.

1. A tokens directory holds `manifest.json` (written last), `vocabulary.txt` (of pieces also `vocabulary.model`, and `vocabulary.words.txt`
   where it is closed) and, for every shard, `NAME.tokens.npy` (ids,
   uint16 where the vocabulary fits, else uint32) and `NAME.ends.npy` (int64: where each sentence ends, exclusive).
2. `write_shard` writes one pair of files atomically and returns its `Shard`.
3. `TokenDirectory.open` reads the manifest and checks format, vocabulary and file sizes; `verify` also checks every SHA-256;
   `verify_once` does that for what this machine has not verified before.
4. `TokenSplit.tokens(i)` maps shard i into memory: nothing is read until it is used.

>>> tokens = TokenDirectory.open(Path("data/tokens"))
>>> tokens.split("validation").num_tokens          # words + sentences = predictions, or more where words have several ids
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lm1b.config import Split
from lm1b.data.tokens.arrays import digests_of_pages, map_array, write_array
from lm1b.data.tokens.manifest import MANIFEST_NAME, Manifest, Shard, SplitShards
from lm1b.data.tokens.verified import HashMemory
from lm1b.data.vocabulary.files import check_vocabulary, load_vocabulary
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME, Vocabulary
from lm1b.errors import UserError


def write_shard(directory: Path, name: str, tokens: np.ndarray, end_id: int, unknown_id: int, *, stream_length: int | None = None) -> Shard:
    """Write the shard `name`. tokens: uint16 or uint32 (n,), ending with `end_id`. Raises OSError where the disk is full.

    stream_length: words and sentence ends; None: n, every id is one.
    """
    ends = np.flatnonzero(tokens == end_id).astype(np.int64) + 1
    assert len(tokens) == (int(ends[-1]) if len(ends) else 0), "a shard holds whole sentences"
    ends_bytes, ends_sha256 = write_array(directory / f"{name}.ends.npy", ends)
    tokens_bytes, tokens_sha256 = write_array(directory / f"{name}.tokens.npy", tokens)
    return Shard(
        name=name,
        num_tokens=len(tokens),
        num_words=(len(tokens) if stream_length is None else stream_length) - len(ends),
        num_sentences=len(ends),
        num_unknown=int(np.count_nonzero(tokens == unknown_id)),
        tokens_bytes=tokens_bytes,
        tokens_sha256=tokens_sha256,
        ends_bytes=ends_bytes,
        ends_sha256=ends_sha256,
        tokens_pieces=digests_of_pages(tokens),
        ends_pieces=digests_of_pages(ends),
    )


class TokenArray(Protocol):
    """A shard's ids, wherever they lie: slices of it are arrays."""

    def __getitem__(self, part: slice, /) -> np.ndarray: ...

    def __len__(self) -> int: ...


class TokenSplit:
    """The shards of one split, in the corpus's order."""

    can_prefetch = False  # whether `prefetch` does anything

    def __init__(self, name: str, folder: Path, split: SplitShards, token_dtype: np.dtype) -> None:
        self.name = name
        self._folder = folder
        self.shards = split.shards
        self.token_dtype = token_dtype
        self.num_tokens, self.num_words = split.num_tokens, split.num_words
        self.num_sentences, self.num_unknown = split.num_sentences, split.num_unknown

    @property
    def tokens_per_word(self) -> float:
        """Ids that a word, or the end of a sentence, has on average: 1 exactly where every word has one."""
        return self.num_tokens / (self.num_words + self.num_sentences)

    def tokens(self, index: int) -> TokenArray:
        """Ids of shard `index`: uint16 or uint32 (n,), read-only; here mapped, elsewhere whatever gives an array for a slice."""
        return map_array(self._folder / self.shards[index].tokens_name, self.token_dtype, self.shards[index].num_tokens)

    def sentence_ends(self, index: int) -> np.ndarray:
        """Where each sentence of shard `index` ends, exclusive: int64 (num_sentences,), mapped, read-only."""
        return map_array(self._folder / self.shards[index].ends_name, np.dtype(np.int64), self.shards[index].num_sentences)

    def prefetch(self, index: int, start: int, stop: int) -> None:
        """Ids start to before stop of shard `index` are read soon. Files of this machine need no fetching."""

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """All shards one after another, in memory: (ids, sentence ends int64). For held-out splits."""
        tokens = [self.tokens(index)[:] for index in range(len(self.shards))]
        starts = np.cumsum([0] + [len(part) for part in tokens])
        ends = [self.sentence_ends(index) + starts[index] for index in range(len(self.shards))]
        return np.concatenate(tokens), np.concatenate(ends)


class TokenDirectory:
    """A complete folder of vocabulary and token shards.

    directory: as its user names it, a path or a URL. folder: where the vocabulary, and here the shards too, lie on this machine.
    """

    def __init__(self, folder: Path, manifest: Manifest, directory: Path | str | None = None) -> None:
        self.directory = folder if directory is None else directory
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, directory: Path) -> TokenDirectory:
        """Read and check the manifest. Raises UserError where the folder is not complete or its parts do not belong together."""
        directory = Path(directory)
        path = directory / MANIFEST_NAME
        if not path.is_file():
            raise UserError(
                f"{directory}: no {MANIFEST_NAME}, so no prepared tokens here: run `python launch/preprocess.py --config ...` first"
            )
        tokens = cls(directory, Manifest.read(path))
        tokens._check_files()
        return tokens

    def _files(self) -> Iterator[tuple[Path, int, str]]:
        """(path, size in bytes, SHA-256) of every shard's files."""
        for shard in self.manifest.shards():
            yield from shard.files(self.folder)

    def _check_files(self) -> None:
        """The vocabulary is the manifest's, and every shard has its size."""
        check_vocabulary(self.folder / VOCABULARY_NAME, self.manifest.vocabulary.sha256)
        for path, size, _ in self._files():
            if not path.is_file():
                raise UserError(f"{path}: this shard is missing: run launch/preprocess.py again")
            if path.stat().st_size != size:
                raise UserError(f"{path}: damaged, {size} bytes expected, found {path.stat().st_size}: run launch/preprocess.py again")

    def _refuse(self, path: Path, expected: str, found: str) -> UserError:
        """The error for a shard whose SHA-256 is another."""
        others = {sha256: other.name for other, _, sha256 in self._files()}
        swapped = f" (which is that of {others[found]})" if found in others else ""
        return UserError(
            f"{path}: damaged, SHA-256 expected {expected}, found {found}{swapped}: delete it and run launch/preprocess.py again"
        )

    def verify(self) -> None:
        """Check the SHA-256 of the vocabulary and of every shard, whatever was found before. Raises UserError that names the first
        damaged file.
        """
        self._check_files()
        self._hash(list(self._files()), HashMemory())

    def verify_once(self, index: int = 0, count: int = 1) -> int:
        """Check the SHA-256 of this process's share of the shards: those `index`, `index + count`, ... -> files that had to be read.

        A file that this machine has verified before and that has not been touched since is not read. Raises UserError as `verify` does.
        """
        memory = HashMemory()
        files = [file for file in list(self._files())[index::count] if not self._is_known(file, memory)]
        self._hash(files, memory)
        return len(files)

    def _is_known(self, file: tuple[Path, int, str], memory: HashMemory) -> bool:
        path, size, sha256 = file
        try:
            return path.stat().st_size == size and memory.remembers(path, sha256)
        except FileNotFoundError:
            raise UserError(f"{path}: this shard is missing: run launch/preprocess.py again") from None

    def _hash(self, files: list[tuple[Path, int, str]], memory: HashMemory) -> None:
        try:
            for path, _, expected in files:
                if (found := memory.digest_of(path)) != expected:
                    raise self._refuse(path, expected, found)
        finally:
            memory.save()

    @property
    def fingerprint(self) -> str:
        """The vocabulary's fingerprint."""
        return self.manifest.vocabulary.fingerprint

    @property
    def corpus(self) -> dict[str, Any]:
        """The corpus's identity: kind, whether official, and every file's split, name, bytes and SHA-256."""
        return self.manifest.corpus.model_dump(exclude_unset=True)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary, read when first asked for. Raises UserError where it is not the shards'."""
        vocabulary = load_vocabulary(self.folder / VOCABULARY_NAME)
        if vocabulary.fingerprint != self.fingerprint:
            raise UserError(
                f"{self.folder / VOCABULARY_NAME}: its fingerprint {vocabulary.fingerprint[:12]} is not the shards' "
                f"{self.fingerprint[:12]}: run launch/preprocess.py again"
            )
        return vocabulary

    def split(self, name: Split) -> TokenSplit:
        """The shards of `train`, `validation` or `test`."""
        return TokenSplit(name, self.folder, self.manifest.splits[name], np.dtype(self.manifest.token_dtype))
