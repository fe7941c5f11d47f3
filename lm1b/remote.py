"""A folder at a URL (`s3://bucket/folder`, `gs://`, `hf://`, `file://`), through fsspec: reads, writes and deletes that are tried again.

A store that is slow or answers with errors is asked again with growing pauses, for at most `patience_seconds()` in all and the last
request's few seconds; what does not help by waiting (no such bucket, access refused, a package that is not installed)
is said at once. Either way it ends in a `StoreError`: one line that names the URL, what failed, how often it was tried, and what to do.
What this machine's own disk refuses is an OSError as it came.

>>> store = Store("s3://bucket/tokens")
>>> store.read("manifest.json")
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tenacity

from lm1b.errors import UserError
from lm1b.files import LARGEST_JSON_BYTES, digest_of_file
from lm1b.remote_errors import (
    CHECKSUM_TRIES,
    DamagedInStore,
    EndOfPatience,
    OfThisMachine,
    StoreError,
    WrongBytes,
    may_pass,
    meaning_of_store_error,
    naming_this_machine,
    patience_seconds,
)

T = TypeVar("T")
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
ANSWER_SECONDS = 15.0  # for one request, less toward the end of patience but never less than this, and more for large bodies:
LEAST_ANSWER_SECONDS = 5.0
LEAST_BYTES_PER_SECOND = 1e6

_CREDENTIALS = re.compile(r"(?<=://)([^/]*@|[^/@:]+:(?!\d+/)[^@]*@)|\?.*")  # the second: secret keys may hold a slash, ports none


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a path of this machine."""
    return "://" in place


