"""The manifest of a tokens directory: what it must look like before anything in it is believed.

It is sealed (a flipped bit is found), and every number and name is checked, since names become paths and numbers become sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lm1b.config import Split
from lm1b.errors import UserError
from lm1b.files import read_sealed_json

FORMAT = "lm1b-tokens"
VERSION = 3  # 2: sealed; 3: a SHA-256 of every page of a shard's files, so that a part of one can be verified
MANIFEST_NAME = "manifest.json"
PAGE_BYTES = 64 << 10  # what has a checksum of its own; part of the format. A block of 65,536 tokens is 2 to 4 pages

# Of a shard: one is made of at most 64 MB of text, which is 64 M ids of 4 bytes or empty sentences of 8. A manifest whose shards name
# the same few pages over and over would otherwise have a reader join them into any number of bytes.
LARGEST_FILE_BYTES = 1 << 30

_Count = Annotated[int, Field(ge=0, lt=1 << 48)]
_FileBytes = Annotated[int, Field(ge=0, le=LARGEST_FILE_BYTES)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Vocabulary(_Record):
    kind: Literal["words", "sentencepiece"] = "words"
    label: Literal["closed", "open"] = "closed"
    size: Annotated[int, Field(ge=3, lt=1 << 31)]
    fingerprint: _Sha256
    sha256: _Sha256


class _Shard(_Record):
    name: _Name
    num_tokens: _Count
    num_words: _Count
    num_sentences: _Count
    num_unknown: _Count
    tokens_bytes: _FileBytes
    tokens_sha256: _Sha256
    ends_bytes: _FileBytes
    ends_sha256: _Sha256
    tokens_pieces: list[_Sha256]
    ends_pieces: list[_Sha256]

    @model_validator(mode="after")
    def _adds_up(self) -> _Shard:
        if self.num_tokens < self.num_words + self.num_sentences or self.num_unknown > self.num_words:
            raise ValueError("its numbers of tokens, words, sentences and unknown words do not add up")
        for size, pages in ((self.tokens_bytes, self.tokens_pieces), (self.ends_bytes, self.ends_pieces)):
            if len(pages) != -(-size // PAGE_BYTES):
                raise ValueError(f"its {size} bytes are not {len(pages)} pages of {PAGE_BYTES}")
        return self


class _Split(_Record):
    num_tokens: _Count
    num_words: _Count
    num_sentences: _Count
    num_unknown: _Count
    shards: list[_Shard]


class _Identity(_Record):
    """Where a chunk of text begins and ends in its file, the file's name, size and time of change."""

    name: str
    start: _Count
    stop: _Count
    bytes: _Count
    changed_ns: int


class _Piece(_Record):
    split: Split
    shard: _Name
    identity: _Identity
    official_name: str | None
    num_bytes: _Count
    sha256: _Sha256
    md5: str | None
    num_tokens: _Count


class _MadeFrom(_Record):
    """What preprocessing compares; all absent in a directory that something else made."""

    version: int | None = None
    origin: dict[str, Any] = {}
    vocabulary: dict[str, Any] = {}
    pieces: list[_Piece] = []


class _Corpus(BaseModel):
    model_config = ConfigDict(strict=True)  # further keys say more of the corpus and are only ever compared
    kind: str
    official: bool


class _Manifest(_Record):
    format: Literal["lm1b-tokens"]
    version: Literal[3]
    vocabulary: _Vocabulary
    token_dtype: Literal["uint16", "uint32"]
    tokens_sha256: _Sha256
    corpus: _Corpus
    splits: dict[Split, _Split]
    made_from: _MadeFrom

    @model_validator(mode="after")
    def _has_all_splits(self) -> _Manifest:
        if len(self.splits) != 3:
            raise ValueError("expected the splits train, validation and test")
        return self

    @model_validator(mode="after")
    def _has_an_id_a_word(self) -> _Manifest:
        shards = [shard for split in self.splits.values() for shard in split.shards]
        if self.vocabulary.kind == "words" and any(shard.num_tokens != shard.num_words + shard.num_sentences for shard in shards):
            raise ValueError("the numbers of tokens, words, sentences and unknown words of a shard do not add up")
        return self


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest at `path`, sound and of this version. Raises UserError that names the file and what is wrong with it."""
    try:
        manifest = read_sealed_json(path)
    except UserError as error:
        raise UserError(f"{error}; run launch/preprocess.py again") from None
    if (manifest.get("format"), manifest.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{path}: expected format {FORMAT} version {VERSION}; run launch/preprocess.py again")
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(f"{path}: not a manifest of tokens ({where}: {problem['msg']}); run launch/preprocess.py again") from None
    return manifest
