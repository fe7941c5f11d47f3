from __future__ import annotations
from typing import Any
from pathlib import Path
from lm1b.config import CorpusConfig
def is_raw(config: CorpusConfig) -> bool:
    return config.kind == "news_sample" or not config.tokenized
def raw_origin(config): raise NotImplementedError
def tokenized_corpus(config, directory, workers, progress): raise NotImplementedError
