"""When preprocessing cannot write: one line that names the folder, about how much is still to be written there, and how much is free.

1. `explaining_faults` is around everything that writes, and turns the operating system's error into that line.
2. `bytes_of_conversion` and `bytes_of_passes` tell it how much is still to come, from what a byte of text was measured to take.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

from lm1b.data.preprocess.ledger import Ledger
from lm1b.data.text.corpus import Corpus
from lm1b.errors import UserError
from lm1b.files import NO_SPACE, megabytes

# Bytes written for a byte of English text (measured on news): a word and its space take 5.3 bytes.
_RAW_TEXT_COST = 2.1  # sentences sorted, then merged into files
_FIRST_PASS_COST = 0.9  # 4 bytes a token, and each chunk's words
_SECOND_PASS_COST = 0.9  # 4 bytes a token (2 where the vocabulary is small), 8 a sentence

_NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)


def bytes_of_conversion(num_bytes: int) -> float:
    """About how much is written for so many bytes of raw text or rows: tokenized files, and both passes over them."""
    return num_bytes * (_RAW_TEXT_COST + _FIRST_PASS_COST + _SECOND_PASS_COST)


def bytes_of_passes(corpus: Corpus, ledger: Ledger) -> float:
    """About how much the two passes have still to write."""
    to_count = corpus.text_bytes - sum(text.num_bytes for text in ledger.counted.values())
    to_encode = corpus.text_bytes - sum(ledger.counted[name].num_bytes for name in ledger.shards)
    return max(0.0, to_count) * _FIRST_PASS_COST + max(0.0, to_encode) * _SECOND_PASS_COST


@contextlib.contextmanager
def explaining_faults(directory: Path, still_to_write: Callable[[], float]) -> Generator[None]:
    """Around what writes into `directory`. Raises UserError where it is full or may not be written to.

    still_to_write: about how many bytes, asked when it is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            needed, free = (
                megabytes(int(still_to_write())),
                megabytes(shutil.disk_usage(directory if directory.exists() else directory.parent).free),
            )
            raise UserError(
                f"{directory}: {error.strerror}: about {needed} were still to be written and {free} are free; "
                "make room, or choose another tokens.directory, and run again: what is done is not done twice"
            ) from None
        if error.errno in _NOT_ALLOWED and error.filename is not None and Path(error.filename).is_relative_to(directory):
            raise UserError(
                f"{directory}: cannot be written to ({error.strerror}); make it writable or choose another tokens.directory"
            ) from None
        raise
