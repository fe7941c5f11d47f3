"""Token shards that are not on this machine: read at a URL page by page, fetched ahead, verified, and kept in a bounded cache.

1. `open_tokens` opens a folder as `TokenDirectory` does, a URL as `RemoteTokens`: manifest and vocabulary are copied here at once.
2. The manifest has a SHA-256 of every 64 KiB of every shard. A slice of a shard reads the pages it lies in: from memory, else from
   the cache (page_cache.py), else from the store; each is verified on its way into memory.
3. `Batches` hints at what the coming steps read (`will_need`); a few threads bring those pages into the cache meanwhile.

The pages are small because the blocks of an epoch are visited in a random order all over the shards: with a cache smaller than the
corpus, larger pages would be fetched many times for a part of each (1 MiB: five times as many bytes as are read; 64 KiB: 1.3).
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from lm1b.config import Split, TokensConfig
from lm1b.data.tokens.arrays import npy_header
from lm1b.data.tokens.directory import TokenDirectory, TokenSplit
from lm1b.data.tokens.manifest import LARGEST_FILE_BYTES, MANIFEST_NAME, PAGE_BYTES, Manifest, Shard
from lm1b.data.tokens.page_cache import PageCache
from lm1b.data.tokens.verified import cache_folder, this_machine
from lm1b.data.vocabulary.files import files_beside
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME
from lm1b.errors import UserError
from lm1b.files import atomic_file, digest_of_file
from lm1b.remote import Store, WrongBytes, is_url

FETCHING_THREADS = 8
NEEDED_SECONDS = 2.0  # that a needed page waits for another's fetching, which may be a prefetch that the store does not answer
MEMORY_PAGES = 1024  # 64 MiB: the pages that a rank's lanes are in
SHARDS_AHEAD = 8  # of sentence ends, which are read shard after shard at the start


def open_tokens(settings: TokensConfig) -> TokenDirectory:
    """The tokens of a config, in a folder or at a URL. Raises UserError, or StoreError where the store fails."""
    if not is_url(settings.directory):
        return TokenDirectory.open(Path(settings.directory))
    folder = settings.cache_directory
    if folder is None:
        home = cache_folder()
        if home is None:
            raise UserError(f"{settings.directory}: no home folder to keep fetched tokens in; set tokens.cache_directory")
        folder = str(home / f"tokens-{this_machine()}")  # a home may be shared by machines
    return RemoteTokens.at(settings.directory, PageCache(Path(folder), settings.cache_bytes))


def _checked(sha256: str) -> Any:
    """What raises WrongBytes for other bytes than those of this SHA-256."""

    def check(data: bytes) -> None:
        found = hashlib.sha256(data).hexdigest()
        if found != sha256:
            raise WrongBytes(f"SHA-256 expected {sha256}, found {found}")

    return check


class _Fetcher:
    """Threads that bring pages into the cache before they are asked for. What fails is left to whoever needs the page: it will say so."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[tuple[_RemoteFile, int]] = queue.SimpleQueue()
        self._asked: set[tuple[str, int]] = set()
        self._threads: list[threading.Thread] = []

    def want(self, file: _RemoteFile, index: int) -> None:
        key = (file.name, index)
        if key in self._asked or file.is_here(index):
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


class _Source:
    """Where pages come from, nearest first: memory, the cache, the store."""

    def __init__(self, store: Store, cache: PageCache):
        self.store, self.cache, self.fetcher = store, cache, _Fetcher()
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def remembered(self, sha256: str) -> bytes | None:
        with self._lock:
            data = self._memory.get(sha256)
            if data is not None:
                self._memory.move_to_end(sha256)
            return data

    def remember(self, sha256: str, data: bytes) -> None:
        with self._lock:
            self._memory[sha256] = data
            if len(self._memory) > MEMORY_PAGES:
                self._memory.popitem(last=False)


class _RemoteFile:
    """One .npy file in the store, by its pages."""

    def __init__(self, source: _Source, name: str, num_bytes: int, pages: list[str]):
        self.name, self._source, self._num_bytes, self._pages = name, source, num_bytes, pages

    def __len__(self) -> int:
        return len(self._pages)

    def is_here(self, index: int) -> bool:
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
                data = self._source.store.read(self.name, start, stop, _checked(sha256))
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


def _remote_files(source: _Source, shard: Shard) -> tuple[_RemoteFile, _RemoteFile]:
    """A shard's ids, and its sentence ends."""
    tokens = _RemoteFile(source, shard.tokens_name, shard.tokens_bytes, shard.tokens_pages)
    return tokens, _RemoteFile(source, shard.ends_name, shard.ends_bytes, shard.ends_pages)


