"""One-dimensional .npy files: written atomically with their checksums, mapped without being believed.

1. `write_array` writes a header (`npy_header`) and the items, and gives the file's SHA-256; `digests_of_pages` gives one of every page.
2. `map_array` compares the header with the one that such an array must have, instead of parsing it, and maps the items.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from lm1b.data.tokens.manifest import PAGE_BYTES
from lm1b.errors import UserError
from lm1b.files import atomic_file


def npy_header(dtype: np.dtype, length: int) -> bytes:
    """First bytes of a .npy file of `length` items."""
    header = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def write_array(path: Path, array: np.ndarray, *, outlives_power: bool = True) -> tuple[int, str]:
    """Write a one-dimensional array as a .npy file, atomically -> (bytes, SHA-256). outlives_power: see `atomic_file`."""
    header = npy_header(array.dtype, len(array))
    digest = hashlib.sha256()
    num_bytes = 0
    with atomic_file(path, outlives_power=outlives_power) as file:
        # Not ndarray.tofile: on a full disk that raises an error without its number.
        for part in (header, np.ascontiguousarray(array).data.cast("B")) if array.size else (header,):
            file.write(part)
            digest.update(part)
            num_bytes += len(part)
    return num_bytes, digest.hexdigest()


def digests_of_pages(array: np.ndarray) -> list[str]:
    """SHA-256 of every PAGE_BYTES of what `write_array` writes."""
    header = npy_header(array.dtype, len(array))
    data = np.ascontiguousarray(array).data.cast("B") if array.size else memoryview(b"")
    first = PAGE_BYTES - len(header)
    rest = [hashlib.sha256(data[start : start + PAGE_BYTES]).hexdigest() for start in range(first, len(data), PAGE_BYTES)]
    return [hashlib.sha256(header + bytes(data[:first])).hexdigest(), *rest]


def map_array(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    """Map the array that `write_array` wrote, read-only. Raises UserError where the file does not hold `length` items of `dtype`.

    The header is compared, not parsed: a file that says something else of itself is never believed.
    """
    header = npy_header(dtype, length)
    expected = len(header) + length * dtype.itemsize
    try:
        found = path.stat().st_size if path.is_file() else 0
        with open(path, "rb") as file:
            is_ours = file.read(len(header)) == header and found == expected
            if is_ours:
                array = np.memmap(file, dtype, mode="r", offset=len(header), shape=(length,)) if length else np.zeros(0, dtype)
                return np.asarray(array)  # a plain view of the map: numpy's memmap class makes every slice slow
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a token shard ({error}): run launch/preprocess.py again") from None
    raise UserError(f"{path}: not a token shard of {length} {dtype} in {expected} bytes (it has {found}): run launch/preprocess.py again")
