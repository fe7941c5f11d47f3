"""A run's logs: what they refuse to go on from, how a run's end is kept, and what a line says of several ranks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from made_run import made_config

from lm1b.config import Config
from lm1b.distributed import Ranks
from lm1b.errors import UserError
from lm1b.files import append_json_line, read_json_lines
from lm1b.processes import RankProcess
from lm1b.training.engine.engine import Engine
from lm1b.training.log import services
from lm1b.training.log.metrics_line import Interval
from lm1b.training.log.run_log import RunLog
from lm1b.training.run import Counts, Run
from lm1b.training.run_folder import RunFolder
from lm1b.training.run_state import endings, run_state
from lm1b.training.step.training_step import StepResult
from lm1b.training.timing import WAITED_FOR, StepParts


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = made_config(tmp_path)
    Path(config.run.directory).mkdir()
    return config


def folder_of(config: Config) -> RunFolder:
    return RunFolder(config.run.directory)


def opened(config: Config, step: int = 0) -> RunLog:
    return RunLog(config, step, [RankProcess.here(0)], {})


@pytest.mark.parametrize("content", ['{"run": {"directory": "runs"}}', "[1, 2]", '{"config": {}}'])
def test_a_config_that_no_run_has_written_is_refused_by_name(config: Config, content: str) -> None:
    folder_of(config).config.write_text(content)
    with pytest.raises(UserError, match=r"config\.json: not the config\.json of a run"):
        opened(config)


def test_a_start_that_is_refused_leaves_no_mark(config: Config) -> None:
    append_json_line(folder_of(config).metrics, {"step": 10})
    append_json_line(folder_of(config).metrics, {"nats_per_word": 2.5})
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: names no step"):
        opened(config, 10)
    assert not folder_of(config).pid.exists()


def test_an_end_by_a_mistake_is_kept(config: Config) -> None:
    log = opened(config)
    log.failed("step 7: 20 updates in a row were not finite", 7)
    log.close()
    assert endings(Path(config.run.directory)) == ["failed"]
    assert read_json_lines(folder_of(config).events)[-1]["step"] == 7
    assert run_state(Path(config.run.directory), config) == "stopped"


def test_an_end_because_of_a_log_is_kept_in_another_one(config: Config) -> None:
    log = opened(config)
    folder_of(config).metrics.mkdir()
    log.metrics({"step": 10})
    assert log.problem is not None
    log.event("stopped because its logs cannot be written", 10, ended="logging failed")
    log.close()
    assert endings(Path(config.run.directory)) == ["logging failed"]


class FailingLate:
    """A service that takes nothing after its first line."""

    def __init__(self, config: Config, directory: Path) -> None:
        self._sent = 0

    def send(self, numbers: dict[str, float], step: int) -> None:
        self._sent += 1
        if self._sent > 1:
            raise OSError("no route to host")

    def close(self) -> None:
        pass


def test_what_a_service_says_is_told_at_its_step(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(services.KINDS, "wandb", FailingLate)
    log = opened(config.model_copy(update={"logging": config.logging.model_copy(update={"services": ["wandb"]})}))
    for step in (10, 20):
        log.metrics({"step": step, "nats_per_word": 2.5})
    log.close()
    (event,) = read_json_lines(folder_of(config).events)
    assert (event["step"], "wandb has failed" in event["text"]) == (20, True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_waiting_is_told_only_where_it_is_measured(config: Config, device: str) -> None:
    """A GPU's host does not see how long it waits."""
    step = SimpleNamespace(step=1, updates=1, engine=SimpleNamespace(loss_scale=1.0), parts=StepParts(torch.device(device)))
    batches = SimpleNamespace(tokens_per_step=20, steps_per_epoch=100)
    parts: dict[str, Any] = {"config": config, "batches": batches, "training_step": step, "counts": Counts()}
    run = cast(Run, SimpleNamespace(**parts, ranks=Ranks(0, 2, torch.device("cpu")), tokens_at_ceiling=None, tokens_per_word=1.0))
    waiting_RP = [[0.0] * len(WAITED_FOR)] * 2
    result = StepResult(50.0, True, False, float("inf"), 1.0, 1.0, [], 0, None, waiting_RP)
    interval = Interval()
    interval.add(run, result)
    line = interval.line(run, result)
    json.dumps(line, allow_nan=False)
    assert ("waiting_seconds" in line) == ("waiting_for_slowest" in line) == (device == "cpu")


def test_a_parameter_without_a_gradient_is_named() -> None:
    engine = cast(Engine, SimpleNamespace(names=["gate", "unused"], _norms=[[torch.ones(())], []]))
    with pytest.raises(UserError, match="unused: no gradient"):
        Engine.own_gradient_norms(engine)
