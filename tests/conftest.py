"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny import WITHOUT_MLFLOW, tiny_settings, write_corpus

from lm1b.config import parse_config
from lm1b.data.preprocess.preprocess import preprocess

# For every process that a test starts, on the hosts of a cluster in a box too.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of them would compile the whole package anew
if str(WITHOUT_MLFLOW) not in os.environ.get("PYTHONPATH", ""):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(WITHOUT_MLFLOW), os.environ.get("PYTHONPATH"))))

# The longest files first, so that none is still at work when all others have ended (make test: --dist loadfile --no-loadscope-reorder).
SLOWEST = (
    *("launching", "cluster", "stopping", "commands", "fault_rig", "cluster_tool", "readme_commands", "sequence_ranks", "readme_tools"),
    *("mirror", "preprocess_ranks", "supervise", "same_everywhere", "check_hosts", "sequence_search", "sequence_configs", "watching"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{name}.py": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny corpus, preprocessed: `corpus/` and `tokens/`."""
    folder = tmp_path_factory.mktemp("tiny")
    write_corpus(folder / "corpus")
    preprocess(parse_config(tiny_settings(folder, "none")), progress=False)
    return folder


@pytest.fixture
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
