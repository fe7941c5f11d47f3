"""Preprocessing of the tiny corpus, or of raw text, in this process, and what it leaves."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tiny import tiny_settings

from lm1b.config import Config, parse_config
from lm1b.data.preprocess import preprocess
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.files import digest_of_file


def made_config(folder: Path, **sections: dict[str, Any]) -> Config:
    """The tiny config for `folder`."""
    return parse_config(tiny_settings(folder, "run", **sections))


def run(folder: Path, **sections: dict[str, Any]) -> TokenDirectory:
    """Preprocess what lies in `folder`."""
    return preprocess.preprocess(made_config(folder, **sections), progress=False)


def files_of(directory: Path) -> dict[str, str]:
    """File name -> SHA-256 of all that a finished directory holds, the lock apart."""
    return {path.name: digest_of_file(path) for path in directory.iterdir() if path.name != ".lock" and path.is_file()}


def changed_at(directory: Path) -> dict[str, int]:
    """Array file name -> when it was written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in directory.glob("*.npy")}


def text_of(tokens: TokenDirectory, split: Any) -> str:
    """A split's words, as its ids spell them."""
    ids, _ = tokens.split(split).joined()
    return " ".join(tokens.vocabulary.id_to_token[i] for i in ids)


def raw_sections(folder: Path, held_out_words: int = 300) -> dict[str, dict[str, Any]]:
    """Raw text with duplicates: 600 different sentences, several a line."""
    generator = random.Random(1)
    names = ["London", "Paris", "Rome"]
    sentences = [f"{generator.choice(names)}, said Mr. Ng, didn't win {number}." for number in range(600)]
    lines = [" ".join([*generator.choices(sentences, k=3), sentences[number]]) for number in range(600)]
    (folder / "raw.txt").write_text("\n".join(lines) + "\n")
    corpus = {"kind": "text", "path": None, "train": [str(folder / "raw.txt")], "tokenized": False, "held_out_words": held_out_words}
    return {"corpus": corpus}
