"""What the services are sent, with a service that keeps what it gets. With their own clients: test_watching.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_run import made_config, made_evaluation

from lm1b.config import Config
from lm1b.files import append_json_line
from lm1b.training.log import services
from lm1b.training.log.services import Services
from lm1b.training.run_folder import RunFolder

SENT: list[tuple[str, dict[str, float], int]] = []


class Keeping:
    """A service that keeps what it is sent."""

    def __init__(self, config: Config, directory: Path) -> None:
        self.name = directory.name

    def send(self, numbers: dict[str, float], step: int) -> None:
        SENT.append((self.name, numbers, step))

    def close(self) -> None:
        pass


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setitem(services.KINDS, "wandb", Keeping)
    SENT.clear()
    config = made_config(tmp_path)
    (tmp_path / "run").mkdir(exist_ok=True)
    Path(config.run.directory).mkdir(exist_ok=True)
    return config.model_copy(update={"logging": config.logging.model_copy(update={"services": ["wandb"]})})


def kept_evaluation(config: Config, **fields: Any) -> None:
    append_json_line(RunFolder(config.run.directory).evaluations, made_evaluation(**fields).as_line())


def test_a_result_is_sent_once_however_often_a_training_goes_on(config: Config) -> None:
    directory = Path(config.run.directory)
    kept_evaluation(config, step=10)
    for _ in range(3):
        Services(config, directory, print).evaluations()
    kept_evaluation(config, step=20, word_perplexity=80.0)
    Services(config, directory, print).evaluations()
    assert [(list(numbers.values()), step) for _, numbers, step in SENT] == [([90.0], 10), ([80.0], 20)]


def test_a_line_that_cannot_be_read_is_told_and_ends_nothing(config: Config) -> None:
    directory, told = Path(config.run.directory), []
    kept_evaluation(config, step=10)
    with open(RunFolder(directory).evaluations, "a") as file:
        file.write('{"step": 20}\n')
    one = Services(config, directory, told.append)
    one.metrics({"step": 30, "nats_per_word": 2.5})
    one.metrics({"step": 40, "nats_per_word": 2.4})
    assert [step for _, _, step in SENT] == [30, 40]
    (line,) = told
    assert "evaluations.jsonl:2" in line
    assert line.endswith("not sent to wandb")
