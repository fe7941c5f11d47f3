"""A run as its folder tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm1b.config import Config
from lm1b.files import read_json, read_json_lines
from lm1b.training.evaluations import Evaluation, best_on_validation
from lm1b.training.run_folder import RunFolder


@dataclass(frozen=True)
class RunRecord:
    """What a run directory tells. evaluations: sorted by text and step; metrics: as logged."""

    name: str
    folder: RunFolder
    config: Config
    evaluations: list[Evaluation]
    metrics: list[dict[str, Any]]
    environment: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> RunRecord:
        """Raises UserError where the folder holds no run."""
        folder = RunFolder(directory)
        config = folder.read_config()
        evaluations = sorted(folder.read_evaluations(), key=lambda each: (each.split, each.files, each.state, each.step, each.weights))
        environment = read_json(folder.environment) if folder.environment.exists() else {}
        return cls(
            folder.path.resolve().name,
            folder,
            config,
            evaluations,
            read_json_lines(folder.metrics),
            environment if isinstance(environment, dict) else {},
        )

    def words_at(self, steps: Sequence[int] | np.ndarray) -> np.ndarray:
        """Words and sentence ends trained on up to each step, as metrics.jsonl tells; without lines, the tokens of so many steps."""
        points = [(line["step"], line["words"]) for line in self.metrics if line.get("words") is not None]
        if not points:
            return np.asarray(steps) * self.config.batches.lanes * self.config.batches.steps
        return np.round(np.interp(steps, *np.array([(0, 0), *points], float).T))

    def seconds_at(self, steps: Sequence[int] | np.ndarray) -> np.ndarray | None:
        """Seconds of training up to each step, as metrics.jsonl tells; None where it tells nothing."""
        points = [(line["step"], line["elapsed_seconds"]) for line in self.metrics if line.get("elapsed_seconds") is not None]
        return np.interp(steps, *np.array(points, float).T) if points else None

    def best(self) -> Evaluation | None:
        """The best result on validation by the run's own evaluation settings."""
        return best_on_validation(self.evaluations, self.config)


def model_in_words(run: RunRecord) -> str:
    """What the model is: irnn 1 x 1024, projection 512."""
    model = run.config.model
    projection = model.projection or model.recurrent_projection
    return f"{model.cell} {model.layers} x {model.hidden}" + (f", projection {projection}" if projection else "")
