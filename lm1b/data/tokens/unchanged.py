"""Whether the corpus that the config names is still the one the shards were made of, as far as this machine can tell.

1. The vocabulary's settings must be those of the manifest, and so must a given vocabulary file, where it is on this machine.
2. Training needs only the shards, so where the corpus is not on this machine, nothing else is checked.
3. Where it is, names and sizes must be those of the preprocessed files. For an archive, and for raw text, of which no SHA-256 was taken as
   it stands, that is all.
4. Files whose time of change is another, as after a copy, are read once, and that they are the same is remembered (verified.py).
"""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm1b.config import Config
from lm1b.config.text import LOCAL_SOURCES
from lm1b.data.text.benchmark import TARBALL_NAME, TRAINING_FOLDER
from lm1b.data.text.corpus import Corpus, TextChunk
from lm1b.data.text.sources import converted_origin, is_converted, open_corpus
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.manifest import CountedText
from lm1b.data.tokens.verified import HashMemory, status_of
from lm1b.errors import UserError
from lm1b.files import digest_of_file

WHAT_TO_DO = "run launch/preprocess.py again, or name the corpus the shards were made of"


@dataclass(frozen=True)
class _MadeFile:
    """A corpus file as preprocessing saw it, and what was found in its chunks."""

    name: str
    num_bytes: int
    changed_ns: int
    chunks: list[CountedText]


def check_corpus_unchanged(config: Config, tokens: TokenDirectory) -> None:
    """Raise UserError naming the first corpus file that is not what `tokens` were made of; do nothing where the corpus is not here."""
    origin = tokens.manifest.made_from.origin
    _check_vocabulary(config, tokens)
    if not origin or not _corpus_is_at_hand(config):
        return
    if is_converted(config.corpus) or "rules" in origin:
        _check_converted(config, origin, tokens)
        return
    corpus = open_corpus(config.corpus)
    if corpus.origin == origin:
        return
    if "archive" in corpus.origin:
        _check_archive(str(config.corpus.path), corpus.origin, origin)
    else:
        _check_files(corpus, tokens)


def _check_vocabulary(config: Config, tokens: TokenDirectory) -> None:
    """Settings of the vocabulary, and the given file where it is on this machine."""
    if not tokens.manifest.made_from.vocabulary:
        return  # something else than preprocessing made it
    then: dict[str, Any] = {"kind": tokens.manifest.vocabulary.kind} | tokens.manifest.made_from.vocabulary
    then = then | (then.get("closed") or {}) | {"closed": then.get("closed") is not None}
    file, file_sha256 = config.vocabulary.file, then.get("file_sha256")
    if (file is None) != (file_sha256 is None):
        made = "without" if file_sha256 is None else "with"
        raise UserError(f"{tokens.directory}: made {made} a given vocabulary, the config has vocabulary.file={file}; {WHAT_TO_DO}")
    for name, value in then.items():
        now = getattr(config.vocabulary, name, value)
        if value != now:
            raise UserError(f"{tokens.directory}: made with vocabulary.{name}={value}, the config has {now}; {WHAT_TO_DO}")
    if file is not None and Path(file).is_file() and (found := digest_of_file(Path(file))) != file_sha256:
        raise UserError(
            f"{file}: not the vocabulary that the shards were made with, SHA-256 expected {file_sha256}, found {found}; {WHAT_TO_DO}"
        )


def _corpus_is_at_hand(config: Config) -> bool:
    """Whether anything of the corpus is on this machine. An empty folder is one that is not mounted."""
    corpus = config.corpus
    if corpus.kind == "news_sample":
        return True  # its text is pinned by the program
    if corpus.kind == "lm1b":
        path = Path(str(corpus.path))
        return path.is_file() or any((folder / TRAINING_FOLDER).is_dir() for folder in (path, path / TARBALL_NAME.removesuffix(".tar.gz")))
    if corpus.kind == "datasets" and corpus.source not in LOCAL_SOURCES:
        return False  # the hub is not asked again
    names = [name for of_split in (corpus.train, corpus.validation, corpus.test) for name in of_split or []]
    return any(Path(name).exists() or (corpus.kind == "datasets" and glob.glob(name)) for name in names)


