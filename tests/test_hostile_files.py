"""Files made to harm: nothing that they say is run, and nothing is read or written where they point."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import lm1b, texts_of
from preprocess_runs import files_of, run
from small_tokens import FILE_NAMES, make_directory
from tiny import write_corpus

from lm1b.config import load_config
from lm1b.data.preprocess import preprocess
from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TRAINING_FOLDER
from lm1b.data.text.news_sample import read_articles
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.vocabulary.words import read_given_vocabulary
from lm1b.errors import UserError
from lm1b.files import read_json_lines

pytestmark = pytest.mark.usefixtures("cache_folder")


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
    for name in FILE_NAMES:
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
        lambda: texts_of(lm1b(tmp_path / "corpus.tar.gz")),
        lambda: texts_of(lm1b(tmp_path / "corpus.tar")),
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


def test_members_that_reach_outside_write_nothing(tmp_path: Path, cache_folder: Path) -> None:
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
    texts = texts_of(lm1b(hostile_archive(inner / "corpus.tar.gz", more)))
    assert texts == {"train-00001": b"a b .\n", "test-00000": b"a b .\n", "validation-00001": b"a b .\n"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["corpus.tar.gz", "inner", "most", "secret"]
    assert list(cache_folder.iterdir()) == []


def test_names_with_ways_out_become_shards_of_our_own_names(tmp_path: Path) -> None:
    def more(archive: tarfile.TarFile) -> None:
        add(archive, f"../../../{TRAINING_FOLDER}/news.en-00002-of-00003", b"c d .\n")

    with pytest.raises(UserError, match="mixes files of different sets"):
        texts_of(lm1b(hostile_archive(tmp_path / "corpus.tar.gz", more)))


def test_the_wheel_is_not_opened_before_its_sum_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("opened"))
    (tmp_path / "sample.whl").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(UserError, match="its SHA-256 is"):
        list(read_articles(tmp_path / "sample.whl"))
