"""The manifest of a tokens directory: what it says of itself, and what must hold before any of it is believed.

    {"format": "lm1b-tokens", "version": 3,
     "vocabulary": {"kind": "words", "label": "closed", "size": 6, "fingerprint": "1b0b...", "sha256": "a680..."},
     "token_dtype": "uint16", "tokens_sha256": "128e...",
     "corpus": {"kind": "text", "official": false, "files": [{"split": "train", "name": "a.txt", "bytes": 28, "sha256": "18d4..."}]},
     "splits": {"train": {"num_tokens": 10, "num_words": 8, "num_sentences": 2, "num_unknown": 2,
                          "shards": [{"name": "train-00000", "num_tokens": 10, ..., "tokens_bytes": 148, "tokens_sha256": "900b...",
                                      "ends_bytes": 144, "ends_sha256": "fd76...",
                                      "tokens_pieces": ["900b..."], "ends_pieces": ["fd76..."]}]},
                "validation": ..., "test": ...},
     "made_from": {"version": 3, "origin": {...}, "vocabulary": {"minimum_count": 2}, "pieces": [{"split": "train", ...}]},
     "seal": "d1c5..."}

1. `Manifest.of` makes one, `write` seals it: a flipped bit is found.
2. `Manifest.read` believes nothing: every number and name is checked, since names become paths and numbers become sizes.
3. The classes here are the only description of the format. Where the file has another word than the code, the field's alias is the file's:
   "pieces" are 64 KiB pages of a shard's file (`tokens_pages`, `ends_pages`), or the chunks of text that were counted (`MadeFrom.texts`);
   "num_tokens" of such a chunk is the length of its stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm1b.config import SPLITS, Split
from lm1b.data.text.corpus import FileRange
from lm1b.errors import UserError
from lm1b.files import read_sealed_json, write_sealed_json

if TYPE_CHECKING:
    from lm1b.data.vocabulary.vocabulary import Vocabulary

FORMAT: Literal["lm1b-tokens"] = "lm1b-tokens"
VERSION: Literal[3] = 3  # 2: sealed; 3: a SHA-256 of every page of a shard's files, so that a part of one can be verified
MANIFEST_NAME = "manifest.json"
PAGE_BYTES = 64 << 10  # what has a checksum of its own; part of the format. A block of 65,536 tokens is 2 to 4 pages

# The pages' checksums are most of it: a shard of 42 MB of text, as a file of the benchmark is, takes 43 kB, so this is enough for 1 TB.
# Reading takes 4 times as much memory as the file has bytes (measured); where it is none of ours (nothing but `{},`), 25 times.
LARGEST_MANIFEST_BYTES = 1 << 30

# Of a shard: one is made of at most 64 MB of text, which is 64 M ids of 4 bytes or empty sentences of 8. A manifest whose shards name
# the same few pages over and over would otherwise have a reader join them into any number of bytes.
LARGEST_FILE_BYTES = 1 << 30

_Count = Annotated[int, Field(ge=0, lt=1 << 48)]
_FileBytes = Annotated[int, Field(ge=0, le=LARGEST_FILE_BYTES)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Record(BaseModel):
    """A part of the manifest: no key is missing or unknown, nothing is converted, nothing changes later."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def as_json(self) -> dict[str, Any]:
        """As it stands in a file."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class VocabularyFacts(Record):
    """Which vocabulary the ids are of. sha256: of vocabulary.txt."""

    kind: Literal["words", "sentencepiece"] = "words"
    label: Literal["closed", "open"] = "closed"
    size: Annotated[int, Field(ge=3, lt=1 << 31)]
    fingerprint: _Sha256
    sha256: _Sha256


class Shard(Record):
    """One shard. num_tokens: ids; num_words + num_sentences of them, or more where words have several. Bytes and hashes: of the .npy files.

    tokens_pages, ends_pages: SHA-256 of every PAGE_BYTES of those files, for whoever reads only a part (remote.py).
    """

    name: _Name
    num_tokens: _Count
    num_words: _Count
    num_sentences: _Count
    num_unknown: _Count
    tokens_bytes: _FileBytes
    tokens_sha256: _Sha256
    ends_bytes: _FileBytes
    ends_sha256: _Sha256
    tokens_pages: list[_Sha256] = Field(alias="tokens_pieces")
    ends_pages: list[_Sha256] = Field(alias="ends_pieces")

    @model_validator(mode="after")
    def _adds_up(self) -> Shard:
        if self.num_tokens < self.stream_length or self.num_unknown > self.num_words:
            raise ValueError("its numbers of tokens, words, sentences and unknown words do not add up")
        for size, pages in ((self.tokens_bytes, self.tokens_pages), (self.ends_bytes, self.ends_pages)):
            if len(pages) != -(-size // PAGE_BYTES):
                raise ValueError(f"its {size} bytes are not {len(pages)} pages of {PAGE_BYTES}")
        return self

    @property
    def stream_length(self) -> int:
        """Words and sentence ends: what a perplexity per word counts."""
        return self.num_words + self.num_sentences

    @property
    def tokens_name(self) -> str:
        """Name of the file of ids."""
        return f"{self.name}.tokens.npy"

    @property
    def ends_name(self) -> str:
        """Name of the file of sentence ends."""
        return f"{self.name}.ends.npy"

    def files(self, directory: Path) -> Iterator[tuple[Path, int, str]]:
        """(path, size in bytes, SHA-256) of both files."""
        yield directory / self.tokens_name, self.tokens_bytes, self.tokens_sha256
        yield directory / self.ends_name, self.ends_bytes, self.ends_sha256

    def is_there(self, directory: Path) -> bool:
        """Whether both files are there with their size (contents are not read)."""
        return all(path.is_file() and path.stat().st_size == size for path, size, _ in self.files(directory))


class SplitShards(Record):
    """The shards of one split, in the corpus's order, and their totals."""

    num_tokens: _Count
    num_words: _Count
    num_sentences: _Count
    num_unknown: _Count
    shards: list[Shard]

    @classmethod
    def of(cls, shards: list[Shard]) -> SplitShards:
        """With the totals added up."""
        return cls(**_totals_of(shards), shards=shards)

    @model_validator(mode="after")
    def _adds_up(self) -> SplitShards:
        if any(getattr(self, name) != total for name, total in _totals_of(self.shards).items()):
            raise ValueError("its totals are not those of its shards")
        return self


