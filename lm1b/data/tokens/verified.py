"""Which files this machine has hashed before, so that a training that starts again need not read gigabytes for nothing.

1. Whoever hashes a file notes its path, size, times of change, inode and the SHA-256 that was found (`digest_of`, `note`).
2. `save` adds that to one small sealed JSON file for each user and machine, in the user's cache folder; files that are gone are dropped.
3. `remembers` answers from it, for a file that has not been touched since.

It only ever saves work: where the file is missing, damaged or cannot be written, files are hashed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

from lm1b.errors import UserError
from lm1b.files import digest_of_file, read_sealed_json, try_lock, write_sealed_json

LOCK_SECONDS = 2.0  # ranks of a host finish at about the same time; what is not noted is hashed again, so nobody waits long


def cache_folder() -> Path | None:
    """The user's cache folder of this program, None where there is no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the XDG specification has relative ones ignored
        return Path(given) / "lm1b"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "lm1b"
    return None


def this_machine() -> str:
    """A few letters that tell this machine from others that share its users' homes."""
    return hashlib.sha256(platform.node().encode(errors="surrogatepass")).hexdigest()[:8]


def status_of(path: Path) -> list[int]:
    """Numbers that change when the file does. The time of the inode's change cannot be set back, as the time of writing can."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


class HashMemory:
    """SHA-256 sums that this user found before on this machine."""

    def __init__(self) -> None:
        # A home may be shared by machines whose own disks hold other files under the same path.
        folder = cache_folder()
        self.path = folder / f"verified-{this_machine()}.json" if folder is not None else None
        self._known = self._read()
        self._found: dict[str, list[Any]] = {}

    def _read(self) -> dict[str, Any]:
        if self.path is not None:
            with contextlib.suppress(UserError, OSError):
                files = read_sealed_json(self.path).get("files")
                return files if isinstance(files, dict) else {}
        return {}

    def remembers(self, path: Path, sha256: str) -> bool:
        """Whether this very SHA-256 was found in the file, which has not been touched since. Raises OSError where it is not there."""
        return self._known.get(os.path.abspath(path)) == [*status_of(path), sha256]

    def digest_of(self, path: Path) -> str:
        """The file's SHA-256, read now and noted for `save`. Raises OSError."""
        before = status_of(path)
        return self.note(path, before, digest_of_file(path))

    def note(self, path: Path, before: list[int], sha256: str) -> str:
        """Note what was found in a file whose status was `before` when the reading began."""
        if status_of(path) == before:
            self._found[os.path.abspath(path)] = [*before, sha256]
        return sha256

    def save(self) -> None:
        """Add what was found to the cache file; other ranks may do so at the same time. If it cannot be written, it is silently skipped."""
        if self._found and self.path is not None:
            with contextlib.suppress(OSError, UserError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path.with_suffix(".lock"), "wb") as lock:
                    if try_lock(lock, LOCK_SECONDS):
                        files = {path: record for path, record in (self._read() | self._found).items() if os.path.exists(path)}
                        write_sealed_json(self.path, {"files": files})
                self._known |= self._found
