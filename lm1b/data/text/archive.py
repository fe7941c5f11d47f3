"""The members of a .tar or .tar.gz, from front to back, whoever made it: nothing is extracted, nothing grows with what it claims.

1. `read_members` gives plain files only; links, devices and sparse files are passed over, and a member's name never becomes a path here.
2. Bounded are the headers between two members, the number of members, and how much more comes out than went in (a gzip bomb).
3. The gzip check sum at the very end is read too, so a changed byte inside is found.
4. `refusing_damage`, around all of that, turns what a damaged archive raises into one line.
"""

from __future__ import annotations

import contextlib
import gzip
import tarfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from lm1b.errors import UserError

HEADER_BYTES = 4 << 20  # between the data of two members; tarfile would hold a name of any length in memory
LARGEST_NUMBER_OF_MEMBERS = 100_000  # the benchmark has about 150
ALWAYS_ALLOWED_BYTES = 256 << 20
LARGEST_RATIO = 100  # English text shrinks to a third or a quarter; nothing but zeros to a thousandth
_READ_BYTES = 1 << 16


class _Unpacked:
    """The stream that tarfile reads from: counts the unpacked bytes and stops where they are too many or too few.

    allowed: how many may come before the next header is read. needed: where the next header begins.
    """

    def __init__(self, file: Any, raw: BinaryIO) -> None:
        self._file, self._raw = file, raw
        self.num_bytes = 0
        self.allowed: float = HEADER_BYTES
        self.needed = 0

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.num_bytes += len(data)
        if not data and self.num_bytes < self.needed:
            raise EOFError("a member ends early")  # tarfile would go on reading nothing for as long as the member claims to be
        if self.num_bytes > self.allowed:
            raise tarfile.ReadError("a header is too large")
        if self.num_bytes > ALWAYS_ALLOWED_BYTES + LARGEST_RATIO * self._raw.tell():
            raise tarfile.ReadError(f"it unpacks to more than {LARGEST_RATIO} times its size, which no text does")
        return data


@contextlib.contextmanager
def refusing_damage(damaged: str) -> Generator[None]:
    """Around reading members and their data: raises UserError, `damaged` and why, where the archive is none, cut short or a bomb."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # tarfile raises whatever its arithmetic meets in bytes that are no tar; a disk that cannot be read has an error number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{damaged} ({error})") from None


def read_members(path: Path, progress: Callable[[int], object]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """(member, its data) of every plain file; the data can be read until the next one is asked for.

    progress: told the bytes of the archive read. Raises all sorts of errors where the archive is damaged: see `refusing_damage`.
    """
    with open(path, "rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        # Not tarfile's own decompression: it would unpack as much at once as comes, and never checks the sum at the end.
        unpacked = _Unpacked(gzip.GzipFile(fileobj=raw) if is_packed else raw, raw)
        passed = num_members = 0
        stream: Any = unpacked  # tarfile needs nothing but `read`
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_READ_BYTES) as archive:
            while (member := archive.next()) is not None:
                num_members += 1
                if num_members > LARGEST_NUMBER_OF_MEMBERS:
                    raise tarfile.ReadError("it has too many members")
                unpacked.allowed = float("inf")
                if member.isfile() and not member.issparse() and (file := archive.extractfile(member)) is not None:
                    yield member, file
                unpacked.needed = archive.offset
                unpacked.allowed = max(unpacked.num_bytes, archive.offset) + HEADER_BYTES
                progress(raw.tell() - passed)
                passed = raw.tell()
        unpacked.allowed = float("inf")
        while unpacked.read(_READ_BYTES):
            pass
        progress(raw.tell() - passed)