def _totals_of(shards: list[Shard]) -> dict[str, int]:
    names = ("num_tokens", "num_words", "num_sentences", "num_unknown")
    return {name: sum(getattr(shard, name) for shard in shards) for name in names}


class CountedText(Record):
    """First-pass result of a chunk of text. sha256, md5: of its bytes (md5 where held out, or where the benchmark has a file of
    that name). stream_length: words and sentence ends.
    """

    split: Split
    shard: _Name
    identity: FileRange
    official_name: str | None
    num_bytes: _Count
    sha256: _Sha256
    md5: str | None
    stream_length: _Count = Field(alias="num_tokens")


class MadeFrom(Record):
    """Text and settings, compared to see whether anything has changed; all absent in a directory that something else made.

    origin: of the corpus. vocabulary: its settings. texts: every chunk of text, in the corpus's order.
    """

    version: int | None = None
    origin: dict[str, Any] = {}
    vocabulary: dict[str, Any] = {}
    texts: list[CountedText] = Field(default=[], alias="pieces")

    @classmethod
    def of(cls, origin: dict[str, Any], vocabulary: dict[str, Any]) -> MadeFrom:
        """Of a corpus and settings that this version makes shards from."""
        return cls(version=VERSION, origin=origin, vocabulary=vocabulary)

    def is_same(self, other: MadeFrom) -> bool:
        """Whether text and settings seem to be the same."""
        return (self.version, self.origin, self.vocabulary) == (other.version, other.origin, other.vocabulary)

    def with_texts(self, texts: list[CountedText]) -> MadeFrom:
        """The same, with what was found in each chunk."""
        return self.model_copy(update={"texts": texts})


