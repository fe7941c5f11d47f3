"""The corpus that a config names, whichever kind: the one door that preprocessing opens.

1. Tokenized text is opened where it lies (`open_corpus`): the benchmark, a folder or its archive, or plain files.
2. Raw text, the news sample and what Hugging Face `datasets` reads are first made into tokenized files (`is_converted`,
   `converted_corpus`), which are opened like any others.

Either way what comes out is a `Corpus`: corpus.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm1b.config import CorpusConfig, Split
from lm1b.data.crew import Crew
from lm1b.data.text.benchmark import open_benchmark
from lm1b.data.text.corpus import Corpus, FilesCorpus, SourceFile, check_named_once
from lm1b.data.text.raw_text import bytes_of_raw_text, raw_origin, tokenized_corpus
from lm1b.data.text.rows import bytes_of_rows, convert_rows, datasets_origin
from lm1b.workers import Workers


def open_corpus(config: CorpusConfig) -> Corpus:
    """A tokenized corpus. Raises UserError that says what is missing and how to get it."""
    assert not is_converted(config), "it is made into tokenized files first"
    if config.kind == "text":
        return _open_text(config)
    assert config.path is not None, "the config has checked it"
    return open_benchmark(Path(config.path))


def _open_text(config: CorpusConfig) -> FilesCorpus:
    """Plain tokenized files named in the config."""
    named: dict[Split, list[str]] = {"train": config.train or [], "validation": config.validation or [], "test": config.test or []}
    files = [SourceFile(split, number, Path(name)) for split, names in named.items() for number, name in enumerate(names)]
    check_named_once((file.split, file.path) for file in files)
    return FilesCorpus(files)


def is_converted(config: CorpusConfig) -> bool:
    """Whether the corpus must be made into tokenized files first."""
    return config.kind in ("news_sample", "datasets") or (config.kind == "text" and not config.tokenized)


def converted_origin(config: CorpusConfig) -> dict[str, Any]:
    """Identifies the text and settings, `rules` among them; cheap. Raises UserError where a source file is missing."""
    if config.kind != "datasets":
        return raw_origin(config)
    return datasets_origin(config) | ({} if config.tokenized else {"held_out_words": config.held_out_words})


def bytes_to_convert(config: CorpusConfig) -> int:
    """About how much there is to read."""
    return bytes_of_rows(config) if config.kind == "datasets" else bytes_of_raw_text(config)


def converted_corpus(config: CorpusConfig, directory: Path, crew: Crew, workers: Workers, progress: bool) -> FilesCorpus:
    """The tokenized files, made where they are not there. A collective. Raises what raw_text.py and rows.py raise."""
    if config.kind != "datasets":
        return tokenized_corpus(config, directory, crew, workers, progress)
    splits = convert_rows(config, directory, crew, workers, progress)
    if not config.tokenized:
        raw = CorpusConfig(
            kind="text", tokenized=False, train=[str(path) for path in splits["train"]], held_out_words=config.held_out_words
        )
        return tokenized_corpus(raw, directory, crew, workers, progress)
    files = [SourceFile(split, number, path) for split, paths in splits.items() for number, path in enumerate(paths)]
    return crew.together(lambda: FilesCorpus(files))