def _check_converted(config: Config, origin: dict[str, Any], tokens: TokenDirectory) -> None:
    """Raw text and rows: rules, settings, names and sizes."""
    kind = tokens.corpus["kind"]
    if not is_converted(config.corpus) or "rules" not in origin or config.corpus.kind != kind:
        raise UserError(f"{tokens.directory}: made of another kind of corpus ({kind}) than the config names; {WHAT_TO_DO}")
    now = converted_origin(config.corpus)
    for key, value in now.items():
        if key != "files" and origin.get(key) != value:
            raise UserError(f"{tokens.directory}: made with {key}={origin.get(key)}, now it would be {value}; {WHAT_TO_DO}")
    then = [file[:2] for file in origin.get("files", [])]
    for number, (name, size, _) in enumerate(now.get("files", [])):
        if number >= len(then) or then[number] != [name, size]:
            raise _changed(name, then[number] if number < len(then) else None, [name, size])
    if len(now.get("files", [])) < len(then):
        raise UserError(f"{then[len(now['files'])][0]}: {tokens.directory} was made of it too, the config does not name it; {WHAT_TO_DO}")


def _check_archive(path: str, now: dict[str, Any], then: dict[str, Any]) -> None:
    """An archive: its name and size."""
    if "archive" not in then:
        raise UserError(f"{path}: the shards were made of files, not of this archive; {WHAT_TO_DO}")
    was, found = ([origin["archive"], origin["bytes"]] for origin in (then, now))
    if was != found:
        raise _changed(path, was, found)


def _check_files(corpus: Corpus, tokens: TokenDirectory) -> None:
    """Files: names and sizes, and where one was touched or copied since, what is in it."""
    then = _made_files(tokens)
    now: dict[str, TextChunk] = {}
    for chunk in corpus.chunks(lambda num_bytes: None):
        now.setdefault(chunk.shard.partition(".")[0], chunk)
    for shard, chunk in now.items():
        made = then.get(shard)
        found = [Path(chunk.source).name, chunk.file_bytes]
        if made is None or [made.name, made.num_bytes] != found:
            raise _changed(chunk.source, [made.name, made.num_bytes] if made else None, found)
    if missing := sorted(then.keys() - now.keys()):
        raise UserError(f"{then[missing[0]].name}: {tokens.directory} was made of it too, now it is empty or not named; {WHAT_TO_DO}")
    memory = HashMemory()
    try:
        for shard, chunk in now.items():
            if chunk.changed_ns != then[shard].changed_ns:
                _check_contents(chunk, then[shard], memory)
    finally:
        memory.save()


def _made_files(tokens: TokenDirectory) -> dict[str, _MadeFile]:
    """Shard name, without the number of a chunk -> the file it was made of."""
    files: dict[str, _MadeFile] = {}
    for text in tokens.manifest.made_from.texts:
        made = _MadeFile(text.identity.name, text.identity.bytes, text.identity.changed_ns, [])
        files.setdefault(text.shard.partition(".")[0], made).chunks.append(text)
    return files


def _check_contents(chunk: TextChunk, made: _MadeFile, memory: HashMemory) -> None:
    """Hash a file as preprocessing did, chunk by chunk, or remember that this was done."""
    assert chunk.path is not None
    expected = _together([text.sha256 for text in made.chunks])
    if memory.remembers(chunk.path, expected):
        return
    before, found = status_of(chunk.path), []
    for text in made.chunks:
        chunk_then = replace(chunk, start=text.identity.start, stop=text.identity.stop)
        found.append(hashlib.sha256(chunk_then.read()).hexdigest())
        if found[-1] != text.sha256:
            raise UserError(f"{chunk.source}: changed since preprocessing, SHA-256 expected {text.sha256}, found {found[-1]}; {WHAT_TO_DO}")
    memory.note(chunk.path, before, _together(found))


def _together(sums: list[str]) -> str:
    """One SHA-256 for a file: its own, or where it was cut into chunks that of theirs."""
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def _changed(source: str, then: list[Any] | None, now: list[Any]) -> UserError:
    """A file that is another by name or size."""
    was = f"it was {then[0]} of {then[1]:,} bytes, it is {now[0]} of {now[1]:,}" if then else "the shards were not made of it"
    return UserError(f"{source}: changed since preprocessing ({was}); {WHAT_TO_DO}")
