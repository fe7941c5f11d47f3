"""The corpus that the config names must be the one the shards were made of, as far as it is there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from corpora import write_archive
from preprocess_runs import made_config, raw_sections, run
from tiny import write_corpus

from lm1b.data.text import benchmark
from lm1b.data.text import corpus as corpus_module
from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TRAINING_FOLDER
from lm1b.data.text.corpus import TextChunk
from lm1b.data.tokens import unchanged
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.manifest import MadeFrom
from lm1b.data.tokens.unchanged import check_corpus_unchanged
from lm1b.errors import UserError

NAME = f"{TRAINING_FOLDER}/news.en-00002-of-00003"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_corpus(tmp_path / "corpus", sentences=60)
    return tmp_path


def check(folder: Path, **sections: dict[str, Any]) -> None:
    check_corpus_unchanged(made_config(folder, **sections), TokenDirectory.open(folder / "tokens"))


def refusal(folder: Path, **sections: dict[str, Any]) -> str:
    with pytest.raises(UserError, match=r"run launch/preprocess\.py again") as caught:
        check(folder, **sections)
    return str(caught.value)


def same_size(path: Path) -> None:
    """Another letter in the middle, the same length."""
    data = path.read_bytes()
    path.write_bytes(data.replace(b"w1", b"w2", 1))
    assert path.stat().st_size == len(data)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose text is read."""
    names: list[str] = []
    read = TextChunk.read
    monkeypatch.setattr(TextChunk, "read", lambda chunk: names.append(Path(chunk.source).name) or read(chunk))
    return names


def test_nothing_to_do_where_nothing_changed_or_nothing_is_there(folder: Path, reads: list[str]) -> None:
    run(folder)
    reads.clear()
    check(folder)
    shutil.rmtree(folder / "corpus")
    check(folder)
    (folder / "corpus").mkdir()  # where it would be mounted
    check(folder)
    assert reads == []


def test_another_size_or_a_missing_file(folder: Path) -> None:
    run(folder)
    path = folder / "corpus" / NAME
    size = path.stat().st_size
    path.write_text(path.read_text() + "one more\n")
    assert f"{path}: changed since preprocessing (it was {path.name} of {size:,} bytes, it is {path.name} of {size + 9:,})" in refusal(
        folder
    )
    path.unlink()
    with pytest.raises(UserError, match=r"news\.en-00002-of-00003 is missing"):
        check(folder)


def test_the_same_size_but_another_text(folder: Path) -> None:
    run(folder)
    path = folder / "corpus" / NAME
    same_size(path)
    for _ in range(2):
        assert f"{path}: changed since preprocessing, SHA-256 expected" in refusal(folder)


def test_a_copied_corpus_is_read_once(folder: Path, reads: list[str]) -> None:
    run(folder)
    reads.clear()
    for path in (folder / "corpus").rglob("news*"):
        os.utime(path, (1, 1))
    check(folder)
    assert sorted(reads) == sorted(path.name for path in (folder / "corpus").rglob("news*"))
    reads.clear()
    check(folder)
    assert reads == []


def test_files_cut_into_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (corpus_module, benchmark):
        monkeypatch.setattr(module, "CHUNK_BYTES", 300)
    assert len(run(folder).split("train").shards) > 4
    for path in (folder / "corpus").rglob("news*"):
        os.utime(path, (1, 1))
    check(folder)
    check(folder)
    same_size(folder / "corpus" / NAME)
    assert "news.en-00002-of-00003: changed since preprocessing, SHA-256 expected" in refusal(folder)


@pytest.mark.parametrize("chunk_bytes", [300, 64 << 20])
def test_a_folder_where_the_shards_are_of_its_archive(folder: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    for module in (corpus_module, benchmark):
        monkeypatch.setattr(module, "CHUNK_BYTES", chunk_bytes)
    archive = write_archive(folder / "corpus", folder / "corpus.tar.gz")
    run(folder, corpus={"path": str(archive)})
    check(folder, corpus={"path": str(archive)})
    check(folder)
    same_size(folder / "corpus" / NAME)
    assert "changed since preprocessing, SHA-256 expected" in refusal(folder)


def test_an_archive_goes_by_name_and_size(folder: Path) -> None:
    archive = write_archive(folder / "corpus", folder / "corpus.tar.gz")
    path = {"path": str(archive)}
    run(folder, corpus=path)
    os.utime(archive, (1, 1))
    check(folder, corpus=path)
    archive.write_bytes(archive.read_bytes() + b"\0")
    assert "corpus.tar.gz: changed since preprocessing (it was corpus.tar.gz of" in refusal(folder, corpus=path)
    archive.unlink()
    check(folder, corpus=path)
    run(folder)
    write_archive(folder / "corpus", archive)
    assert "the shards were made of files, not of this archive" in refusal(folder, corpus=path)


def test_plain_files(folder: Path) -> None:
    texts = {name: str(folder / "corpus" / name) for name in (NAME, f"{HELD_OUT_FOLDER}/news.en.heldout-00001-of-00002")}
    train, validation = texts.values()
    shutil.copy(train, folder / "more.txt")
    sections = {"kind": "text", "path": None, "train": [train, str(folder / "more.txt")], "validation": [validation]}
    run(folder, corpus=sections)
    check(folder, corpus=sections)
    assert "more.txt: changed since preprocessing" in refusal(folder, corpus={**sections, "train": [str(folder / "more.txt"), train]})
    assert "more.txt: " in refusal(folder, corpus={**sections, "train": [train]})
    assert "changed since preprocessing" in refusal(folder)  # the config names the benchmark's layout instead
    (folder / "more.txt").unlink()
    with pytest.raises(UserError, match=r"more\.txt: no such corpus file"):
        check(folder, corpus=sections)


def test_raw_text(folder: Path) -> None:
    sections = raw_sections(folder)
    run(folder, **sections)
    check(folder, **sections)
    os.utime(folder / "raw.txt", (1, 1))
    check(folder, **sections)
    assert "held_out_words=300, now it would be 299" in refusal(folder, **raw_sections(folder, held_out_words=299))
    assert "made of another kind of corpus (text)" in refusal(folder)
    (folder / "raw.txt").write_text("another\n")
    assert "raw.txt: changed since preprocessing (it was raw.txt of" in refusal(folder, **sections)
    (folder / "raw.txt").unlink()
    check(folder, **sections)


def test_another_vocabulary_setting(folder: Path) -> None:
    run(folder)
    assert "made with vocabulary.minimum_count=3, the config has 2" in refusal(folder, vocabulary={"minimum_count": 2})


def test_a_given_vocabulary_or_another_or_none(folder: Path) -> None:
    path = folder / "given.txt"
    path.write_text("w3\n<UNK>\n</S>\nw0\n<S>\n")
    given = {"file": str(path)}
    run(folder)
    assert "made without a given vocabulary, the config has vocabulary.file=" in refusal(folder, vocabulary=given)
    run(folder, vocabulary=given)
    check(folder, vocabulary=given)
    assert "made with a given vocabulary, the config has vocabulary.file=None" in refusal(folder)
    path.write_text("w4\n<UNK>\n</S>\nw0\n<S>\n")
    assert "given.txt: not the vocabulary that the shards were made with" in refusal(folder, vocabulary=given)
    path.unlink()
    check(folder, vocabulary=given)


def test_tokens_that_say_nothing_of_their_corpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = run(folder)
    tokens.manifest = tokens.manifest.model_copy(update={"made_from": MadeFrom()})
    monkeypatch.setattr(unchanged, "open_corpus", lambda *_: pytest.fail("looked"))
    check_corpus_unchanged(made_config(folder), tokens)
