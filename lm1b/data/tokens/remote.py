"""Token shards that are not on this machine: read at a URL page by page, fetched ahead, verified, and kept in a bounded cache.

1. `open_tokens` opens a folder as `TokenDirectory` does, a URL as `RemoteTokens`: manifest and vocabulary are copied here at once.
2. The manifest has a SHA-256 of every 64 KiB of every shard. A slice of a shard reads the pages it lies in: from memory, else from
   the cache (page_cache.py), else from the store; each is verified on its way into memory (pages.py).
3. `Batches` says what the coming steps read (`prefetch`); a few threads bring those pages into the cache meanwhile.

The pages are small because the blocks of an epoch are visited in a random order all over the shards: with a cache smaller than the
corpus, larger pages would be fetched many times for a part of each (1 MiB: five times as many bytes as are read; 64 KiB: 1.3).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from lm1b.config import Split, TokensConfig
from lm1b.data.tokens.arrays import npy_header
from lm1b.data.tokens.directory import TokenDirectory, TokenSplit
from lm1b.data.tokens.manifest import LARGEST_FILE_BYTES, LARGEST_MANIFEST_BYTES, MANIFEST_NAME, PAGE_BYTES, Manifest, SplitShards
from lm1b.data.tokens.page_cache import PageCache
from lm1b.data.tokens.pages import PageSource, RemoteFile, matching
from lm1b.data.tokens.verified import cache_folder, this_machine
from lm1b.data.vocabulary.files import files_beside
from lm1b.data.vocabulary.vocabulary import VOCABULARY_NAME
from lm1b.errors import UserError
from lm1b.files import atomic_file, digest_of_file
from lm1b.remote import Store, is_url

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


class RemoteArray:
    """A one-dimensional .npy array in the store: slices of it are arrays in memory, read-only where they lie in one page."""

    def __init__(self, file: RemoteFile, dtype: np.dtype, length: int):
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

    can_prefetch = True

    def __init__(self, name: str, source: PageSource, split: SplitShards, token_dtype: np.dtype) -> None:
        super().__init__(name, source.cache.folder, split, token_dtype)
        self._tokens, self._ends = [], []
        for shard in split.shards:
            tokens = RemoteFile(source, shard.tokens_name, shard.tokens_bytes, shard.tokens_pages)
            ends = RemoteFile(source, shard.ends_name, shard.ends_bytes, shard.ends_pages)
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

    def prefetch(self, index: int, start: int, stop: int) -> None:
        """Bring tokens start to stop of shard `index` while others are read."""
        self._tokens[index].want(start, stop)


class RemoteTokens(TokenDirectory):
    """Vocabulary and token shards at a URL."""

    def __init__(self, folder: Path, manifest: Manifest, source: PageSource):
        super().__init__(folder, manifest, source.store.url)
        self._source = source

    @classmethod
    def at(cls, url: str, cache: PageCache) -> RemoteTokens:
        """Fetch manifest and vocabulary. Raises UserError where the folder is not complete, StoreError where it cannot be read."""
        store = Store(url)
        data = store.read_if_there(MANIFEST_NAME, LARGEST_MANIFEST_BYTES)
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
            tokens = cls(folder, manifest, PageSource(store, cache))
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
                data = self._source.store.read(name, check=matching(expected), largest_bytes=LARGEST_FILE_BYTES)
                with atomic_file(path, outlives_power=False) as file:
                    file.write(data)

    def verify_once(self, index: int = 0, count: int = 1) -> int:
        """Nothing to do: a page is verified whenever it comes into memory."""
        return 0

    def split(self, name: Split) -> RemoteSplit:
        """The shards of `train`, `validation` or `test`."""
        return RemoteSplit(name, self._source, self.manifest.splits[name], np.dtype(self.manifest.token_dtype))
