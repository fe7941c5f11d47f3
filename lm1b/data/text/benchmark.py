"""The 1 Billion Word benchmark (Chelba et al. 2013, arXiv 1312.3005): what is known of it, and its text, from a folder or its archive.

1. What is known: the archive's name and SHA-256, the MD5 of every file (official_md5.txt), the published counts.
2. The layout, with any number M of files: `training-monolingual.tokenized.shuffled/news.en-000NN-of-M` train,
   `heldout-.../news.en.heldout-00001-of-K` validates and `-00000-` tests. `news.en-00000-of-M` in the held-out folder is the unsplit
   whole of it and is left alone.
3. `open_benchmark` gives that text as chunks: of an extracted folder's files, or straight from the archive, read from front to back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO, Any

from lm1b.config import Split
from lm1b.data.text.archive import read_members, refusing_damage
from lm1b.data.text.corpus import CHUNK_BYTES, Corpus, FilesCorpus, SourceFile, TextChunk, read_line
from lm1b.errors import UserError

TARBALL_NAME = "1-billion-word-language-modeling-benchmark-r13output.tar.gz"
TARBALL_SHA256 = "01ba60381110baf7f189dfd2b8374de371e8c9a340835793f190bdae9e90a34e"
TARBALL_ADDRESS = f"http://www.statmt.org/lm-benchmark/{TARBALL_NAME}"

TRAINING_FOLDER = "training-monolingual.tokenized.shuffled"
HELD_OUT_FOLDER = "heldout-monolingual.tokenized.shuffled"

NUM_TRAINING_FILES = 99
NUM_TRAINING_SENTENCES = 30_301_028
NUM_TRAINING_TOKENS = 798_949_912  # words and one end mark a sentence
VOCABULARY_SIZE = 793_471  # words of count 3 or more, <S>, </S>, <UNK>
VOCABULARY_MINIMUM_COUNT = 3

# Held-out files whose counts are published: (sentences, predictions, unknown words).
HELD_OUT_COUNTS = {
    "news.en.heldout-00000-of-00050": (6_075, 159_658, 446),
    "news.en.heldout-00001-of-00050": (6_206, 165_560, 524),
}

_TRAINING_FILE = re.compile(re.escape(TRAINING_FOLDER) + r"/news\.en-([0-9]{5})-of-([0-9]{5})\Z")
_HELD_OUT_FILE = re.compile(re.escape(HELD_OUT_FOLDER) + r"/news\.en\.heldout-([0-9]{5})-of-([0-9]{5})\Z")
_HELD_OUT_SPLITS: dict[int, Split] = {0: "test", 1: "validation"}
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")
_TEXT_IN_A_PACKED_BYTE = 2.4  # of English

HOW_TO_GET_IT = f"get {TARBALL_ADDRESS} (SHA-256 {TARBALL_SHA256}) and name it, or the folder extracted from it, in corpus.path"


@cache
def official_md5() -> dict[str, str]:
    """`folder/file` -> MD5 of every training and held-out file of the benchmark."""
    text = resources.files("lm1b.data.text").joinpath("official_md5.txt").read_text(encoding="utf-8")
    pairs = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {name: md5 for md5, name in pairs}


def official_name_of(md5: str | None) -> str | None:
    """The benchmark file (`folder/file`) that has this MD5, None where it is none of them."""
    return next((name for name, known in official_md5().items() if known == md5), None)


def _place_in_layout(name: str) -> tuple[Split, int, int, str] | None:
    """(split, number, of how many, `folder/file`) of a path in the benchmark's layout that belongs to a split, else None."""
    if match := _TRAINING_FILE.search(name):
        return "train", int(match[1]), int(match[2]), match[0]
    if (match := _HELD_OUT_FILE.search(name)) and int(match[1]) in _HELD_OUT_SPLITS:
        return _HELD_OUT_SPLITS[int(match[1])], int(match[1]), int(match[2]), match[0]
    return None


def _check_layout(places: list[tuple[Split, int, int, str]], where: str) -> None:
    """Raise UserError where a file of the layout is missing, named, or where two layouts are mixed."""
    training = [place for place in places if place[0] == "train"]
    if not training:
        raise UserError(f"{where}: has no {TRAINING_FOLDER}/news.en-000NN-of-M files; {HOW_TO_GET_IT}")
    counts = {place[2] for place in training}
    if len(counts) > 1 or len({place[1] for place in training}) < len(training):
        raise UserError(f"{where}: {TRAINING_FOLDER} mixes files of different sets (-of-{min(counts):05d} and others); expected one set")
    missing = sorted(set(range(1, max(counts))) - {place[1] for place in training})
    if missing:
        raise UserError(
            f"{where}: {TRAINING_FOLDER}/news.en-{missing[0]:05d}-of-{max(counts):05d} is missing ({len(missing)} of {max(counts) - 1} "
            "training files are not there); expected them all: unpack the archive again"
        )
    for number, split in _HELD_OUT_SPLITS.items():
        found = [place for place in places if place[0] == split]
        if len(found) != 1:
            raise UserError(f"{where}: expected one {HELD_OUT_FOLDER}/news.en.heldout-{number:05d}-of-K for {split}, found {len(found)}")


