"""Whether a part of the work is done already: a receipt lies beside the files that it left, and says of what, and which bytes.

1. When a part's files are on the disk, `write_receipt` notes what they were made of (the key), each file's SHA-256, and what is to be
   known of them (the result).
2. A later run asks `read_receipt` with the key of today's text and settings. It gets an answer only where the receipt is whole, the key
   is the same and every file is there, byte for byte. Whatever else it finds, the part is made again: nothing left over is used unchecked.

A receipt is sealed JSON: {"key": ..., "files": {"train-00000.tokens.npy": "900b..."}, "result": ..., "seal": ...}.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from lm1b.errors import UserError
from lm1b.files import digest_of_file, read_sealed_json, write_sealed_json

T = TypeVar("T")


@dataclass(frozen=True)
class Receipt(Generic[T]):
    """What is known of work that was done before. files: those that are there, undamaged."""

    result: T
    files: frozenset[str]


def write_receipt(path: Path, key: Any, files: Mapping[str, str], result: Any = None, *, outlives_power: bool = True) -> None:
    """Note that work is done. key, result: JSON. files: names, beside `path`, and their SHA-256. outlives_power: see `atomic_file`."""
    write_sealed_json(path, {"key": key, "files": dict(files), "result": result}, outlives_power=outlives_power)


def read_receipt(path: Path, key: Any, parse: Callable[[Any], T], *, may_be_gone: Collection[str] = ()) -> Receipt[T] | None:
    """The receipt of the same work, where it holds. Reads every file.

    key: as it was written. parse: makes of the result what it was; it raises ValueError or TypeError where that cannot be.
    may_be_gone: files that need not be there; the others must be.
    """
    with contextlib.suppress(UserError, OSError, KeyError, ValueError, TypeError, AttributeError):
        receipt = read_sealed_json(path)
        if receipt["key"] == key:
            found = {name: is_sound(path.with_name(name), sha256) for name, sha256 in receipt["files"].items()}
            if all(whole or name in may_be_gone for name, whole in found.items()):
                return Receipt(parse(receipt["result"]), frozenset(name for name, whole in found.items() if whole))
    return None


def is_sound(path: Path, sha256: str) -> bool:
    """Whether there is such a file, with these bytes."""
    return path.is_file() and digest_of_file(path) == sha256
