"""Files made to fill the memory: every reader of data refuses them in one clean line, within bounded memory."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_worker import measure
from small_tokens import make_directory

from lm1b.data.text.benchmark import TRAINING_FOLDER

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["lm1b.data.preprocess.preprocess"])
pytestmark = pytest.mark.usefixtures("cache_folder")


def bomb(path: Path, megabytes: int, beginning: bytes, block: bytes) -> Path:
    """A .tar.gz that unpacks to `megabytes` of `block` after `beginning`: gzip files one after another are one."""
    packed = gzip.compress(block)
    path.write_bytes(gzip.compress(beginning) + packed * ((megabytes << 20) // len(block)))
    return path


def zeros(path: Path, beginning: bytes, num_bytes: int) -> Path:
    """A file that takes no place on the disk."""
    path.write_bytes(beginning)
    os.truncate(path, num_bytes)
    return path


def header(name: str, size: int, **fields: Any) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT)


HUGE = 1 << 60
TRAINING_MEMBER = f"top/{TRAINING_FOLDER}/news.en-00001-of-00002"
ZEROS, TEXT, LETTERS = b"\0" * (1 << 20), b"a b c d e f g h i j k l m n o p\n" * (1 << 15), b"a " * (1 << 19)


def write_case(folder: Path, case: str) -> tuple[str, Path]:
    """A hostile file -> (its reader in memory_worker.py, path)."""
    path = folder / "file"
    if case == "many lists":
        path.write_bytes(b"[" + b"{}," * ((30 << 20) // 3) + b"{}]")
        return "sealed", path
    if case == "large config":
        return "config", zeros(path, b'{"run": "', 2 << 30)
    if case == "endless line":
        return "json_lines", zeros(path, b"{", 2 << 30)
    if case == "large vocabulary":
        return "vocabulary", zeros(path, b"a 1\n", 2 << 30)
    if case in ("empty vocabulary lines", "letters as vocabulary", "many words"):
        path.write_bytes({"e": b" \n", "l": b"a 1\n", "m": b""}[case[0]] * (30 << 20))
        if case == "many words":
            path.write_bytes(b"\n".join(b"%07x" % number for number in range(4_200_000)))
        return "given_vocabulary" if case == "many words" else "vocabulary", path
    if case == "gigantic shape":
        directory = make_directory(folder)
        described = {"descr": "<u2", "fortran_order": False, "shape": (1 << 40,)}
        for name in ("train-00001.tokens.npy", "test-00000.tokens.npy"):
            stored = io.BytesIO()
            np.lib.format.write_array_header_1_0(stored, described)
            path = directory / name
            path.write_bytes(stored.getvalue().ljust(path.stat().st_size, b"\0")[: path.stat().st_size])
        return "tokens", directory
    path = folder / "corpus.tar.gz"
    if case == "declared size":
        return "corpus", bomb(path, 70, header(TRAINING_MEMBER, HUGE), TEXT)
    if case == "long name":
        return "corpus", bomb(path, 1500, header("x", HUGE, type=tarfile.GNUTYPE_LONGNAME), ZEROS)
    if case == "long pax header":
        return "corpus", bomb(path, 1500, header("x", HUGE, type=tarfile.XHDTYPE), ZEROS)
    if case == "one line":
        return "corpus", bomb(path, 200, header(TRAINING_MEMBER, 200 << 20), LETTERS)
    if case == "zeros":
        return "corpus", bomb(path, 1500, header("other", HUGE), ZEROS)
    assert case == "members"
    return "corpus", bomb(path, 80, b"", header("x", 0) * 2048)


CASES = {
    "many lists": "has no seal",
    "large config": "larger than 1 MiB",
    "large vocabulary": "larger than 128 MiB",
    "endless line": "longer than 1 MiB",
    "empty vocabulary lines": "not a vocabulary",
    "letters as vocabulary": "not a vocabulary",
    "many words": "has more than 4,194,304 words",
    "gigantic shape": "not a token shard",
    "declared size": "damaged or cut short",
    "long name": "a header is too large",
    "long pax header": "a header is too large",
    "one line": "has a line of more than 16 MiB",
    "zeros": "unpacks to more than 100 times its size",
    "members": "too many members",
}


def measured(reader: str, path: Path, result: Path) -> dict[str, Any]:
    """What memory_worker.py finds, in a process of its own."""
    process = FORKS.Process(target=measure, args=(reader, path, result))
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == 0
    return json.loads(result.read_text())


@pytest.mark.parametrize("case", CASES)
def test_memory_stays_below_a_gigabyte(tmp_path: Path, case: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = measured(*write_case(Path(folder), case), tmp_path / "result.json")
    assert found["said"].startswith("UserError: ")
    assert CASES[case] in found["said"]
    assert found["grown_bytes"] < 1 << 30


def test_the_memory_limit_would_be_noticed(tmp_path: Path) -> None:
    found = measured("all", zeros(tmp_path / "file", b"", 2 << 30), tmp_path / "result.json")
    assert found["said"].startswith("MemoryError")
