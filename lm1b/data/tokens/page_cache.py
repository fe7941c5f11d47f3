"""Pages of remote files on this machine's disk: named by their SHA-256, verified when read, bounded in all, shared by processes.

    pieces/3f/3fb0...   total   locks/00.lock ... 63.lock

1. A page's name is its checksum, so whatever is under that name is either right or found out; corpora may share a cache.
2. `add` makes room first: the total is kept in one small file under a lock. Where it would pass the limit, everything is counted
   anew and the pages longest not read go, down to nine tenths of the limit.
3. A process killed at any point leaves at most a total that is too high, which the next count mends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Generator
from pathlib import Path

from lm1b.files import atomic_file, try_lock

LOCKS = 64
KEPT_SHARE = 0.9  # of the limit, after making room: counting all files is not for every page
PARTIAL = ".partial"


class PageCache:
    """A folder of at most limit_bytes of pages. Raises OSError where it cannot be written to."""

    def __init__(self, folder: Path, limit_bytes: int):
        self.folder, self._limit_bytes = Path(folder), limit_bytes
        self._pages, self._locks = self.folder / "pieces", self.folder / "locks"
        for place in (self._pages, self._locks):
            place.mkdir(parents=True, exist_ok=True)
        with self._total() as total:
            total.bytes = self._make_room(limit_bytes)  # the limit may be lower than it was

    def path(self, sha256: str) -> Path:
        """Path of a page, if it is here."""
        return self._pages / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether a page is here; it has not been looked at."""
        return self.path(sha256).exists()

    def read(self, sha256: str) -> bytes | None:
        """A page as it was added; None where it is not here. A damaged one is removed."""
        path = self.path(sha256)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        with contextlib.suppress(OSError):  # another process may just have let go of it, or made it with a user's rights that are not ours
            os.utime(path)  # which pages were read last: not every file system notes it
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        path.unlink(missing_ok=True)
        return None

    def add(self, sha256: str, data: bytes) -> None:
        """Keep a page, whose checksum the caller has seen, and let go of others where there is no room."""
        with self._total() as total:
            if self.has(sha256):
                return
            if total.bytes + len(data) > self._limit_bytes:
                total.bytes = self._make_room(int(KEPT_SHARE * self._limit_bytes) - len(data))
            total.bytes += len(data)
            total.write()  # before the page: a kill between the two makes the total too high, never too low
            with atomic_file(self.path(sha256), outlives_power=False) as file:
                file.write(data)

    def total_bytes(self) -> int:
        """Bytes of all pages, counted."""
        with self._total():
            return sum(status.st_size for status in self._files().values())

    @contextlib.contextmanager
    def lock(self, key: str, patience_seconds: float | None = None) -> Generator[None]:
        """Hold what belongs to `key`, against every other process and thread, so that only one of them fetches it.

        patience_seconds: then go on without, and fetch it twice. None: wait.
        """
        number = int(hashlib.sha256(key.encode()).hexdigest(), 16) % LOCKS
        with open(self._locks / f"{number:02d}.lock", "ab") as file:
            if patience_seconds is None:
                fcntl.flock(file, fcntl.LOCK_EX)
            else:
                try_lock(file, patience_seconds)
            yield

    def _files(self) -> dict[Path, os.stat_result]:
        found = {}
        for folder in self._pages.iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # what else lies there is none of ours
                for entry in os.scandir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        if entry.is_file():
                            found[Path(entry.path)] = entry.stat()
        return found

    def _make_room(self, wanted_bytes: int) -> int:
        """Remove the pages longest not read until at most wanted_bytes are left -> what is left. Under the total's lock."""
        files = self._files()
        total = 0
        for path in [path for path in files if path.name.endswith(PARTIAL)]:
            path.unlink(missing_ok=True)  # of a process that was killed: a living one would hold the lock
            del files[path]
        total = sum(status.st_size for status in files.values())
        for path, status in sorted(files.items(), key=lambda item: item[1].st_mtime_ns):
            if total <= max(0, wanted_bytes):
                break
            path.unlink(missing_ok=True)
            total -= status.st_size
        return total

    @contextlib.contextmanager
    def _total(self) -> Generator[_Total]:
        """The total, locked; what is left in it at the block's end is written."""
        with open(self.folder / "total", "a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            total = _Total(file.fileno())
            before = total.bytes
            yield total
            if total.bytes != before:
                total.write()


class _Total:
    """A number in a file."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        text = os.pread(descriptor, 32, 0).strip()
        self.bytes = int(text) if text.isdigit() else 1 << 62  # not ours: have everything counted

    def write(self) -> None:
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, str(self.bytes).encode())  # opened for appending: goes to the new end
