"""One file of a store, page by page: from memory, else from the cache on disk, else from the store.

1. A page is PAGE_BYTES of a shard's file, or what is left at its end. The manifest has its SHA-256, which is also its name in the cache.
2. `RemoteFile.page` gives one: whatever its way into memory, it is verified there.
3. `RemoteFile.want` has pages brought into the cache by a few threads meanwhile. What fails there is left to whoever needs the page.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable

from lm1b.data.tokens.manifest import PAGE_BYTES
from lm1b.data.tokens.page_cache import PageCache
from lm1b.errors import UserError
from lm1b.remote import Store
from lm1b.remote_errors import WrongBytes

FETCHING_THREADS = 8
NEEDED_SECONDS = 2.0  # that a needed page waits for another's fetching, which may be a prefetch that the store does not answer
MEMORY_PAGES = 1024  # 64 MiB: the pages that a rank's lanes are in


def matching(sha256: str) -> Callable[[bytes], None]:
    """A check for `Store.read`: raises WrongBytes for other bytes than those of this SHA-256."""

    def check(data: bytes) -> None:
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise WrongBytes(f"SHA-256 expected {sha256}, found {found}")

    return check


class PageFetcher:
    """Threads that bring pages into the cache before they are asked for. What fails is left to whoever needs the page: it will say so."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[tuple[RemoteFile, int]] = queue.SimpleQueue()
        self._asked: set[tuple[str, int]] = set()
        self._threads: list[threading.Thread] = []

    def want(self, file: RemoteFile, index: int) -> None:
        """Bring page `index` of a file, in a thread, unless it is there or on its way."""
        key = (file.name, index)
        if key in self._asked or file.is_cached(index):
            return
        self._asked.add(key)
        self._wanted.put((file, index))
        if len(self._threads) < FETCHING_THREADS:
            # No pool: one would finish its queue before the interpreter may end.
            self._threads.append(threading.Thread(target=self._work, name="fetch tokens", daemon=True))
            self._threads[-1].start()

    def _work(self) -> None:
        while True:
            file, index = self._wanted.get()
            with contextlib.suppress(OSError, UserError):
                file.fetch(index)
            self._asked.discard((file.name, index))


class PageSource:
    """The places that pages come from, nearest first: memory, the cache, the store."""

    def __init__(self, store: Store, cache: PageCache):
        self.store, self.cache, self.fetcher = store, cache, PageFetcher()
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def remembered(self, sha256: str) -> bytes | None:
        """The page of that checksum, where it is in memory."""
        with self._lock:
            data = self._memory.get(sha256)
            if data is not None:
                self._memory.move_to_end(sha256)
            return data

    def remember(self, sha256: str, data: bytes) -> None:
        """Keep a page in memory; the one that was not asked for longest goes."""
        with self._lock:
            self._memory[sha256] = data
            if len(self._memory) > MEMORY_PAGES:
                self._memory.popitem(last=False)


class RemoteFile:
    """One .npy file in the store, by its pages."""

    def __init__(self, source: PageSource, name: str, num_bytes: int, pages: list[str]):
        self.name, self._source, self._num_bytes, self._pages = name, source, num_bytes, pages

    def is_cached(self, index: int) -> bool:
        """Whether a page need not be fetched."""
        sha256 = self._pages[index]
        return self._source.remembered(sha256) is not None or self._source.cache.has(sha256)

    def want(self, first: int, last: int) -> None:
        """Have pages first to last fetched while other things happen."""
        for index in range(first, last + 1):
            self._source.fetcher.want(self, index)

    def fetch(self, index: int, patience_seconds: float | None = None) -> bytes:
        """A page from the cache, or from the store into the cache. Raises StoreError, OSError where the cache cannot be written to.

        patience_seconds: how long one who fetches the same, or another of the many pages that share its lock, is waited for.
        """
        cache, sha256 = self._source.cache, self._pages[index]
        with cache.lock(sha256, patience_seconds):
            data = cache.read(sha256)
            if data is None:
                start, stop = index * PAGE_BYTES, min((index + 1) * PAGE_BYTES, self._num_bytes)
                data = self._source.store.read(self.name, start, stop, matching(sha256))
                cache.add(sha256, data)
        return data

    def page(self, index: int) -> bytes:
        """A page, verified."""
        sha256 = self._pages[index]
        data = self._source.remembered(sha256)
        if data is None:
            data = self._source.cache.read(sha256) or self.fetch(index, NEEDED_SECONDS)
            self._source.remember(sha256, data)
        return data
