"""Files that are not what they should be, by chance or on purpose: every reader of data ends with one clean line or a right result,
within bounded memory, and never runs what a file says.
"""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from corpora import write_archive, write_layout
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_worker import measure
from preprocess_runs import files_of, run
from small_tokens import make_directory
from tiny import tiny_settings, write_corpus

from lm1b.config import Config, CorpusConfig, load_config, parse_config
from lm1b.data.preprocess import preprocess
from lm1b.data.preprocess.passes import read_words, write_words
from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TRAINING_FOLDER
from lm1b.data.text.news_sample import read_articles
from lm1b.data.text.sources import open_corpus
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.vocabulary.words import WordVocabulary, read_given_vocabulary
from lm1b.errors import UserError
from lm1b.files import read_json_lines, seal

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["lm1b.data.preprocess.preprocess"])
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# ---- random bytes and random changes

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


NAMES = ["manifest.json", "vocabulary.txt", "train-00001.tokens.npy", "train-00001.ends.npy", "test-00000.tokens.npy"]


@given(name=st.sampled_from(NAMES), change=CHANGES)
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


def texts_of(path: Path) -> dict[str, bytes]:
    corpus = open_corpus(CorpusConfig(kind="lm1b", path=str(path)))
    return {chunk.shard: corpus.load(chunk).read() for chunk in corpus.chunks(lambda passed: None)}


@given(name=st.sampled_from(["corpus.tar.gz", "corpus.tar"]), change=CHANGES)
@settings(QUICK, max_examples=150)
def test_archives(tmp_path: Path, archives: dict[str, bytes], name: str, change: Change) -> None:
    path = tmp_path / name
    path.write_bytes(archives[name])
    expected = texts_of(path)
    path.write_bytes(change(archives[name]))
    found = outcome(lambda: texts_of(path))
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


# ---- no code from data


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.marker}",))  # pyright: ignore[reportDeprecated] (as in an attack)


def pickles(marker: Path) -> dict[str, bytes]:
    """A pickle that runs a command: as it is, and as numpy would store and read it."""
    array = np.empty(1, dtype=object)
    array[0] = Malice(marker)
    stored = io.BytesIO()
    np.lib.format.write_array(stored, array, allow_pickle=True)
    zipped = io.BytesIO()
    np.savez(zipped, array=array, allow_pickle=True)
    return {"pickle": pickle.dumps(Malice(marker)), "object array": stored.getvalue(), "npz": zipped.getvalue()}


def test_the_pickle_would_run(tmp_path: Path) -> None:
    pickle.loads(pickles(tmp_path / "marker")["pickle"])
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["pickle", "object array", "npz"])
def test_a_malicious_pickle_in_place_of_any_file_is_refused(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "marker"
    payload = pickles(marker)[kind]
    for name in NAMES:
        shutil.rmtree(tmp_path / "tokens", ignore_errors=True)
        (tmp_path / "tokens").mkdir()
        tokens = TokenDirectory.open(make_directory(tmp_path / "tokens"))
        (tmp_path / "tokens" / name).write_bytes(payload)
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            TokenDirectory.open(tmp_path / "tokens")
        if name.endswith(".npy"):
            with pytest.raises(UserError, match="not a token shard"):
                tokens.split("train" if "train" in name else "test").joined()
    for name in ("config.json", "given.txt", "corpus.tar.gz", "corpus.tar", "sample.whl", "lines.jsonl"):
        (tmp_path / name).write_bytes(payload + b"\n")
    for read in (
        lambda: load_config(tmp_path / "config.json"),
        lambda: read_given_vocabulary(tmp_path / "given.txt"),
        lambda: texts_of(tmp_path / "corpus.tar.gz"),
        lambda: texts_of(tmp_path / "corpus.tar"),
        lambda: list(read_articles(tmp_path / "sample.whl")),
        lambda: read_json_lines(tmp_path / "lines.jsonl"),
    ):
        with pytest.raises(UserError):
            read()
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["pickle", "object array", "npz"])
def test_malicious_pickles_in_unfinished_work(tmp_path: Path, kind: str) -> None:
    write_corpus(tmp_path / "corpus", sentences=30)
    whole = files_of(run(tmp_path, tokens={"directory": str(tmp_path / "whole")}).directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "encode_chunks", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    for path in (tmp_path / "tokens" / "unfinished").iterdir():
        path.write_bytes(pickles(tmp_path / "marker")[kind])
    run(tmp_path)
    assert files_of(tmp_path / "tokens") == whole
    assert not (tmp_path / "marker").exists()


# ---- archives


def hostile_archive(path: Path, more: Callable[[tarfile.TarFile], None], sentences: str = "a b .\n") -> Path:
    """The layout with one training file, and what `more` adds in front."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as archive:
        more(archive)
        for name in (f"{TRAINING_FOLDER}/news.en-00001-of-00002", *(f"{HELD_OUT_FOLDER}/news.en.heldout-0000{n}-of-00002" for n in (0, 1))):
            add(archive, f"top/{name}", sentences.encode())
    return path


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def test_members_that_reach_outside_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret\n")

    def more(archive: tarfile.TarFile) -> None:
        add(archive, "../../escaped", b"x")
        add(archive, str(tmp_path / "absolute"), b"x")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            name = f"top/{TRAINING_FOLDER}/news.en-00001-of-00002"
            add(archive, name, type=kind, linkname=str(tmp_path / "secret"))
        for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            add(archive, f"top/{HELD_OUT_FOLDER}/news.en.heldout-00000-of-00002", type=kind)

    inner = tmp_path / "inner" / "most"
    inner.mkdir(parents=True)
    texts = texts_of(hostile_archive(inner / "corpus.tar.gz", more))
    assert texts == {"train-00001": b"a b .\n", "test-00000": b"a b .\n", "validation-00001": b"a b .\n"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["corpus.tar.gz", "inner", "most", "secret"]


def test_names_with_ways_out_become_shards_of_our_own_names(tmp_path: Path) -> None:
    def more(archive: tarfile.TarFile) -> None:
        add(archive, f"../../../{TRAINING_FOLDER}/news.en-00002-of-00003", b"c d .\n")

    with pytest.raises(UserError, match="mixes files of different sets"):
        texts_of(hostile_archive(tmp_path / "corpus.tar.gz", more))


def test_the_wheel_is_not_opened_before_its_sum_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
    (tmp_path / "sample.whl").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(UserError, match="its SHA-256 is"):
        list(read_articles(tmp_path / "sample.whl"))


# ---- memory


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
