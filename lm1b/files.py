"""Files that are whole or not there: written aside, flushed, renamed; hashes; JSON and JSON lines.

*Sealed* JSON carries the SHA-256 of the rest of itself, so that a flipped bit is found in what vouches for other files too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator, Iterator
from io import FileIO
from pathlib import Path
from typing import IO, Any, BinaryIO

from lm1b.errors import UserError

READ_BYTES = 1 << 20
LARGEST_JSON_BYTES = 32 << 20  # at worst (nothing but `{},`) Python makes 800 MB of it
LARGEST_LINE_BYTES = 1 << 20
DEEPEST_JSON = 64
POLL_SECONDS = 0.005  # between two looks at a lock that somebody holds
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def flush_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path, *, outlives_power: bool = True) -> Generator[BinaryIO]:
    """A binary file that appears under `path` only when the block ends without an error.

    outlives_power: wait for the disk. Not needed for what is checked before it is used again and can be made again.
    Raises OSError (disk full, read-only folder) with the half-written neighbour removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            if outlives_power:
                os.fsync(file.fileno())
        os.replace(partial, path)
        if outlives_power:
            flush_folder(path.parent)
    except OSError as error:
        # The user knows the final name, not the partial one.
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def needing_space(folder: Path, num_bytes: int, *, checks_first: bool = True) -> Generator[None]:
    """Around writing `num_bytes` into `folder`. Raises UserError that says how much was needed and how much there is, at once
    (where it checks first) or when the disk turns out to be full meanwhile.
    """

    def refuse() -> UserError:
        free = shutil.disk_usage(folder).free
        return UserError(
            f"{folder}: not enough space, {megabytes(num_bytes)} are needed and {megabytes(free)} are free; make room, and run again"
        )

    Path(folder).mkdir(parents=True, exist_ok=True)
    if checks_first and shutil.disk_usage(folder).free < num_bytes:
        raise refuse()
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise refuse() from None
        raise


def try_lock(file: IO[Any], seconds: float, *, shared: bool = False) -> bool:
    """Lock an open file until it is closed, against whoever else has opened it. -> whether that worked in so many seconds."""
    give_up_at = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= give_up_at:
                return False
        time.sleep(POLL_SECONDS)


def megabytes(num_bytes: int) -> str:
    """A number of bytes for people: 12.3 MB."""
    return f"{num_bytes / 1e6:,.1f} MB"


def write_json(path: Path, value: Any, *, outlives_power: bool = True) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path, outlives_power=outlives_power) as file:
        file.write(_as_bytes(value))


def _as_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with `seal`: the SHA-256 of the rest."""
    rest = {key: item for key, item in value.items() if key != "seal"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return {**rest, "seal": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()}


def write_sealed_json(path: Path, value: dict[str, Any], *, outlives_power: bool = True, largest_bytes: int = LARGEST_JSON_BYTES) -> None:
    """Write a JSON object with its seal, atomically. Raises UserError where it would be too large to be read again."""
    data = _as_bytes(seal(value))
    if len(data) > largest_bytes:
        raise UserError(f"{path}: {megabytes(len(data))}, more than the {largest_bytes >> 20} MiB that are ever read again")
    with atomic_file(path, outlives_power=outlives_power) as file:
        file.write(data)


def read_sealed_json(path: Path, largest_bytes: int = LARGEST_JSON_BYTES) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote, without the seal. Raises UserError where anything in it has changed since."""
    value = read_json(path, largest_bytes)
    if not isinstance(value, dict) or "seal" not in value:
        raise UserError(f"{path}: has no seal, so it is not what this program wrote")
    expected, found = value["seal"], seal(value)["seal"]
    if expected != found:
        raise UserError(f"{path}: damaged, SHA-256 expected {expected}, found {found}")
    del value["seal"]
    return value


def _is_deeper_than(value: Any, limit: int) -> bool:
    """Whether objects and lists are nested more than `limit` deep."""
    level = [value]
    for _ in range(limit + 1):
        inner = (item for outer in level for item in (outer.values() if isinstance(outer, dict) else outer))
        level = [item for item in inner if isinstance(item, dict | list)] if isinstance(value, dict | list) else []
        if not level:
            return False
    return True


def read_json(path: Path, largest_bytes: int = LARGEST_JSON_BYTES) -> Any:
    """Read one JSON file. Raises UserError where it is missing, is no JSON or is too large or too deep to be one of ours."""
    try:
        with open(path, "rb") as file:
            data = file.read(largest_bytes + 1)
        if len(data) > largest_bytes:
            raise UserError(f"{path}: larger than {largest_bytes >> 20} MiB, no such file of ours is")
        value = json.loads(data.decode("utf-8"))
        if _is_deeper_than(value, DEEPEST_JSON):
            raise RecursionError
        return value
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, expected a JSON file") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"{path}: not valid JSON ({error})") from None


def append_json_line(path: Path, value: Any) -> None:
    """Append one line of JSON and flush it. What a killed writer or a full disk left of a line before it is cut off.

    Raises OSError where the line does not fit on the disk; the file then holds whole lines only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    with open(path, "a+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # trainer and evaluator never write the same file, two evaluators may
        end = _end_of_whole_lines(file)
        try:
            file.truncate(end)
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(end)
            error.filename = str(path)
            raise


def _end_of_whole_lines(file: FileIO) -> int:
    """Length of the file up to and with its last newline."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Lines that end in a newline. Raises UserError where one is too long to be ours."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LARGEST_LINE_BYTES):
            number += 1
            if line.endswith(b"\n"):
                yield line
            elif len(line) == LARGEST_LINE_BYTES:
                raise UserError(f"{path}:{number}: longer than {LARGEST_LINE_BYTES >> 20} MiB, no line of ours is")
            else:
                return  # it is being written just now: what could be read next is the rest of it


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a JSON-lines file (an unfinished last line is left out); empty where there is no file.

    Raises UserError that names the line which is no JSON object, or whose seal (where it has one) is broken.
    """
    if not Path(path).exists():
        return []
    rows = []
    for number, line in enumerate(_whole_lines(Path(path)), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error})") from None
        if not isinstance(row, dict) or _is_deeper_than(row, DEEPEST_JSON):
            raise UserError(f"{path}:{number}: expected a JSON object")
        if "seal" in row and seal(row) != row:
            raise UserError(f"{path}:{number}: damaged, its seal is not that of the rest of the line; remove the line to go on")
        row.pop("seal", None)
        rows.append(row)
    return rows


def digest_of_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
