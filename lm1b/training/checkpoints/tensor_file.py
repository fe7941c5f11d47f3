"""safetensors files written front to back and hashed on the way, and read by ranges of rows.

The library writes tensors that are all in memory, and maps a file to read it, so that a table read through it is held twice.
A checkpoint's tables are as large as the machine, so they are written from blocks and read straight into their place. The
format is the library's (8 bytes: the header's length; the header: JSON; then the tensors' bytes), which reads these files too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lm1b.errors import UserError

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
ELEMENT_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
LARGEST_HEADER_BYTES = 1 << 20
CAST_ELEMENTS = 2 << 20  # at a time, of a tensor that is read in another dtype


class TensorFile:
    """A safetensors file being written: `write` takes the tensors' bytes in the order of `layout`, in parts of any size."""

    def __init__(self, path: Path, layout: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> None:
        """layout: name -> (dtype as in ELEMENT_BYTES, shape). metadata: of the whole file. Raises OSError where it cannot be written."""
        self.path = Path(path)
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for name, (dtype, shape) in layout.items():
            start, end = end, end + ELEMENT_BYTES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8, as the library has it
        self._num_bytes, self._expected = 0, 8 + len(text) + end
        self._digest = hashlib.sha256()
        self._file = open(self.path, "wb", buffering=0)  # noqa: SIM115 (closed by `finish`)
        self.write(len(text).to_bytes(8, "little") + text)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. Raises OSError where the disk is full."""
        self._digest.update(data)
        rest = memoryview(data)
        try:
            while len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            error.filename = str(self.path)
            raise
        self._num_bytes += len(data)

    def finish(self) -> dict[str, Any]:
        """Flush to disk and close. -> what the manifest says of the file: `bytes` and `sha256`."""
        assert self._num_bytes == self._expected, f"{self.path}: {self._num_bytes} bytes written of {self._expected}"
        with self._file:
            os.fsync(self._file.fileno())
        return {"bytes": self._num_bytes, "sha256": self._digest.hexdigest()}

    def abandon(self) -> None:
        """Close an unfinished file."""
        self._file.close()


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous CPU tensor's memory."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a whole file, tensors by name, so that equal tensors make equal bytes. -> its size and SHA-256."""
    kept = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    file = TensorFile(path, {name: (DTYPE_NAMES[tensor.dtype], tensor.shape) for name, tensor in kept.items()})
    try:
        for tensor in kept.values():
            file.write(bytes_of(tensor))
    except OSError:
        file.abandon()
        raise
    return file.finish()


class MatrixInFile:
    """One float32 matrix of a safetensors file, read by ranges of rows. Raises UserError where the file has not this matrix."""

    def __init__(self, path: Path, name: str, shape: tuple[int, int]) -> None:
        self.path, self.shape = Path(path), shape
        entry, self._first_byte = _find(self.path, name)
        if entry.get("shape") != list(shape) or entry.get("dtype") != "F32":
            raise UserError(f"{path}: {name} is {entry.get('dtype')} {entry.get('shape')}, expected F32 {list(shape)}")
        if self._first_byte + 4 * math.prod(shape) > self.path.stat().st_size:
            raise UserError(f"{path}: cut short, {name} is not all there")

    def blocks(self, rows_at_a_time: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, float32 block) from front to back; the block's memory is used again for the next one."""
        length, width = self.shape
        buffer = np.empty((min(rows_at_a_time, length), width), dtype=np.float32)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._first_byte)
            for start in range(0, length, rows_at_a_time):
                block = buffer[: min(rows_at_a_time, length - start)]
                _read_into(file, block, self.path)
                yield start, block

    def read_into(self, matrix: np.ndarray) -> None:
        """All rows, straight into a contiguous float32 matrix of the same shape."""
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self._first_byte)
            _read_into(file, matrix, self.path)


def read_tensor(path: Path, name: str, out: Tensor) -> None:
    """One tensor of a file into `out` (contiguous, on the CPU); another dtype is cast a block at a time, so that nothing is there twice.

    Raises UserError where the file has no such tensor of out's shape.
    """
    entry, first_byte = _find(Path(path), name)
    dtype = next((dtype for dtype, known in DTYPE_NAMES.items() if known == entry["dtype"]), None)
    if entry["shape"] != list(out.shape) or dtype is None:
        raise UserError(f"{path}: {name} is {entry['dtype']} {entry['shape']}, expected {list(out.shape)}")
    flat = out.reshape(-1)
    block = flat if dtype == out.dtype else torch.empty(min(len(flat), CAST_ELEMENTS), dtype=dtype)
    with open(path, "rb", buffering=0) as file:
        file.seek(first_byte)
        for start in range(0, len(flat), max(1, len(block))):
            part = block[: len(flat) - start]
            _read_into(file, part.view(torch.uint8).numpy(), Path(path))
            if block is not flat:
                flat[start : start + len(part)] = part


def _find(path: Path, name: str) -> tuple[dict[str, Any], int]:
    """A tensor's header entry, and the place of its first byte in the file."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length <= LARGEST_HEADER_BYTES else None
        entry = header[name]  # type: ignore[index]
        start, stop = entry["data_offsets"]
        size = ELEMENT_BYTES[entry["dtype"]] * math.prod(entry["shape"])
        if isinstance(start, int) and start >= 0 and stop - start == size:
            return entry, 8 + length + start
    except FileNotFoundError:
        raise UserError(f"{path}: missing from the checkpoint") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise UserError(f"{path}: not a safetensors file with a tensor `{name}`")


def _read_into(file: Any, matrix: np.ndarray, path: Path) -> None:
    rest = matrix.data.cast("B") if matrix.size else memoryview(b"")
    while len(rest):
        count = file.readinto(rest)
        if not count:
            raise UserError(f"{path}: cut short while it was read")
        rest = rest[count:]
