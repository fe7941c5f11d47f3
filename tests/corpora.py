"""Small corpora in the benchmark's layout, as a folder and as an archive, and what is read of them."""

from __future__ import annotations

import tarfile
from pathlib import Path

from lm1b.config import CorpusConfig
from lm1b.data.text.benchmark import HELD_OUT_FOLDER, TRAINING_FOLDER
from lm1b.data.text.sources import open_corpus


def write_layout(folder: Path, num_files: int = 4) -> Path:
    """The benchmark's layout with the held-out folder's extra files."""
    for number in range(1, num_files):
        path = folder / TRAINING_FOLDER / f"news.en-{number:05d}-of-{num_files:05d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"training file {number} .\n" * (number + 1))
    (folder / HELD_OUT_FOLDER).mkdir()
    for number in range(3):
        (folder / HELD_OUT_FOLDER / f"news.en.heldout-{number:05d}-of-00003").write_text(f"held out {number} .\n")
    (folder / HELD_OUT_FOLDER / f"news.en-00000-of-{num_files:05d}").write_text("the unsplit whole .\n" * 9)
    (folder / "README").write_text("not a part of it\n")
    return folder


def write_archive(folder: Path, path: Path) -> Path:
    """The layout as the .tar.gz that the benchmark's site has."""
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, arcname="1-billion-word-language-modeling-benchmark-r13output")
    return path


def texts_of(config: CorpusConfig) -> dict[str, bytes]:
    """Shard name -> text."""
    corpus = open_corpus(config)
    return {chunk.shard: corpus.load(chunk).read() for chunk in corpus.chunks(lambda passed: None)}


def lm1b(path: Path) -> CorpusConfig:
    """A config of the benchmark's layout: a folder or an archive."""
    return CorpusConfig(kind="lm1b", path=str(path))