def _open_folder(folder: Path) -> FilesCorpus:
    """The benchmark's layout in an extracted folder, or in the one folder that the archive makes inside it."""
    inner = folder / TARBALL_NAME.removesuffix(".tar.gz")
    root = inner if inner.is_dir() and not (folder / TRAINING_FOLDER).is_dir() else folder
    files, places = [], []
    for name in (TRAINING_FOLDER, HELD_OUT_FOLDER):
        for path in sorted((root / name).iterdir()) if (root / name).is_dir() else []:
            if place := _place_in_layout(f"{name}/{path.name}"):
                places.append(place)
                files.append(SourceFile(place[0], place[1], path, place[3]))
    _check_layout(places, str(folder))
    return FilesCorpus(files)


class ArchiveCorpus:
    """The benchmark's layout inside its .tar.gz, read from front to back without extracting it."""

    def __init__(self, path: Path) -> None:
        status = path.stat()
        self._path = path
        self._changed_ns = status.st_mtime_ns
        self.total_bytes = status.st_size
        self.text_bytes = self.total_bytes * (1.0 if path.name.endswith(".tar") else _TEXT_IN_A_PACKED_BYTE)
        self.origin: dict[str, Any] = {"archive": path.name, "bytes": status.st_size, "changed_ns": status.st_mtime_ns}
        self._member: IO[bytes] | None = None  # where the next chunk begins, until it is loaded
        self._loaded_bytes = 0

    def chunks(self, progress: Callable[[int], object]) -> Iterator[TextChunk]:
        """See `Corpus.chunks`."""
        places = []
        with self._refusing_damage():
            for member, file in read_members(self._path, progress):
                if place := _place_in_layout(member.name):
                    places.append(place)
                    yield from self._chunks_of_member(file, member.name, member.size, place)
        _check_layout(places, str(self._path))

    def _chunks_of_member(self, file: IO[bytes], path: str, size: int, place: tuple[Split, int, int, str]) -> Iterator[TextChunk]:
        """A member as one chunk, or several where it is long. path, size: as the archive has them."""
        split, number, _, official_name = place
        name = f"{split}-{number:05d}"
        start = part = 0
        while start < size:
            stop = min(start + CHUNK_BYTES, size)
            is_whole = start == 0 and stop == size
            chunk = TextChunk(
                split=split,
                shard=name if is_whole else f"{name}.{part:03d}",
                source=f"{self._path}:{path}",
                start=start,
                stop=stop,
                file_bytes=size,
                changed_ns=self._changed_ns,
                path=None,
                official_name=official_name if is_whole else None,
            )
            self._member = file
            yield chunk
            if is_whole:
                return
            if self._is_unread():
                self.load(chunk)  # nobody wants it, but only its end tells where the next one begins
            start, part = start + self._loaded_bytes, part + 1

    def _is_unread(self) -> bool:
        return self._member is not None

    def load(self, chunk: TextChunk) -> TextChunk:
        """See `Corpus.load`."""
        assert self._member is not None, "each chunk is loaded once, when its turn has come"
        with self._refusing_damage():
            data = self._member.read(chunk.stop - chunk.start)
            if len(data) < chunk.stop - chunk.start:
                raise EOFError(f"{chunk.source} ends early")
            if chunk.stop < chunk.file_bytes and not data.endswith(b"\n"):
                data += read_line(self._member, chunk.source)
        self._member, self._loaded_bytes = None, len(data)
        return replace(chunk, data=data)

    def _refusing_damage(self) -> AbstractContextManager[None]:
        return refusing_damage(
            f"{self._path}: damaged or cut short; expected a .tar.gz archive (the benchmark's has SHA-256 {TARBALL_SHA256}): get it again"
        )


def open_benchmark(path: Path) -> Corpus:
    """The benchmark's text in a folder or an archive. Raises UserError that says what is missing and how to get it."""
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        if not path.name.endswith(ARCHIVE_SUFFIXES):
            raise UserError(f"{path}: expected the benchmark's folder or its .tar.gz; {HOW_TO_GET_IT}")
        return ArchiveCorpus(path)
    raise UserError(f"{path}: no such corpus; {HOW_TO_GET_IT}")
