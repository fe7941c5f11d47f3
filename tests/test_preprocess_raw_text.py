"""Preprocessing of raw text and of the news sample: tokenized, duplicates gone, dealt to the splits, the same in any chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from preprocess_runs import raw_sections, run, text_of

from lm1b.config import SPLITS
from lm1b.data.text import news_sample, raw_text
from lm1b.errors import UserError


def test_raw_text(tmp_path: Path) -> None:
    tokens = run(tmp_path, **raw_sections(tmp_path))
    lines = {split: (tmp_path / "tokens" / "tokenized" / f"{split}-00000.txt").read_text().splitlines() for split in SPLITS}
    together = [line for split in SPLITS for line in lines[split]]
    assert len(together) == len(set(together)) == 600, "duplicates are gone, nothing else"
    assert all(line.endswith(" .") and ", said Mr. Ng , didn 't win " in line for line in together)
    for split in ("validation", "test"):
        words = sum(len(line.split()) for line in lines[split])
        assert 300 <= words < 320
        assert tokens.split(split).num_words == words
    assert together != sorted(together)


def test_raw_text_does_not_depend_on_chunks_or_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path, **raw_sections(tmp_path))
    monkeypatch.setattr(raw_text, "_chunk_bytes", lambda *_: 5000)
    monkeypatch.setattr(raw_text, "FILE_BYTES", 4000)
    monkeypatch.setattr(raw_text, "MOST_OPEN_FILES", 3)  # so that there are merges of merges
    pieces = run(tmp_path, **raw_sections(tmp_path), tokens={"directory": str(tmp_path / "pieces"), "processes": 2})
    assert len(pieces.split("train").shards) > 3
    assert not list((tmp_path / "pieces" / "tokenized").glob("merged-*"))
    for split in SPLITS:
        assert text_of(whole, split) == text_of(pieces, split)


def test_raw_text_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = raw_sections(tmp_path)
    monkeypatch.setattr(raw_text, "_chunk_bytes", lambda *_: 5000)
    calls: list[Path] = []
    tokenizing = raw_text.tokenize_chunk

    def stopping(chunk: Any, path: Path) -> int:
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return tokenizing(chunk, path)

    monkeypatch.setattr(raw_text, "tokenize_chunk", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **sections)
    run(tmp_path, **sections)
    assert len(calls) == len(set(calls)) + 1, "only the chunk that was interrupted is done twice"
    assert not list((tmp_path / "tokens" / "tokenized").glob("*.sorted"))


def test_raw_text_too_short_for_its_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"only [\d,]+ words once duplicates are gone; validation, test and training need 50,000 each"):
        run(tmp_path, **raw_sections(tmp_path, held_out_words=50_000))
    with pytest.raises(UserError, match="no such corpus file; expected raw text"):
        run(tmp_path, corpus={"kind": "text", "path": None, "train": [str(tmp_path / "none.txt")], "tokenized": False})


def test_the_news_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    articles = [f"Mr. Smith of {chr(65 + number % 26)}town said no. {number} men left!" for number in range(400)]
    monkeypatch.setattr(news_sample, "read_articles", lambda path: iter(articles))
    tokens = run(tmp_path, corpus={"kind": "news_sample", "path": None, "held_out_words": 100}, vocabulary={"minimum_count": 1})
    assert sum(tokens.split(split).num_sentences for split in SPLITS) == 426
    assert "Mr. Smith of" in text_of(tokens, "train")
