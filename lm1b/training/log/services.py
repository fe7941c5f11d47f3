"""The numbers of metrics.jsonl and evaluations.jsonl, sent to Weights & Biases or MLflow too: `logging.services`.

Their own clients do it, configured by their own environment variables; each sends from a process or a thread of its own. A service that
fails while the training runs is told once and left: the files in the run directory are whole either way.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from lm1b.config import Config
from lm1b.errors import UserError, in_one_line
from lm1b.files import read_json, write_json
from lm1b.training.run_folder import RunFolder

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny (or mlflow)"}
LONGEST_REASON = 300  # letters of what a client says


def check_services(config: Config) -> None:
    """Raises UserError for a service whose client is not installed."""
    for name in config.logging.services:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"logging.services asks for {name}, which is not installed; pip install {PACKAGES[name]}, or leave it out")


class Service(Protocol):
    """What is sent to one place. Any error may come out of a client."""

    def send(self, numbers: dict[str, float], step: int) -> None:
        """Numbers of one step, perhaps of one behind the training's."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class WeightsAndBiases:
    """One run of wandb's, found again by the run directory when the training goes on."""

    def __init__(self, config: Config, directory: Path) -> None:
        import wandb  # type: ignore[import-not-found]

        key = hashlib.sha256(f"{directory.resolve()} {config.run.seed}".encode()).hexdigest()[:16]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lm1b"),
            name=directory.resolve().name,
            id=os.environ.get("WANDB_RUN_ID", key),
            resume="allow",
            dir=str(directory),
            config=config.as_json(),
            settings=wandb.Settings(silent=True),
        )
        self._run.define_metric("*", step_metric="step")  # an evaluation's step is behind the training's

    def send(self, numbers: dict[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """One run of MLflow's, whose id is kept in the run directory."""

    def __init__(self, config: Config, directory: Path) -> None:
        import mlflow  # type: ignore[import-not-found]

        kept = RunFolder(directory).mlflow_run_id
        run_id = kept.read_text().strip() if kept.exists() else None
        self._mlflow = mlflow
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else directory.resolve().name, log_system_metrics=False)
        if not run_id:
            kept.write_text(run.info.run_id + "\n")
            fields = {f"{section}.{key}": value for section, inner in config.as_json().items() for key, value in inner.items()}
            mlflow.log_params({name: str(value)[:500] for name, value in fields.items()})

    def send(self, numbers: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(numbers, step=step, synchronous=False)

    def close(self) -> None:
        self._mlflow.end_run()  # waits for what is still to be sent


NO_MORE = "no more is sent there"
KINDS: dict[str, Callable[[Config, Path], Service]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}


class Services:
    """All that the config asks for. tell: what one that fails is told by, once."""

    def __init__(self, config: Config, directory: Path, tell: Callable[[str], object]) -> None:
        """Raises UserError where a service cannot be reached at the start."""
        self._folder, self._size = RunFolder(directory), -1
        kept = self._folder.services_sent
        self._sent: dict[str, int] = read_json(kept) if kept.exists() else {}  # lines of evaluations.jsonl, by service
        self._tell = tell
        self._services: dict[str, Service] = {}
        for name in config.logging.services:
            try:
                self._services[name] = KINDS[name](config, directory)
            except Exception as error:
                self.close()
                reason = in_one_line(error, LONGEST_REASON)
                raise UserError(f"logging.services: {name} cannot be used: {reason}; mend it, or leave it out") from error

    def metrics(self, line: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and those of evaluations.jsonl that are new since."""
        if self._services:
            self._send(numbers_of(line), line["step"])
            self.evaluations()

    def evaluations(self) -> None:
        """Lines of evaluations.jsonl that have not been sent yet, by this training or one before it. What cannot be read is told."""
        path = self._folder.evaluations
        size = path.stat().st_size if self._services and path.exists() else self._size
        if size != self._size:
            self._size = size
            try:
                found = self._folder.read_evaluations()
            except UserError as error:
                self._tell(f"{error}; not sent to {', '.join(self._services)}")
                return
            for number, evaluation in enumerate(found):
                if evaluation.word_perplexity is not None:
                    numbers = {evaluation.tag: evaluation.word_perplexity}
                    names = [name for name in self._services if number >= self._sent.get(name, 0)]
                    self._each(lambda service, numbers=numbers, step=evaluation.step: service.send(numbers, step), NO_MORE, names)
            self._sent |= dict.fromkeys(self._services, len(found))
            with contextlib.suppress(OSError):  # else they are sent again
                write_json(self._folder.services_sent, self._sent)

    def _send(self, numbers: dict[str, float], step: int) -> None:
        self._each(lambda service: service.send(numbers, step), NO_MORE)

    def close(self) -> None:
        """Send what is left."""
        self._each(lambda service: service.close(), "its last numbers may be missing")
        self._services = {}

    def _each(self, action: Callable[[Service], object], so: str, names: Iterable[str] | None = None) -> None:
        """names: of which services; None: of all."""
        for name in list(self._services if names is None else names):
            try:
                action(self._services[name])
            except Exception as error:
                del self._services[name]
                self._tell(f"{name} has failed ({in_one_line(error, LONGEST_REASON)}): {so}; metrics.jsonl has them all")


def numbers_of(line: dict[str, Any], before: str = "") -> dict[str, float]:
    """The numbers of a line of metrics.jsonl by name; those within an object as `step_seconds/forward`, lists left out."""
    found: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            found |= numbers_of(value, f"{before}{key}/")
        elif isinstance(value, (int, float)) and (before or key != "step"):
            found[before + key] = float(value)
    return found
