"""Fixtures that several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import fill, preprocess_and_train, run
from tiny import WITHOUT_MLFLOW, tiny_settings, write_corpus

from lm1b.config import parse_config
from lm1b.data.preprocess.preprocess import preprocess

# For every process that a test starts, on the hosts of a cluster in a box too.
if str(WITHOUT_MLFLOW) not in os.environ.get("PYTHONPATH", ""):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(WITHOUT_MLFLOW), os.environ.get("PYTHONPATH"))))

# The longest files first, so that none is still at work when all others have ended (make test: --dist loadfile --no-loadscope-reorder).
SLOWEST = (
    *("readme_commands", "cluster", "readme_tools", "commands", "readme_cluster", "stopping", "preprocess_ranks", "launching"),
    *("fault_rig", "sequence_ranks", "mirror", "supervise", "same_everywhere", "check_hosts", "sequence_tasks", "watching"),
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


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the READMEs' commands: a tiny corpus, and run.json."""
    return fill(tmp_path_factory.mktemp("readme"))


@pytest.fixture(scope="module")
def readme_trained(readme_folder: Path) -> subprocess.CompletedProcess[str]:
    """A training on two ranks in it, as a README prints it."""
    return preprocess_and_train(readme_folder)


@pytest.fixture(scope="module")
def readme_exported(readme_folder: Path, readme_trained: subprocess.CompletedProcess[str]) -> Path:
    """The trained model, exported as a README prints it."""
    done = run([sys.executable, "launch/export.py", "--run", str(readme_folder / "run"), "--out", str(readme_folder / "model")])
    assert done.returncode == 0, done.stderr
    return readme_folder / "model"