class RemoteArray:
    """A one-dimensional .npy array in the store: slices of it are arrays in memory, read-only where they lie in one page."""

    def __init__(self, file: _RemoteFile, dtype: np.dtype, length: int):
        self._file, self._dtype, self._length = file, dtype, length
        self._header_bytes = len(npy_header(dtype, length))

    def __len__(self) -> int:
        return self._length

    def _place(self, item: int) -> tuple[int, int]:
        """The page that an item lies in, and its byte there. No item lies in two: header and pages are multiples of its size."""
        return divmod(self._header_bytes + item * self._dtype.itemsize, PAGE_BYTES)

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, stride = part.indices(self._length)
        assert stride == 1, "slices of a remote array are contiguous"
        if start >= stop:
            return np.zeros(0, self._dtype)
        (first, begin), (last, end) = self._place(start), self._place(stop)
        if end == 0:
            last, end = last - 1, PAGE_BYTES
        if first == last:
            return np.frombuffer(self._file.page(first), self._dtype, stop - start, begin)
        if last - first > 1:
            self._file.want(first, last)
        inner = [self._file.page(index) for index in range(first + 1, last)]
        data = b"".join([memoryview(self._file.page(first))[begin:], *inner, memoryview(self._file.page(last))[:end]])
        return np.frombuffer(data, self._dtype)

    def want(self, start: int, stop: int) -> None:
        """Have items start to before stop fetched while other things happen."""
        if start < stop:
            self._file.want(self._place(start)[0], self._place(stop - 1)[0])


class RemoteSplit(TokenSplit):
    """The shards of one split, in the store."""

    wants_hints = True

    def __init__(self, name: str, source: _Source, shards: list[Shard], token_dtype: np.dtype) -> None:
        super().__init__(name, source.cache.folder, shards, token_dtype)
        self._tokens, self._ends = [], []
        for shard in shards:
            tokens, ends = _remote_files(source, shard)
            self._tokens.append(RemoteArray(tokens, token_dtype, shard.num_tokens))
            self._ends.append(RemoteArray(ends, np.dtype(np.int64), shard.num_sentences))

    def tokens(self, index: int) -> RemoteArray:
        """Ids of shard `index`: its slices are uint16 or uint32 arrays."""
        return self._tokens[index]

    def sentence_ends(self, index: int) -> np.ndarray:
        """Where each sentence of shard `index` ends, exclusive: int64 (num_sentences,). Those of the next shards are fetched meanwhile."""
        for array in self._ends[index : index + SHARDS_AHEAD]:
            array.want(0, len(array))
        return self._ends[index][:]

    def will_need(self, index: int, start: int, stop: int) -> None:
        self._tokens[index].want(start, stop)


class RemoteTokens(TokenDirectory):
    """Vocabulary and token shards at a URL."""

    def __init__(self, folder: Path, manifest: Manifest, source: _Source):
        super().__init__(folder, manifest, source.store.url)
        self._source = source

    @classmethod
    def at(cls, url: str, cache: PageCache) -> RemoteTokens:
        """Fetch manifest and vocabulary. Raises UserError where the folder is not complete, StoreError where it cannot be read."""
        store = Store(url)
        data = store.read_if_there(MANIFEST_NAME)
        if data is None:
            raise UserError(
                f"{url}: no {MANIFEST_NAME}, so no prepared tokens there: run launch/preprocess.py with a folder of this machine as "
                "tokens.directory, and copy that folder there"
            )
        folder = cache.folder / "directories" / hashlib.sha256(data).hexdigest()[:16]
        path = folder / MANIFEST_NAME
        with cache.lock(str(path)), atomic_file(path, outlives_power=False) as file:
            file.write(data)
        try:
            manifest = Manifest.read(path)
            tokens = cls(folder, manifest, _Source(store, cache))
            tokens._check_sizes()
        except UserError as error:
            path.unlink(missing_ok=True)
            raise UserError(f"{str(error).replace(str(path), store.place(MANIFEST_NAME))} and copy its folder there") from None
        tokens._fetch_vocabulary()
        return tokens

    def _check_sizes(self) -> None:
        """A shard's bytes are those of its numbers: slices are taken by them."""
        for shard in self.manifest.shards():
            for dtype, length, found in (
                (np.dtype(self.manifest.token_dtype), shard.num_tokens, shard.tokens_bytes),
                (np.dtype(np.int64), shard.num_sentences, shard.ends_bytes),
            ):
                expected = len(npy_header(dtype, length)) + length * dtype.itemsize
                if expected != found:
                    raise UserError(
                        f"{self._source.store.place(shard.name)}: {length} {dtype} are {expected} bytes, the manifest says {found}; "
                        "run launch/preprocess.py again"
                    )

    def _fetch_vocabulary(self) -> None:
        self._fetch_whole(VOCABULARY_NAME, self.manifest.vocabulary.sha256)
        for name, expected in files_beside(self.folder / VOCABULARY_NAME).items():
            self._fetch_whole(name, expected)

    def _fetch_whole(self, name: str, expected: str) -> None:
        """A file in one, checked by its SHA-256."""
        path = self.folder / name
        with self._source.cache.lock(expected):
            if not path.is_file() or digest_of_file(path) != expected:
                data = self._source.store.read(name, check=_checked(expected), largest_bytes=LARGEST_FILE_BYTES)
                with atomic_file(path, outlives_power=False) as file:
                    file.write(data)

    def verify_once(self, index: int = 0, count: int = 1) -> int:
        """Nothing to do: a page is verified whenever it comes into memory."""
        return 0

    def verify(self) -> None:
        """Fetch every page of every shard and check its SHA-256. Raises StoreError that names the first damaged file."""
        for shard in self.manifest.shards():
            for file in _remote_files(self._source, shard):
                for page in range(len(file)):
                    file.fetch(page)

    def split(self, name: Split) -> RemoteSplit:
        """The shards of `train`, `validation` or `test`."""
        return RemoteSplit(name, self._source, self.manifest.splits[name].shards, np.dtype(self.manifest.token_dtype))
