"""What goes wrong with a store at a URL: what may go away by itself, for how long it is asked again, and what to tell of it.

1. `may_pass`: a slow store, a broken connection, wrong bytes are tried again; a missing bucket or package, refused access, a full disk not.
2. `EndOfPatience`: after `patience_seconds()`, or CHECKSUM_TRIES times the same wrong bytes.
3. `meaning_of_store_error`: what it means, for the one line of a `StoreError`.

Errors of this machine's own disk on the way are no store's: `naming_this_machine`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Generator
from pathlib import Path

import tenacity
from tenacity.stop import stop_base

from lm1b.errors import UserError
from lm1b.files import NO_SPACE

PATIENCE_VARIABLE, DEFAULT_PATIENCE = "LM1B_STORE_SECONDS", "25"  # less than the 60 s that ranks wait for one another
CHECKSUM_TRIES = 3  # a body that is wrong in the same way each time is wrong in the store

_HELPLESS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError, TypeError, AttributeError)
_HELPLESS_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "NoRegionError", "ProfileNotFound")
_INVALID = (errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOSYS, errno.ENAMETOOLONG)
_PASSING_NAMES = ("IncompleteBody", "BadDigest", "RequestTimeout")  # S3 answers these to a body that was cut on its way


class StoreError(OSError):
    """A store that does not give or take what it should, in one line: as a full disk, no fault of the program's."""

    def __init__(self, url: str, problem: str):
        super().__init__(errno.EIO, problem, url)


class DamagedInStore(StoreError):
    """A file that came with the same wrong bytes again and again."""


class WrongBytes(Exception):
    """What has come is not what was asked for: too short, or of another checksum."""


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


class OfThisMachine(Exception):
    """Around an error of this machine's disk, on its way past the store's errors."""

    def __init__(self, error: OSError):
        super().__init__(str(error))
        self.error = error


@contextlib.contextmanager
def naming_this_machine(path: Path, *, is_written: bool) -> Generator[None]:
    """Around copying a file to or from the store: an error about `path` here is no store's. is_written: nor is a full disk."""
    try:
        yield
    except OSError as error:
        is_full = is_written and error.errno in NO_SPACE
        if is_full:
            error.filename, error.filename2 = str(path), None
        if is_full or (error.errno is not None and error.filename2 is None and str(error.filename) == str(path)):
            raise OfThisMachine(error) from None
        raise


def may_pass(error: BaseException) -> bool:
    """Whether an error may go away by itself."""
    if not isinstance(error, Exception) or isinstance(error, StoreError) or type(error).__name__ in _HELPLESS_NAMES:
        return False
    if isinstance(error, OfThisMachine):
        return False
    if isinstance(error, OSError) and error.errno in _INVALID:
        return any(name in str(error) or name in repr(error.__cause__) for name in _PASSING_NAMES)
    return not isinstance(error, _HELPLESS)


def meaning_of_store_error(error: BaseException) -> str:
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


class EndOfPatience(stop_base):
    """After so many seconds; where bytes are wrong, after so many times: the way to here spoils some, not the same ones each time."""

    def __init__(self, seconds: float):
        self._seconds, self._times_wrong = seconds, 0

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        outcome = retry_state.outcome
        if outcome is not None and isinstance(outcome.exception(), WrongBytes):
            self._times_wrong += 1
            return self._times_wrong >= CHECKSUM_TRIES
        return (retry_state.seconds_since_start or 0.0) + retry_state.upcoming_sleep >= self._seconds
