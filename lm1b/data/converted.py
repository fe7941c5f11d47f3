"""Corpora that are made into tokenized files before anything else: raw text, the news sample, and what Hugging Face `datasets` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm1b.config import CorpusConfig
from lm1b.data.corpus import FilesCorpus, SourceFile
from lm1b.data.crew import Crew
from lm1b.data.datasets_text import bytes_of_rows, convert_rows, datasets_origin
from lm1b.data.raw_text import bytes_of_raw_text, raw_origin, tokenized_corpus
from lm1b.workers import Workers


def is_converted(config: CorpusConfig) -> bool:
    """Whether the corpus must be made into tokenized files first."""
    return config.kind in ("news_sample", "datasets") or (config.kind == "text" and not config.tokenized)


def converted_origin(config: CorpusConfig) -> dict[str, Any]:
    """What those files depend on, `rules` among it; cheap. Raises UserError where a source file is missing."""
    if config.kind != "datasets":
        return raw_origin(config)
    return datasets_origin(config) | ({} if config.tokenized else {"held_out_words": config.held_out_words})


def bytes_to_convert(config: CorpusConfig) -> int:
    """About how much there is to read."""
    return bytes_of_rows(config) if config.kind == "datasets" else bytes_of_raw_text(config)


def converted_corpus(config: CorpusConfig, directory: Path, crew: Crew, workers: Workers, progress: bool) -> FilesCorpus:
    """The tokenized files, made where they are not there. A collective. Raises what raw_text.py and datasets_text.py raise."""
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
