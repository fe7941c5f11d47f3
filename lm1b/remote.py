"""A folder at a URL (`s3://bucket/folder`, `gs://`, `hf://`, `file://`), through fsspec: reads, writes and deletes that are tried again.

A store that is slow or answers with errors is asked again with growing pauses, for at most `patience_seconds()` in all and the last
request's few seconds; what does not help by waiting (no such bucket, access refused, a package that is not installed)
is said at once. Either way it ends in a `StoreError`: one line that names the URL, what failed, how often it was tried, and what to do.
What this machine's own disk refuses is an OSError as it came.

>>> store = Store("s3://bucket/tokens")
>>> store.read("manifest.json")
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import tenacity
from tenacity.stop import stop_base

from lm1b.errors import UserError
from lm1b.files import LARGEST_JSON_BYTES, NO_SPACE, digest_of_file

T = TypeVar("T")
PATIENCE_VARIABLE, DEFAULT_PATIENCE = "LM1B_STORE_SECONDS", "25"  # less than the 60 s that ranks wait for one another
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
ANSWER_SECONDS = 15.0  # for one request, less toward the end of patience but never less than this, and more for large bodies:
LEAST_ANSWER_SECONDS = 5.0
LEAST_BYTES_PER_SECOND = 1e6
CHECKSUM_TRIES = 3  # a body that is wrong in the same way each time is wrong in the store

_HELPLESS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, TypeError, AttributeError)
_HELPLESS_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NoRegionError", "ProfileNotFound")
_INVALID = (errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOSYS, errno.ENAMETOOLONG)
_CREDENTIALS = re.compile(r"(?<=://)([^/]*@|[^/@:]+:(?!\d+/)[^@]*@)|\?.*")  # the second: secret keys may hold a slash, ports none
_PASSING_NAMES = ("IncompleteBody", "BadDigest", "RequestTimeout")  # S3 answers these to a body that was cut on its way


class StoreError(OSError):
    """A store that does not give or take what it should, in one line: as a full disk, no fault of the program's."""

    def __init__(self, url: str, problem: str):
        super().__init__(errno.EIO, problem, url)


class DamagedInStore(StoreError):
    """A file that came with the same wrong bytes again and again."""


class WrongBytes(Exception):
    """What has come is not what was asked for: too short, or of another checksum."""


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a path of this machine."""
    return "://" in place


def patience_seconds() -> float:
    """How long a store is asked again. Raises UserError where the environment says something else than seconds."""
    text = os.environ.get(PATIENCE_VARIABLE, DEFAULT_PATIENCE)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(f"{PATIENCE_VARIABLE}={text}: expected a number of seconds")
    return seconds


class _OfThisMachine(Exception):
    """Around an error of this machine's disk, on its way past the store's errors."""

    def __init__(self, error: OSError):
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def _naming_this_machine(path: Path, *, is_written: bool) -> Iterator[None]:
    """Around copying a file to or from the store: an error about `path` here is no store's. is_written: nor is a full disk."""
    try:
        yield
    except OSError as error:
        is_full = is_written and error.errno in NO_SPACE
        if is_full:
            error.filename, error.filename2 = str(path), None
        if is_full or (error.errno is not None and error.filename2 is None and str(error.filename) == str(path)):
            raise _OfThisMachine(error) from None
        raise


def _may_pass(error: BaseException) -> bool:
    """Whether an error may go away by itself."""
    if not isinstance(error, Exception) or isinstance(error, StoreError) or type(error).__name__ in _HELPLESS_NAMES:
        return False
    if isinstance(error, _OfThisMachine):
        return False
    if isinstance(error, OSError) and error.errno in _INVALID:
        return any(name in str(error) or name in repr(error.__cause__) for name in _PASSING_NAMES)
    return not isinstance(error, _HELPLESS)


def _in_words(error: BaseException) -> str:
    """What a store's error means, in a few words."""
    said = " ".join(str(error.strerror if isinstance(error, OSError) and error.strerror else error).split())[:200]
    if isinstance(error, FileNotFoundError):
        return "not there; check the bucket, the folder and the endpoint"
    if isinstance(error, PermissionError):
        return f"access refused ({said}); check the credentials and their rights"
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return f"{said}; set the store's credentials, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, TimeoutError) or type(error).__name__ == "FSTimeoutError":
        return "no answer in time"
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class _EndOfPatience(stop_base):
    """After so many seconds; where bytes are wrong, after so many times: the way to here spoils some, not the same ones each time."""

    def __init__(self, seconds: float):
        self._seconds, self._times_wrong = seconds, 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        outcome = retry_state.outcome
        if outcome is not None and isinstance(outcome.exception(), WrongBytes):
            self._times_wrong += 1
            return self._times_wrong >= CHECKSUM_TRIES
        return (retry_state.seconds_since_start or 0.0) + retry_state.upcoming_sleep >= self._seconds


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
            stop=_EndOfPatience(self._patience), wait=pauses, retry=tenacity.retry_if_exception(_may_pass), reraise=True
        )
        self._asking.until = time.monotonic() + self._patience
        try:
            return retrying(attempt)
        except _OfThisMachine as error:
            raise error.error from None
        except Exception as error:
            if isinstance(error, StoreError | UserError):
                raise
            tries = int(retrying.statistics.get("attempt_number", 1))
            seconds = float(retrying.statistics.get("delay_since_first_attempt", 0.0))
            if isinstance(error, WrongBytes):
                raise DamagedInStore(self.place(name), f"damaged ({error}), {CHECKSUM_TRIES} times; put a sound copy there") from None
            again = (
                f", tried {tries} times in {seconds:.0f} s; run the same command again when the store answers" if _may_pass(error) else ""
            )
            raise StoreError(self.place(name), f"could not be {action}: {_in_words(error)}{again}") from None

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
            with _naming_this_machine(path, is_written=True):
                self._ask("get_file", self._path(name), str(path), num_bytes=num_bytes)
                found = digest_of_file(path) if path.stat().st_size == num_bytes else f"{path.stat().st_size} bytes instead of {num_bytes}"
            if found != sha256:
                raise WrongBytes(f"SHA-256 expected {sha256}, found {found}")

        self.retry(name, "read", attempt)

    def put(self, path: Path, name: str) -> None:
        """Copy a file of this machine to the store, over what is there."""

        def attempt() -> None:
            with _naming_this_machine(path, is_written=False):
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
