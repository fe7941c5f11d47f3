"""What text there is: the benchmark's layout from a folder or straight from its archive, and plain tokenized files.

1. `open_corpus` looks at the config and gives a `Corpus`; what is missing is a UserError that says how to get it.
2. `Corpus.origin` names the text cheaply (names, sizes, times of change), so that a second run sees whether anything changed.
3. `Corpus.pieces()` yields the text in pieces of whole lines, at most about 64 MB each: a benchmark file is one piece. A
   piece of a folder is read by the process that works on it; a piece of an archive carries its bytes.

In the benchmark's layout, with any number M of files,
`training-monolingual.tokenized.shuffled/news.en-000NN-of-M` train, `heldout-.../news.en.heldout-00001-of-K` validates and
`-00000-` tests. `news.en-00000-of-M` in the held-out folder is the unsplit whole of it and is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from lm1b.config import CorpusConfig, Split
from lm1b.data.archive import read_members, refusing_damage
from lm1b.data.official import HELD_OUT_FOLDER, HOW_TO_GET_IT, TARBALL_NAME, TARBALL_SHA256, TRAINING_FOLDER
from lm1b.data.text import LONGEST_LINE_BYTES, PIECE_BYTES
from lm1b.errors import UserError

_TRAINING_FILE = re.compile(re.escape(TRAINING_FOLDER) + r"/news\.en-([0-9]{5})-of-([0-9]{5})\Z")
_HELD_OUT_FILE = re.compile(re.escape(HELD_OUT_FOLDER) + r"/news\.en\.heldout-([0-9]{5})-of-([0-9]{5})\Z")
_HELD_OUT_SPLITS: dict[int, Split] = {0: "test", 1: "validation"}
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True)
class Piece:
    """Whole lines of one corpus file: those that begin in bytes [start, stop).

    shard: the name of the token shard it becomes. source: the file as the user knows it. official_name: `folder/file` in
    the benchmark's layout, where the piece is a whole file of it. data: the bytes, where they cannot be read from `path`.
    """

    split: Split
    shard: str
    source: str
    start: int
    stop: int
    file_bytes: int
    changed_ns: int
    path: Path | None
    official_name: str | None = None
    data: bytes | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells whether work done on this piece still holds, wherever the corpus lies."""
        return {
            "name": Path(self.source).name,
            "start": self.start,
            "stop": self.stop,
            "bytes": self.file_bytes,
            "changed_ns": self.changed_ns,
        }

    def read(self) -> bytes:
        """The piece's text. Raises UserError where the file has changed or holds no lines."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        with open(self.path, "rb") as file:
            if self.start:
                file.seek(self.start - 1)
                _skip_line(file.readline(LONGEST_LINE_BYTES), self.source)
            first = file.tell()
            data = file.read(max(0, self.stop - first))
            if first + len(data) < self.stop and first < self.stop:
                raise UserError(f"{self.source}: became shorter while it was read; run again when it is no longer being written")
            if data and self.stop < self.file_bytes and not data.endswith(b"\n"):
                data += _skip_line(file.readline(LONGEST_LINE_BYTES), self.source)
        return data


def _skip_line(line: bytes, source: str) -> bytes:
    """The line, where it is one. Raises UserError where it is too long to be a sentence."""
    if len(line) >= LONGEST_LINE_BYTES:
        raise UserError(f"{source}: has a line of more than {LONGEST_LINE_BYTES >> 20} MiB; expected one tokenized sentence a line")
    return line


class Corpus(Protocol):
    """Text in pieces. origin: JSON that is equal if and only if nothing seems to have changed. total_bytes: for progress."""

    origin: dict[str, Any]
    total_bytes: int

    def pieces(self, is_wanted: Callable[[Piece], bool], progress: Callable[[int], object]) -> Iterator[Piece]:
        """Every piece; those not wanted may come without their data. An archive tells `progress` the bytes of `total_bytes` read."""
        ...


@dataclass(frozen=True)
class SourceFile:
    """A corpus file in a folder."""

    split: Split
    number: int
    path: Path
    official_name: str | None = None


class FilesCorpus:
    """Tokenized files in folders, one sentence a line."""

    def __init__(self, files: list[SourceFile]) -> None:
        self._pieces = [piece for file in files for piece in _pieces_of_file(file)]
        if not any(piece.split == "train" for piece in self._pieces):
            raise UserError(f"{files[0].path}: the training files are empty; expected tokenized text, one sentence a line")
        self.total_bytes = sum(piece.stop - piece.start for piece in self._pieces)
        self.origin: dict[str, Any] = {"files": [[piece.split, piece.shard, piece.identity] for piece in self._pieces]}

    def pieces(self, is_wanted: Callable[[Piece], bool], progress: Callable[[int], object]) -> Iterator[Piece]:
        yield from self._pieces


def _pieces_of_file(file: SourceFile) -> Iterator[Piece]:
    """A file as one piece, or several where it is long. An empty file has none."""
    try:
        status = file.path.stat()
    except FileNotFoundError:
        raise UserError(f"{file.path}: no such corpus file") from None
    if not file.path.is_file():
        raise UserError(f"{file.path}: not a file; expected tokenized text, one sentence a line")
    name = f"{file.split}-{file.number:05d}"
    whole = Piece(file.split, name, str(file.path), 0, status.st_size, status.st_size, status.st_mtime_ns, file.path, file.official_name)
    if status.st_size <= PIECE_BYTES:
        if status.st_size:
            yield whole
        return
    for part, start in enumerate(range(0, status.st_size, PIECE_BYTES)):
        stop = min(start + PIECE_BYTES, status.st_size)
        yield replace(whole, shard=f"{name}.{part:03d}", start=start, stop=stop, official_name=None)


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
        self.is_packed = not path.name.endswith(".tar")
        self.origin: dict[str, Any] = {"archive": path.name, "bytes": status.st_size, "changed_ns": status.st_mtime_ns}

    def pieces(self, is_wanted: Callable[[Piece], bool], progress: Callable[[int], object]) -> Iterator[Piece]:
        places = []
        damaged = (
            f"{self._path}: damaged or cut short; expected a .tar.gz archive (the benchmark's has SHA-256 {TARBALL_SHA256}): get it again"
        )
        with refusing_damage(damaged):
            for member, file in read_members(self._path, progress):
                if place := _place_in_layout(member.name):
                    places.append(place)
                    yield from self._pieces_of_member(file, member.name, member.size, place, is_wanted)
        _check_layout(places, str(self._path))

    def _pieces_of_member(
        self, file: IO[bytes], path: str, size: int, place: tuple[Split, int, int, str], is_wanted: Callable[[Piece], bool]
    ) -> Iterator[Piece]:
        """A member as one piece, or several where it is long. path, size: as the archive has them."""
        split, number, _, official_name = place
        name = f"{split}-{number:05d}"
        start = part = 0
        while start < size:
            stop = min(start + PIECE_BYTES, size)
            is_whole = start == 0 and stop == size
            piece = Piece(split, name if is_whole else f"{name}.{part:03d}", f"{self._path}:{path}", start, stop, size,
                          self._changed_ns, None, official_name if is_whole else None)  # fmt: skip
            if is_whole and not is_wanted(piece):
                yield piece
                return
            data = file.read(stop - start)
            if len(data) < stop - start:
                raise EOFError(f"{path} ends early")
            if stop < size and not data.endswith(b"\n"):
                data += _skip_line(file.readline(LONGEST_LINE_BYTES), piece.source)
            yield replace(piece, data=data)
            start, part = start + len(data), part + 1


def _open_text(config: CorpusConfig) -> FilesCorpus:
    """Plain tokenized files named in the config."""
    named: dict[Split, list[str]] = {"train": config.train or [], "validation": config.validation or [], "test": config.test or []}
    files = [SourceFile(split, number, Path(name)) for split, names in named.items() for number, name in enumerate(names)]
    seen: dict[Path, str] = {}
    for file in files:
        resolved = file.path.resolve()
        if resolved in seen:
            raise UserError(f"{file.path}: named for {seen[resolved]} and again for {file.split}; expected every file once")
        seen[resolved] = file.split
    return FilesCorpus(files)


def open_corpus(config: CorpusConfig) -> Corpus:
    """The tokenized corpus that the config names. Raises UserError that says what is missing and how to get it.

    Raw text and the news sample become tokenized files first: see raw_text.py.
    """
    if config.kind == "text":
        return _open_text(config)
    assert config.kind == "lm1b", "the news sample is tokenized first"
    assert config.path is not None, "the config has checked it"
    path = Path(config.path)
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        if not path.name.endswith(ARCHIVE_SUFFIXES):
            raise UserError(f"{path}: expected the benchmark's folder or its .tar.gz; {HOW_TO_GET_IT}")
        return ArchiveCorpus(path)
    raise UserError(f"{path}: no such corpus; {HOW_TO_GET_IT}")