class Store:
    """A folder in a store; names are relative to it. Every method may be called by several threads.

    Raises StoreError where the store cannot be used, UserError where the URL's kind is not known, its package is missing, or the URL
    holds credentials: it goes into logs and messages.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        if _CREDENTIALS.search(url):
            raise UserError(
                f"{_CREDENTIALS.sub('', url)}: given with a user, a key or a query, which would be in every log; give the URL without, "
                "and credentials as the store's own variables and files, such as AWS_ACCESS_KEY_ID"
            )
        self._files, self._root = _open(self.url)
        self._patience = patience_seconds()
        self._asking = threading.local()  # `until`: when patience ends for what this thread does

    def place(self, name: str) -> str:
        """The URL of a file in the folder."""
        return f"{self.url}/{name}" if name else self.url

    def retry(self, name: str, action: str, attempt: Callable[[], T]) -> T:
        """Do `attempt` until it succeeds or patience is at its end. action: as in `could not be read`."""
        pauses = tenacity.wait_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS)
        pauses += tenacity.wait_random(0, FIRST_PAUSE_SECONDS)  # not all ranks at the same instant
        retrying = tenacity.Retrying(
            stop=EndOfPatience(self._patience), wait=pauses, retry=tenacity.retry_if_exception(may_pass), reraise=True
        )
        self._asking.until = time.monotonic() + self._patience
        try:
            return retrying(attempt)
        except OfThisMachine as error:
            raise error.error from None
        except Exception as error:
            if isinstance(error, StoreError | UserError):
                raise
            tries = int(retrying.statistics.get("attempt_number", 1))
            seconds = float(retrying.statistics.get("delay_since_first_attempt", 0.0))
            if isinstance(error, WrongBytes):
                raise DamagedInStore(self.place(name), f"damaged ({error}), {CHECKSUM_TRIES} times; put a sound copy there") from None
            again = (
                f", tried {tries} times in {seconds:.0f} s; run the same command again when the store answers" if may_pass(error) else ""
            )
            raise StoreError(self.place(name), f"could not be {action}: {meaning_of_store_error(error)}{again}") from None

    def _ask(self, method: str, *arguments: Any, num_bytes: int = 0, **keywords: Any) -> Any:
        """One request, with a time limit where the file system is an asynchronous one."""
        if not self._files.async_impl:
            return getattr(self._files, method)(*arguments, **keywords)
        from fsspec.asyn import sync

        left = max(LEAST_ANSWER_SECONDS, self._asking.until - time.monotonic())
        limit = min(ANSWER_SECONDS, left) + num_bytes / LEAST_BYTES_PER_SECOND
        return sync(self._files.loop, getattr(self._files, f"_{method}"), *arguments, timeout=limit, **keywords)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _whole(self, name: str, largest_bytes: int | None) -> bytes:
        """A whole file in one attempt. Its size is asked first: a large one may take longer, and one too large is not read at all."""
        self._files.invalidate_cache()
        num_bytes = int(self._ask("info", self._path(name))["size"] or 0)
        if largest_bytes is not None and num_bytes > largest_bytes:
            raise StoreError(self.place(name), f"{num_bytes} bytes, no such file of ours has more than {largest_bytes >> 20} MiB")
        data = self._ask("cat_file", self._path(name), start=0, end=num_bytes, num_bytes=num_bytes) if num_bytes else b""
        if len(data) != num_bytes:
            raise WrongBytes(f"{num_bytes} bytes expected, found {len(data)}")
        return data

    def read(
        self,
        name: str,
        start: int | None = None,
        stop: int | None = None,
        check: Callable[[bytes], object] | None = None,
        largest_bytes: int | None = LARGEST_JSON_BYTES,
    ) -> bytes:
        """A file's bytes, or those from start to before stop. check: raises WrongBytes for what must be asked for anew.

        largest_bytes: of a whole file; a larger one is a StoreError. None: whatever there is.
        """

        def attempt() -> bytes:
            if start is None or stop is None:
                data = self._whole(name, largest_bytes)
            else:
                data = self._ask("cat_file", self._path(name), start=start, end=stop, num_bytes=stop - start)
                if len(data) != stop - start:
                    raise WrongBytes(f"{stop - start} bytes expected, found {len(data)}")
            if check is not None:
                check(data)
            return data

        return self.retry(name, "read", attempt)

    def read_if_there(self, name: str, largest_bytes: int | None = LARGEST_JSON_BYTES) -> bytes | None:
        """A whole file's bytes, None where the store has no such file. Raises StoreError where it has no such bucket."""

        def attempt() -> bytes | None:
            try:
                return self._whole(name, largest_bytes)
            except FileNotFoundError as error:
                if "NoSuchBucket" in repr(error.__cause__):
                    raise
                return None

        return self.retry(name, "read", attempt)

    def get(self, name: str, path: Path, num_bytes: int, sha256: str) -> None:
        """Copy a file of that size and SHA-256 to this machine. Raises DamagedInStore where it is another each time."""

        def attempt() -> None:
            with naming_this_machine(path, is_written=True):
                self._ask("get_file", self._path(name), str(path), num_bytes=num_bytes)
                found = digest_of_file(path) if path.stat().st_size == num_bytes else f"{path.stat().st_size} bytes instead of {num_bytes}"
            if found != sha256:
                raise WrongBytes(f"SHA-256 expected {sha256}, found {found}")

        self.retry(name, "read", attempt)

    def put(self, path: Path, name: str) -> None:
        """Copy a file of this machine to the store, over what is there."""

        def attempt() -> None:
            with naming_this_machine(path, is_written=False):
                self._ask("put_file", str(path), self._path(name), num_bytes=path.stat().st_size)

        self.retry(name, "written", attempt)

    def write(self, name: str, data: bytes) -> None:
        """Make a file of these bytes, over what is there."""
        self.retry(name, "written", lambda: self._ask("pipe_file", self._path(name), data, num_bytes=len(data)))

    def delete(self, name: str) -> None:
        """Remove a file; none is there afterwards, whether or not one was before."""

        def attempt() -> None:
            try:
                self._ask("rm_file", self._path(name))
            except FileNotFoundError:
                return

        self.retry(name, "deleted", attempt)

    def list(self, name: str = "") -> dict[str, int | None]:
        """What lies directly in a folder: name -> bytes of a file, None for a folder. Empty where there is no such folder."""

        def attempt() -> dict[str, int | None]:
            self._files.invalidate_cache()
            try:
                entries = self._ask("ls", self._path(name), detail=True)
            except FileNotFoundError as error:
                if "NoSuchBucket" in repr(error.__cause__):
                    raise
                return {}
            found = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry for entry in entries}
            return {name: entry["size"] if entry["type"] == "file" else None for name, entry in found.items()}

        return self.retry(name, "listed", attempt)


def _open(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. Raises UserError for an unknown kind or a package that is missing."""
    from fsspec.config import conf  # its import takes time that nobody without a URL should wait for
    from fsspec.core import split_protocol, url_to_fs

    protocol, _ = split_protocol(url)
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a") and "config_kwargs" not in conf.get("s3", {}):
        # botocore's own limits are a minute each, and s3fs tries five times five; `Store.retry` does that.
        options["config_kwargs"] = {"connect_timeout": 5, "read_timeout": ANSWER_SECONDS, "retries": {"max_attempts": 0}}
    if protocol in ("file", "local"):
        options["auto_mkdir"] = True
    try:
        files, root = url_to_fs(url, **options)
    except ImportError as error:
        packages = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
        package = packages.get(str(protocol))
        install = f"pip install {package}" if package else str(error)
        raise UserError(f"{url}: reading {protocol}:// needs a package that is not installed: {install}") from None
    except ValueError as error:
        raise UserError(f"{url}: {error}; expected a folder of this machine or a URL: s3://, gs://, hf:// or file://") from None
    if hasattr(files, "retries"):
        files.retries = 1
    return files, str(root).rstrip("/")
