"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_settings, write_corpus

from lm1b.config import parse_config
from lm1b.data.preprocess.preprocess import preprocess


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny corpus, preprocessed: `corpus/` and `tokens/`."""
    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder / "corpus")
    preprocess(parse_config(tiny_settings(folder, "none")), progress=False)
    return folder
