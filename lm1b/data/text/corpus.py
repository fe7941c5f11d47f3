"""Tokenized text, wherever it comes from, in chunks of whole lines: what preprocessing counts and encodes, one shard a chunk.

1. A `Corpus` gives its text as `TextChunk`s, in an order of its own that is the same every time.
2. A file of at most 64 MB, as all of the benchmark's are, is one chunk; a longer one is cut after CHUNK_BYTES, and a line belongs to the
   chunk that it begins in. With chunks of 8 bytes the file `a b\nc d e\nf\n` becomes `a b\nc d e\n` and `f\n`.
3. A chunk of a folder is read by the process that works on it (`TextChunk.read`); a chunk of an archive
   carries its bytes, once it is loaded. `TextChunk.text_of` checks those bytes: what has passed it is text.
4. `Corpus.origin` names the text cheaply (names, sizes, times of change), so that a second run sees whether anything has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from lm1b.config import Split
from lm1b.data.text.tokenized import LONGEST_LINE_BYTES, check_text, too_long_a_line, without_mark
from lm1b.errors import UserError

CHUNK_BYTES = 64 << 20  # the benchmark's files hold 42 MB

_Count = Annotated[int, Field(ge=0, lt=1 << 48)]


class FileRange(BaseModel):
    """Identifies a chunk's text without its folder, so that earlier work on it can be used again: the file's name, from where to where,
    the file's size and time of change. It stands in manifests: see tokens/manifest.py.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    start: _Count
    stop: _Count
    bytes: _Count
    changed_ns: int


@dataclass(frozen=True)
class TextChunk:
    """Whole lines of one corpus file: those that begin in bytes [start, stop).

    shard: the name of the token shard it becomes. source: the file as the user knows it. file_bytes, changed_ns: the file's size and time
    of change. official_name: `folder/file` in the benchmark's layout, where the chunk is a whole file of it. data: the bytes, where they
    cannot be read from `path`.
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
    def identity(self) -> FileRange:
        """Which text this is, wherever the corpus lies."""
        # Not checked here: an archive may claim any size, and whether that is so is found out when it is read.
        return FileRange.model_construct(
            name=Path(self.source).name, start=self.start, stop=self.stop, bytes=self.file_bytes, changed_ns=self.changed_ns
        )

    def read(self) -> bytes:
        """The chunk's bytes. Raises UserError where the file has become shorter or a line is too long."""
        if self.data is not None:
            return self.data
        with self._opened() as file:
            first = file.tell()
            data = file.read(max(0, self.stop - first))
            if first + len(data) < self.stop and first < self.stop:
                raise UserError(f"{self.source}: became shorter while it was read; run again when it is no longer being written")
            if data and self.stop < self.file_bytes and not data.endswith(b"\n"):
                data += read_line(file, self.source)
        return data

    def text_of(self, data: bytes) -> bytes:
        """What the chunk's bytes, as `read` gives them, say. Raises UserError where they are no text of sentences."""
        first = 0
        if self.data is not None:
            first = self.start
        elif self.start:
            with self._opened() as file:
                first = file.tell()
        check_text(data, self.source, first)
        return data if first else without_mark(data)

    @contextmanager
    def _opened(self) -> Generator[IO[bytes]]:
        """The file, at the first line that begins in the chunk."""
        assert self.path is not None
        with open(self.path, "rb") as file:
            if self.start:
                file.seek(self.start - 1)
                read_line(file, self.source)
            yield file


def read_line(file: IO[bytes], source: str) -> bytes:
    """The rest of the line that `file` stands in. Raises UserError where it is too long to be a sentence."""
    line = file.readline(LONGEST_LINE_BYTES)
    if len(line) >= LONGEST_LINE_BYTES:
        raise too_long_a_line(f"{source}:")
    return line


def check_named_once(files: Iterable[tuple[Split, Path]]) -> None:
    """Raise UserError for a file that is named twice, such as for two splits."""
    seen: dict[Path, str] = {}
    for split, path in files:
        if path.resolve() in seen:
            raise UserError(f"{path}: named for {seen[path.resolve()]} and again for {split}; expected every file once")
        seen[path.resolve()] = split


class Corpus(Protocol):
    """Text in chunks. origin: JSON that is equal if and only if nothing seems to have changed; an archive's has the key `archive`.
    total_bytes: of the files as they lie there. text_bytes: of the text in them, about.
    """

    origin: dict[str, Any]
    total_bytes: int
    text_bytes: float

    def chunks(self, progress: Callable[[int], object]) -> Iterator[TextChunk]:
        """Every chunk, in the same order every time. progress: told how many more of `total_bytes` lie before the next chunk."""
        ...

    def load(self, chunk: TextChunk) -> TextChunk:
        """The chunk as another process can read it: one of an archive gets its bytes. Only before the next one is asked for."""
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
        self._chunks = [chunk for file in files for chunk in _chunks_of_file(file)]
        if not any(chunk.split == "train" for chunk in self._chunks):
            raise UserError(f"{files[0].path}: the training files are empty; expected tokenized text, one sentence a line")
        self.total_bytes = sum(chunk.stop - chunk.start for chunk in self._chunks)
        self.text_bytes: float = self.total_bytes
        self.origin: dict[str, Any] = {"files": [[chunk.split, chunk.shard, chunk.identity.model_dump()] for chunk in self._chunks]}

    def chunks(self, progress: Callable[[int], object]) -> Iterator[TextChunk]:
        """See `Corpus.chunks`."""
        for chunk in self._chunks:
            yield chunk
            progress(chunk.stop - chunk.start)

    def load(self, chunk: TextChunk) -> TextChunk:
        """See `Corpus.load`: every process can open the file."""
        return chunk


def _chunks_of_file(file: SourceFile) -> Iterator[TextChunk]:
    """A file as one chunk, or several where it is long. An empty file has none."""
    try:
        status = file.path.stat()
    except FileNotFoundError:
        raise UserError(f"{file.path}: no such corpus file") from None
    if not file.path.is_file():
        raise UserError(f"{file.path}: not a file; expected tokenized text, one sentence a line")
    name = f"{file.split}-{file.number:05d}"
    size, changed_ns = status.st_size, status.st_mtime_ns
    whole = TextChunk(file.split, name, str(file.path), 0, size, size, changed_ns, file.path, file.official_name)
    if size <= CHUNK_BYTES:
        if size:
            yield whole
        return
    for number, start in enumerate(range(0, size, CHUNK_BYTES)):
        stop = min(start + CHUNK_BYTES, size)
        yield replace(whole, shard=f"{name}.{number:03d}", start=start, stop=stop, official_name=None)
