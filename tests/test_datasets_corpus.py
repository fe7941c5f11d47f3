"""Corpora that Hugging Face `datasets` reads: every format gives the same sentences, and what cannot be read is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import REPOSITORY, environment, tiny_settings, write_settings

from lm1b.config import SPLITS, Config, parse_config
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.data.text import rows as rows_module
from lm1b.data.text.rows import split_of
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.unchanged import check_corpus_unchanged
from lm1b.errors import UserError

ROWS = [f"s{number} a{number % 7}  b\tc" for number in range(300)] + ["", " \t ", "two\nlines in a row", "odd\x00 \x01 \u2028x </S> <UNK>"]
LINES = [b" ".join(line.split()).decode() for row in ROWS for line in row.encode().split(b"\n")]
SENTENCES = sorted(line.replace("</S>", "<UNK>") for line in LINES if line)  # a written </S> is unknown: the symbol is the stream's own


def write_rows(folder: Path, source: str, rows: list[Any], name: str = "rows") -> Path:
    path = folder / f"{name}.{source}"
    table = pa.table({"number": list(range(len(rows))), "text": rows})
    if source == "text":
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8", newline="\n")
    elif source == "json":
        path.write_text("".join(json.dumps({"number": number, "text": row}) + "\n" for number, row in enumerate(rows)))
    elif source == "parquet":
        pq.write_table(table, path, row_group_size=50)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=50)
    return path


def config_of(folder: Path, **corpus: Any) -> Config:
    corpus = {"kind": "datasets", "path": None, "source": "json", "validation_fraction": 0.1, "test_fraction": 0.05} | corpus
    return parse_config(tiny_settings(folder, "run", corpus=corpus, vocabulary={"minimum_count": 1}))


def sentences_of(tokens: TokenDirectory) -> dict[str, list[str]]:
    return {name: tokens.vocabulary.decode(tokens.split(name).joined()[0]) if tokens.split(name).shards else [] for name in SPLITS}


@pytest.mark.parametrize("source", ["text", "json", "parquet", "arrow"])
def test_every_format_gives_the_same_sentences_in_the_same_splits(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "FILE_BYTES", 500)
    path = write_rows(tmp_path, source, ROWS)
    config = config_of(tmp_path, source=source, train=[str(tmp_path / f"*.{source}")])
    tokens = preprocess(config, progress=False)
    found = sentences_of(tokens)
    texts = {name: b"".join(piece.read_bytes() for piece in sorted((tmp_path / "tokens" / "rows").glob(f"*-{name}-*"))) for name in SPLITS}
    lines = {name: text.decode().split("\n")[:-1] for name, text in texts.items()}
    assert sorted(line.replace("</S>", "<UNK>") for name in SPLITS for line in lines[name]) == SENTENCES
    for name in SPLITS:
        assert found[name]
        assert len(found[name]) == len(lines[name])
        assert all(split_of(line.encode(), config.corpus) == name for line in lines[name])
    assert len(tokens.split("train").shards) > 3  # several cores have work
    assert preprocess(config, progress=False).manifest == tokens.manifest
    check_corpus_unchanged(config, tokens)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(UserError, match=rf"rows\.{source}: changed since preprocessing"):
        check_corpus_unchanged(config, tokens)


def test_a_text_file_s_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, lines in (("train", "\ufeffa b\n\ufeffc\n"), ("dev", "d\n")):
        (tmp_path / name).write_text(lines, encoding="utf-8")
    files = {"train": [str(tmp_path / "train")], "validation": [str(tmp_path / "dev")]}
    preprocess(config_of(tmp_path, source="text", **files), progress=False)
    assert (tmp_path / "tokens" / "rows" / "part-00000-train-00000.txt").read_text(encoding="utf-8") == "a b\n\ufeffc\n"


def test_fractions_are_those_asked_for_and_a_sentence_stays_where_it_was(tmp_path: Path) -> None:
    config = config_of(tmp_path, train=["x"]).corpus
    found = Counter(split_of(b"sentence %d" % number, config) for number in range(20_000))
    assert found["validation"] == pytest.approx(2000, abs=150)
    assert found["test"] == pytest.approx(1000, abs=110)
    wider = config.model_copy(update={"validation_fraction": 0.2})
    for number in range(500):
        sentence = b"sentence %d" % number
        assert split_of(sentence, config) != "validation" or split_of(sentence, wider) == "validation"


def test_splits_by_name_of_files_and_of_a_folder_like_the_hubs(tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    for name, rows in (("train", ROWS[:200]), ("validation", ROWS[200:250]), ("test", ROWS[250:300])):
        datasets.Dataset.from_dict({"text": rows}).to_json(str(folder / f"{name}.jsonl"))
    by_file = {name: [str(folder / f"{name}.jsonl")] for name in SPLITS}
    one = preprocess(config_of(tmp_path / "one", **by_file), progress=False)
    by_name = {name: [name] for name in SPLITS}
    other = preprocess(config_of(tmp_path / "other", source=str(folder), **by_name), progress=False)
    assert sentences_of(one) == sentences_of(other)
    assert [one.split(name).num_sentences for name in SPLITS] == [200, 50, 50]
    with pytest.raises(UserError, match=r"corpus\.source=.*Bad split: dev. Available splits"):
        preprocess(config_of(tmp_path / "third", source=str(folder), train=["train"], validation=["dev"]), progress=False)


def test_raw_rows_are_cut_into_sentences_and_tokenized(tmp_path: Path) -> None:
    write_rows(tmp_path, "json", [f"He said {number}. They left, Mr. Smith!" for number in range(60)])
    tokens = preprocess(config_of(tmp_path, train=[str(tmp_path / "rows.json")], tokenized=False, held_out_words=20), progress=False)
    found = [sentence for name in SPLITS for sentence in sentences_of(tokens)[name]]
    assert found.count("They left , Mr. Smith !") == 1  # duplicates are gone
    assert len(found) == 61


BAD = {
    "null": ('{"text":"a b"}\n{"text":null}\n', {}, "column `text` is null in row 2; expected strings"),
    "mixed": ('{"text":"a b"}\n{"text":5}\n', {}, "column `text` holds mixed values; expected strings"),
    "number": ('{"text":4}\n', {}, "column `text` holds int64; expected strings"),
    "column": ('{"txt":"a","id":1}\n', {}, r"has no column `text` \(corpus\.column\); it has txt, id"),
    "empty": ("", {}, "the train split is empty by hash"),
    "all_train": ('{"text":"a"}\n', {"validation_fraction": 1e-9}, "the validation split is empty by hash.*splits with sentences: train"),
    "no_json": ('{"text":"a"', {}, r"bad\.json: cannot be read as json"),
    "not_utf8": ('{"text":"a\udcffb"}\n', {}, r"bad\.json: column `text` is not UTF-8 in rows 1 to 1"),
    "surrogate": ('{"text":"a\\ud800b"}\n', {}, r"bad\.json: cannot be read as json"),
    "no_parquet": ("PAR?", {"source": "parquet"}, r"bad\.json: cannot be read as parquet"),
    "no_arrow": ("?", {"source": "arrow"}, r"bad\.json: cannot be read as arrow"),
    "long": ('{"text":"' + "x" * 3000 + '"}\n', {}, "row 1 has a line of more than"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "LONGEST_LINE_BYTES", 2000)
    text, corpus, message = BAD[case]
    (tmp_path / "bad.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        preprocess(config_of(tmp_path, train=[str(tmp_path / "bad.json")], **corpus), progress=False)
    assert "\n" not in str(caught.value)


def test_missing_files_and_settings_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\*: no such corpus file; corpus\.train names files to be read as json"):
        preprocess(config_of(tmp_path, train=[str(tmp_path / "none*")]), progress=False)
    path = write_rows(tmp_path, "text", ROWS)
    with pytest.raises(UserError, match=r"rows\.text: named for train and again for validation"):
        preprocess(config_of(tmp_path, source="text", train=[str(tmp_path / "*.text")], validation=[str(path)]), progress=False)
    for corpus, message in (
        ({"source": None, "train": ["x"]}, r"corpus\.source is needed"),
        ({}, r"corpus\.train is needed for corpus\.kind=datasets"),
        ({"train": ["x"], "subset": "y"}, r"corpus\.subset and corpus\.revision are of datasets on the hub"),
        ({"train": ["x"], "test": ["y"]}, r"corpus\.validation must be named too"),
        ({"train": ["x"], "validation_fraction": 0.6, "test_fraction": 0.4}, "below 1"),
    ):
        with pytest.raises(UserError, match=message):
            config_of(tmp_path, **corpus)
    config_of(tmp_path, train=["x"], validation=["y"], validation_fraction=0.0)  # no fraction is used where splits are named


def test_a_hub_out_of_reach_is_one_line_and_status_2(tmp_path: Path) -> None:
    corpus = {"kind": "datasets", "path": None, "source": "Salesforce/wikitext", "train": ["train"], "validation": ["validation"]}
    config = write_settings(tmp_path, "run", corpus=corpus)
    command = [sys.executable, "launch/preprocess.py", "--config", str(config)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(HF_HUB_OFFLINE="1"), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "corpus.source=Salesforce/wikitext: cannot be had from the hub" in done.stderr
    assert "--set corpus.source=parquet" in done.stderr


def test_a_part_is_read_again_only_where_what_it_left_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        write_rows(tmp_path, "json", ROWS[number::2], f"rows{number}")
    config = config_of(tmp_path, train=[str(tmp_path / "rows*.json")])
    read: list[int] = []
    reading = rows_module.convert_part
    monkeypatch.setattr(rows_module, "convert_part", lambda part, *rest: read.append(part.number) or reading(part, *rest))
    first = preprocess(config, progress=False).manifest
    for damage in (b"", b"another sentence\n"):
        (tmp_path / "tokens" / "manifest.json").unlink()
        (left,) = (tmp_path / "tokens" / "rows").glob("part-00001-train-*.txt")
        left.write_bytes(left.read_bytes() + damage)
        assert preprocess(config, progress=False).manifest.tokens_sha256 == first.tokens_sha256
    assert sorted(read) == [0, 1, 1]
