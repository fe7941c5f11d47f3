"""Files in which any bytes are changed: every reader of data ends with one clean line or a right result."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from corpora import lm1b, texts_of, write_archive, write_layout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokens import FILE_NAMES, make_directory
from tiny import tiny_settings

from lm1b.config import Config, load_config, parse_config
from lm1b.data.preprocess.passes import read_words, write_words
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.vocabulary.words import WordVocabulary, read_given_vocabulary
from lm1b.errors import UserError
from lm1b.files import read_json_lines, seal

pytestmark = pytest.mark.usefixtures("cache_folder")
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

Change = Callable[[bytes], bytes]


def _flip(place: int, bit: int) -> Change:
    return lambda data: data[: place % len(data)] + bytes([data[place % len(data)] ^ (1 << bit)]) + data[place % len(data) + 1 :]


def _cut(place: int) -> Change:
    return lambda data: data[: place % (len(data) + 1)]


def _insert(place: int, more: bytes) -> Change:
    return lambda data: data[: place % len(data)] + more + data[place % len(data) :]


def _end_with(place: int, more: str) -> Change:
    return lambda data: data[: place % len(data)] + more.encode()


def _replace(whole: bytes) -> Change:
    return lambda _: whole


PLACES = st.integers(0, 1 << 30)
CHANGES = st.one_of(
    st.builds(_flip, PLACES, st.integers(0, 7)),
    st.builds(_cut, PLACES),
    st.builds(_insert, PLACES, st.binary(min_size=1, max_size=9)),
    st.builds(_end_with, PLACES, st.text('[]{}:,"0e-n \n', max_size=9)),
    st.builds(_replace, st.binary(max_size=200)),
)


def outcome(read: Callable[[], Any]) -> Any:
    """What the reader gives; None where it refuses in one clean way."""
    try:
        return read()
    except UserError:
        return None


@pytest.fixture(scope="module")
def config_bytes() -> bytes:
    return json.dumps(tiny_settings(Path("x"), "run")).encode()


@given(change=CHANGES)
@QUICK
def test_configs(tmp_path: Path, config_bytes: bytes, change: Change) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(change(config_bytes))
    config = outcome(lambda: load_config(path))
    assert config is None or isinstance(config, Config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3),
)
FIELDS = [(section, key) for section, values in tiny_settings(Path("x"), "run").items() for key in values]


@given(field=st.sampled_from([*FIELDS, ("deepspeed", "x"), ("corpus", "train"), ("vocabulary", "file")]), value=JSON)
@QUICK
def test_any_value_anywhere_in_a_config(tmp_path: Path, config_bytes: bytes, field: tuple[str, str], value: Any) -> None:
    content = json.loads(config_bytes)
    content.setdefault(field[0], {})[field[1]] = value
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = outcome(lambda: load_config(tmp_path / "config.json"))
    if config is not None:
        assert parse_config(json.loads(json.dumps(config.as_json()))) == config


@given(change=CHANGES)
@QUICK
def test_json_lines(tmp_path: Path, change: Change) -> None:
    rows = [{"step": 1, "loss": 2.5}, {"step": 2, "text": "é"}]
    path = tmp_path / "lines.jsonl"
    path.write_bytes(change(b"".join(json.dumps(seal(row)).encode() + b"\n" for row in rows)))
    found = outcome(lambda: read_json_lines(path))
    assert found is None or all(isinstance(row, dict) for row in found)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_directory(tmp_path_factory.mktemp("tokens"))


def everything_of(directory: Path) -> Any:
    tokens = TokenDirectory.open(directory)
    tokens.verify_once()
    splits = [
        (np.asarray(split.tokens(0)).tolist(), split.sentence_ends(0).tolist())
        for split in map(tokens.split, ("train", "validation", "test"))
    ]
    return splits, tokens.vocabulary.id_to_token, tokens.manifest


@given(name=st.sampled_from(FILE_NAMES), change=CHANGES)
@settings(QUICK, max_examples=150)
def test_tokens_directories(directory: Path, name: str, change: Change) -> None:
    expected = everything_of(directory)
    path = directory / name
    whole = path.read_bytes()
    try:
        path.write_bytes(change(whole))
        found = outcome(lambda: everything_of(directory))
        assert found in (None, expected)
        tokens = TokenDirectory(directory, expected[2])  # its manifest known: what a training run reads that does not verify
        for split in ("train", "test"):
            outcome(lambda split=split: tokens.split(split).joined())
    finally:
        path.write_bytes(whole)


@given(change=CHANGES)
@QUICK
def test_vocabularies(tmp_path: Path, directory: Path, change: Change) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_bytes(change((directory / "vocabulary.txt").read_bytes()))
    vocabulary = outcome(lambda: WordVocabulary.load(path))
    if vocabulary is not None:
        assert len(vocabulary.id_to_token) == vocabulary.size == len(vocabulary.counts_V)
        assert {vocabulary.id_to_token[vocabulary.end_id], vocabulary.id_to_token[vocabulary.unknown_id]} == {"</S>", "<UNK>"}
    given_one = outcome(lambda: read_given_vocabulary(path))
    if given_one is not None:
        assert given_one[0].id_to_token[-1] == "<S>"
        given_one[0].encode(b"a b\n")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("archives")
    write_layout(folder / "corpus")
    packed = write_archive(folder / "corpus", folder / "corpus.tar.gz").read_bytes()
    return {"corpus.tar.gz": packed, "corpus.tar": gzip.decompress(packed)}


@given(name=st.sampled_from(["corpus.tar.gz", "corpus.tar"]), change=CHANGES)
@settings(QUICK, max_examples=150)
def test_archives(tmp_path: Path, archives: dict[str, bytes], name: str, change: Change) -> None:
    path = tmp_path / name
    path.write_bytes(archives[name])
    expected = texts_of(lm1b(path))
    path.write_bytes(change(archives[name]))
    found = outcome(lambda: texts_of(lm1b(path)))
    if name == "corpus.tar.gz":
        assert found in (None, expected), "gzip's own sum finds what tar does not"


@given(place=st.integers(0, 1 << 30), bits=st.integers(1, 255), length=st.integers(1, 8))
@settings(QUICK, max_examples=80)
def test_a_changed_table_of_words_does_not_crash_arrow(tmp_path: Path, words_file: bytes, place: int, bits: int, length: int) -> None:
    """Records of unfinished work name its SHA-256; this is for one who has changed both."""
    place %= len(words_file)
    path = tmp_path / "words.arrow"
    path.write_bytes(words_file[:place] + bytes([bits] * length) + words_file[place + length :])
    outcome(lambda: read_words(path).to_pydict())


@pytest.fixture(scope="module")
def words_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("words") / "words.arrow"
    write_words(path, pa.array([b"a ", b"bb ", b"ccc "], pa.binary()), np.array([3, 2, 1]))
    return path.read_bytes()
