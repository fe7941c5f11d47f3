"""Reads one hostile file in a process of its own whose memory is limited."""

from __future__ import annotations

import json
import resource
from pathlib import Path

from lm1b.config import CorpusConfig, load_config
from lm1b.data.preprocess.passes import count_chunk
from lm1b.data.text.sources import open_corpus
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.vocabulary.words import WordVocabulary, read_given_vocabulary
from lm1b.errors import UserError
from lm1b.files import read_json_lines, read_sealed_json

LIMIT_BYTES = 1 << 30


def read_corpus(path: Path) -> None:
    """Both what reads an archive and what works on its chunks."""
    corpus = open_corpus(CorpusConfig(kind="lm1b", path=str(path)))
    for chunk in corpus.chunks(lambda num_bytes: None):
        count_chunk(corpus.load(chunk), path.parent)


READERS = {
    "config": load_config,
    "json_lines": read_json_lines,
    "sealed": read_sealed_json,
    "tokens": lambda path: TokenDirectory.open(path).split("train").joined(),
    "vocabulary": WordVocabulary.load,
    "given_vocabulary": read_given_vocabulary,
    "corpus": read_corpus,
    "all": lambda path: read_all(path),
}


def read_all(path: Path) -> None:
    """A reader without bounds, to see that the limit works."""
    path.read_bytes()


def measure(reader: str, path: Path, result: Path) -> None:
    """Run a reader on `path`; writes how it ended and by how many bytes this process's memory grew to `result`."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + LIMIT_BYTES,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        READERS[reader](path)
        said = "read"
    except (UserError, MemoryError) as error:
        said = f"{type(error).__name__}: {error}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    result.write_text(json.dumps({"said": said, "grown_bytes": grown}))