class CorpusFacts(BaseModel):
    """Identifies the corpus, wherever it lies; further keys say more of it and are only ever compared."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    kind: str
    official: bool

    @classmethod
    def of(cls, kind: str, official: bool, texts: list[CountedText]) -> CorpusFacts:
        """Of a corpus that was counted: every file's split, name, bytes and SHA-256 as well."""
        files = [
            {"split": text.split, "name": text.official_name or text.identity.name, "bytes": text.num_bytes, "sha256": text.sha256}
            for text in texts
        ]
        return cls.model_validate({"kind": kind, "official": official, "files": files})


class Manifest(Record):
    """A whole tokens directory."""

    format: Literal["lm1b-tokens"]
    version: Literal[3]
    vocabulary: VocabularyFacts
    token_dtype: Literal["uint16", "uint32"]
    tokens_sha256: _Sha256
    corpus: CorpusFacts
    splits: dict[Split, SplitShards]
    made_from: MadeFrom

    @model_validator(mode="after")
    def _has_all_splits(self) -> Manifest:
        if len(self.splits) != len(SPLITS):
            raise ValueError("expected the splits train, validation and test")
        return self

    @model_validator(mode="after")
    def _has_an_id_a_word(self) -> Manifest:
        if self.vocabulary.kind == "words" and any(shard.num_tokens != shard.stream_length for shard in self.shards()):
            raise ValueError("the numbers of tokens, words, sentences and unknown words of a shard do not add up")
        return self

    def shards(self) -> Iterator[Shard]:
        """The shards of all splits."""
        return (shard for name in SPLITS for shard in self.splits[name].shards)

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, vocabulary_sha256: str, shards: dict[Split, list[Shard]], corpus: CorpusFacts, made_from: MadeFrom
    ) -> Manifest:
        """The manifest of a complete directory. vocabulary_sha256: of vocabulary.txt."""
        facts = VocabularyFacts(
            kind=vocabulary.kind,
            label=vocabulary.label,
            size=vocabulary.size,
            fingerprint=vocabulary.fingerprint,
            sha256=vocabulary_sha256,
        )
        hashes = "".join(shard.tokens_sha256 for name in SPLITS for shard in shards[name])
        return cls(
            format=FORMAT,
            version=VERSION,
            vocabulary=facts,
            token_dtype=cast(Literal["uint16", "uint32"], vocabulary.token_dtype.name),
            tokens_sha256=hashlib.sha256(hashes.encode()).hexdigest(),
            corpus=corpus,
            splits={name: SplitShards.of(shards[name]) for name in SPLITS},
            made_from=made_from,
        )

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest at `path`, sound and of this version. Raises UserError that names the file and what is wrong with it."""
        try:
            manifest = read_sealed_json(path, LARGEST_MANIFEST_BYTES)
        except UserError as error:
            raise UserError(f"{error}; run launch/preprocess.py again") from None
        if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
            raise UserError(f"{path}: expected format {FORMAT} version {VERSION}; run launch/preprocess.py again")
        try:
            return cls.model_validate(manifest)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(map(str, problem["loc"]))
            raise UserError(f"{path}: not a manifest of tokens ({where}: {problem['msg']}); run launch/preprocess.py again") from None

    def write(self, path: Path) -> None:
        """Write it with its seal, atomically. Raises UserError where the corpus is too large for one."""
        try:
            write_sealed_json(path, self.as_json(), largest_bytes=LARGEST_MANIFEST_BYTES)
        except UserError as error:
            raise UserError(f"{error}: the corpus is too large for one tokens.directory; give less text") from None
