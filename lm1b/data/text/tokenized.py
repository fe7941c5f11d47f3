"""Tokenized text as bytes: checked, tidied, and seen as an array of words without copying them one by one.

1. `check_text` refuses bytes that are not UTF-8 and lines too long to be a sentence, and says where; `without_mark` leaves out the mark
   that a file of some editors begins with.
2. `tidy` brings white space and symbols into one shape: words part at spaces only, sentences at newlines only, the last one too.
   ASCII white space is what parts words; `</S>` and `<S>` written in the text are read as `<UNK>`, since those two symbols are the
   stream's own.
3. `tokens_of` views that as an Arrow array whose items are `word + b" "`, with `</S> ` where each sentence ends; blank lines are no
   sentences. The trailing space makes the items touch each other, so that the array is nothing but the text and where its spaces are.
4. `number_tokens` numbers the distinct ones, so that what is slow need be done once a distinct word.

>>> tokens_of(tidy(b"Hello ,\tworld !\\r\\n")).to_pylist()
[b'Hello ', b', ', b'world ', b'! ', b'</S> ']
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from lm1b.errors import UserError

END = "</S>"
START = "<S>"
UNKNOWN = "<UNK>"
RESERVED = (END, START, UNKNOWN)

BLOCK_BYTES = 1 << 20  # worked on at a time: large arrays would spend their time in page faults (measured: 28 against 600 MB/s)
LONGEST_LINE_BYTES = 16 << 20

compute: Any = pyarrow.compute  # its functions are made at import, where no type checker sees them

_OTHER_SPACE = b"\t\r\v\f"
_AS_SPACE = bytes.maketrans(_OTHER_SPACE, b" " * len(_OTHER_SPACE))
_WRITTEN_SYMBOL = re.compile(rb"(?<=[ \n])</?S>(?=[ \n])")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def as_numpy(array: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Numbers without nulls as a view of Arrow's memory, read-only; copied where they lie in several chunks."""
    return np.from_dlpack(array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array)


def check_text(data: bytes, source: str, first_byte: int = 0) -> None:
    """Raise UserError for bytes that are no text of sentences: not UTF-8, or a line too long to be one, which would be worked on at once,
    at many times its size in memory. first_byte: where `data` begins in `source`.
    """
    check_utf8(data, source, first_byte)
    start = 0
    while len(data) - start > LONGEST_LINE_BYTES:
        newline = data.rfind(b"\n", start, start + LONGEST_LINE_BYTES)
        if newline < 0:
            raise too_long_a_line(f"{source}:")
        start = newline + 1


def too_long_a_line(place: str) -> UserError:
    """What is said where `place` has a line of LONGEST_LINE_BYTES or more."""
    return UserError(f"{place} has a line of more than {LONGEST_LINE_BYTES >> 20} MiB; expected one sentence a line")


def without_mark(data: bytes) -> bytes:
    """What a file says: the same without the byte order mark, where it begins with one. U+FEFF anywhere else is a letter."""
    return data.removeprefix(_BYTE_ORDER_MARK)


def check_utf8(data: bytes, source: str, first_byte: int = 0) -> None:
    """Raise UserError naming the byte, and in a file from its start the line, where `data` stops being UTF-8."""
    if not data:
        return
    offsets = np.array([0, len(data)], dtype=np.int64)
    whole = pa.Array.from_buffers(pa.large_string(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    try:
        whole.validate(full=True)  # Arrow's validator: no copy, several times faster than decoding
    except pa.ArrowInvalid:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            line_number = data.count(b"\n", 0, error.start) + 1
            line = f"line {line_number}, " if first_byte == 0 else ""
            raise UserError(
                f"{source}: not UTF-8 at {line}byte {first_byte + error.start} (0x{data[error.start]:02x}); "
                "expected UTF-8 text: convert the file, for example with iconv"
            ) from None


def tidy(data: bytes) -> bytes:
    """Text whose words are parted by spaces and whose sentences end with newlines; the same object where it is so already."""
    if data and not data.endswith(b"\n"):
        data += b"\n"
    if any(space in data for space in (b"\t", b"\r", b"\v", b"\f")):
        data = data.replace(b"\r\n", b"\n").translate(_AS_SPACE)
    if _has_written_symbol(data):
        data = _WRITTEN_SYMBOL.sub(UNKNOWN.encode(), b"\n" + data)[1:]
    return data


def blank_lines(data: bytes) -> list[bool]:
    """For every line of text whether it is blank, and so no sentence. data: from the start of a file."""
    return [not line.strip(b" ") for line in tidy(without_mark(data)).split(b"\n")[:-1]]


def _has_written_symbol(data: bytes) -> bool:
    """Whether `</S>` or `<S>` is in the text, perhaps inside a word.

    Searching for one byte runs at 30 GB/s, for a string at 2 GB/s; so find each `<` first and look at what follows.
    """
    place = data.find(b"<")
    while place >= 0 and not data.startswith((b"</S>", b"<S>"), place):
        place = data.find(b"<", place + 1)
    return place >= 0


def _collapse(data: bytes) -> bytes:
    """Drop empty words and blank lines."""
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    data = data.replace(b" \n", b"\n").replace(b"\n ", b"\n")
    while b"\n\n" in data:
        data = data.replace(b"\n\n", b"\n")
    return data.lstrip(b" \n")


def tokens_of(data: bytes) -> pa.BinaryArray:
    """The stream's tokens of text, each with one trailing space, `</S> ` at sentence ends. `data` shorter than 1 GiB."""
    assert len(data) < 1 << 30, "32-bit offsets"
    tidied = tidy(data)
    text, offsets = _parted(tidied)
    # An item that is nothing but its space: doubled, leading or trailing spaces or a blank line. Rare, so collapsed on sight.
    if len(offsets) > 1 and np.diff(offsets).min() == 1:
        text, offsets = _parted(_collapse(tidied))
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def _parted(text: bytes) -> tuple[bytes, np.ndarray]:
    """-> (tidy text with `</S>` at the sentences' ends, where its items begin and the last one ends, int32)."""
    text = text.replace(b"\n", b" </S> ")
    ends = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == 0x20)
    offsets = np.zeros(len(ends) + 1, dtype=np.int32)
    np.add(ends, 1, out=offsets[1:], casting="unsafe")
    return text, offsets


def blocks_of(data: bytes, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Cut text after newlines into blocks of about `block_bytes`."""
    start = 0
    while start < len(data):
        newline = data.find(b"\n", min(start + block_bytes, len(data)) - 1)
        stop = len(data) if newline < 0 else newline + 1
        yield data if start == 0 and stop == len(data) else data[start:stop]
        start = stop


def code_dtype(num_words: int) -> np.dtype:
    """The narrowest type for the numbers of a text's own words."""
    return np.dtype(np.uint16 if num_words <= 1 << 16 else np.int32)


def number_tokens(data: bytes) -> tuple[pa.BinaryArray, np.ndarray, np.ndarray]:
    """-> (distinct tokens of text with trailing space (m,), the text as their numbers, `code_dtype(m)` (n,), how often each is there,
    int64 (m,)). The numbers run in order of appearance.
    """
    blocks = pa.chunked_array([tokens_of(block) for block in blocks_of(data)], pa.binary())
    encoded = blocks.dictionary_encode()  # one table of tokens for all blocks
    distinct = encoded.chunk(encoded.num_chunks - 1).dictionary if encoded.num_chunks else pa.array([], pa.binary())
    numbers = np.empty(len(encoded), dtype=code_dtype(len(distinct)))
    counts = np.zeros(len(distinct), dtype=np.int64)
    start = 0
    for chunk in encoded.chunks:
        codes = as_numpy(chunk.indices)
        numbers[start : start + len(codes)] = codes
        start += len(codes)
        found = np.bincount(codes)
        counts[: len(found)] += found
    return distinct, numbers, counts
