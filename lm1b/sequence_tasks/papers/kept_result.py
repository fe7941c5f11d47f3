"""One kept result as the report asks of it: what it is on, what to call it, how its seeds ended. kept.py writes and reads such files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on

from lm1b.sequence_tasks.config import NetworkConfig, TaskConfig, TaskExperiment
from lm1b.strict import parse

BURST_LOSS, BURST_AFTER = 10.0, 500  # a burst: a mean training loss so many times a constant answer's, after so many updates
CELL_NAMES = {"irnn": "IRNN", "np_rnn": "np-RNN", "relu_rnn": "ReLU RNN", "tanh_rnn": "tanh RNN", "lstm": "LSTM"}


class Curve(TypedDict):
    """A run's looks at dev, in columns. None: not finite, here and below."""

    updates: list[int]
    train_loss: list[float | None]
    dev_loss: list[float | None]
    dev_error: list[float | None]


class Run(TypedDict):
    """One seed. A run that diverged has not looked at test."""

    seed: int
    learning_rate: float
    updates: int
    diverged: bool
    skipped: int
    cpu_seconds: float
    best_updates: int | None
    dev_error: float | None
    test_loss: NotRequired[float | None]
    test_error: NotRequired[float | None]
    curve: Curve


class Rung(TypedDict):
    """Where each rate of the search stood after so many updates: one list entry a rate; loss and error at the look that counts."""

    updates: int
    learning_rates: list[float]
    diverged: list[bool]
    dev_loss: list[float | None]
    dev_error: list[float | None]


class Facts(TypedDict):
    """What a result is on; see provenance.task_facts."""

    name: str
    asked: Literal["number", "label", "label_per_step"]
    baseline_loss: float
    sequences: dict[str, int]
    sources: dict[str, str]


class Kept(TypedDict):
    """A kept file, as far as it is read; see kept.py."""

    name: str
    config: dict[str, Any]
    task: Facts
    provenance: dict[str, Any] | None
    learning_rate: float
    search: list[Rung]
    runs: list[Run]


KEPT = TypeAdapter(Kept)


@dataclass(frozen=True)
class KeptResult:
    """One cell on one task. path: None where it is not kept in a file (smoke)."""

    kept: Kept
    path: Path | None = None

    @cached_property
    def config(self) -> TaskExperiment:
        """What was run. Raises UserError where it is none."""
        return parse(TaskExperiment, self.kept["config"], str(self.path or self.name))

    @property
    def name(self) -> str:
        """As the file is named, without .json."""
        return self.kept["name"]

    @property
    def task(self) -> TaskConfig:
        """The task's section of the config."""
        return self.config.task

    @property
    def model(self) -> NetworkConfig:
        """The model's section of the config."""
        return self.config.model

    @property
    def cell(self) -> str:
        """As the config names it: one of CELL_NAMES."""
        return self.model.cell

    @property
    def facts(self) -> Facts:
        """What the result is on."""
        return self.kept["task"]

    @property
    def learning_rate(self) -> float:
        """The one that its seeds were trained with."""
        return self.kept["learning_rate"]

    @property
    def rungs(self) -> list[Rung]:
        """Of the search, the first one first; none where there was none."""
        return self.kept["search"]

    @property
    def provenance(self) -> dict[str, Any]:
        """Command, revision, versions; empty where the result does not say."""
        return self.kept["provenance"] or {}

    @property
    def shape(self) -> str:
        """Layers and directions, in words."""
        layers = self.model.layers
        return f"{layers} layer{'s' if layers > 1 else ''}" + (", bidirectional" if self.model.bidirectional else "")

    @property
    def title(self) -> str:
        """The task, with the network's shape where it is not the plain one: what stands above a plot."""
        return self.facts["name"] + ("" if self.shape == "1 layer" else f", {self.shape}")

    @cached_property
    def label(self) -> str:
        """The cell as tables and plots name it, with what differs from the plain one, shape apart."""
        model, training, optimizer = self.model, self.config.training, self.config.optimizer
        parts = [CELL_NAMES[self.cell]]
        if self.cell == "irnn" and model.identity_scale != 1.0:
            parts.append(f"W = {model.identity_scale:g} I")
        if model.input_weight == "normal":
            parts.append(f"input weights N(0, {model.input_weight_std:g})")
        if self.cell == "lstm" and model.forget_bias != 1.0:
            parts.append(f"forget bias {model.forget_bias:g}")
        if training.norm_stabilizer:
            parts.append(f"norm stabilizer {training.norm_stabilizer:g}")
        if optimizer.clip_value is not None:
            parts.append(f"clip by value {optimizer.clip_value:g}")
        if optimizer.clip_norm is None:
            parts.append("no clipping by norm")
        if training.precision != "fp32":
            parts.append(training.precision)
        return ", ".join(parts)

    @property
    def is_accuracy(self) -> bool:
        """Whether the task is decided by the share of right answers, not of wrong ones."""
        return self.facts["asked"] == "label"

    @property
    def is_plain(self) -> bool:
        """In float32 and without guards: may stand for its cell. The identity may be scaled down for good, which the label says."""
        return self._is_float32 and not self._has_guard

    @property
    def is_guarded(self) -> bool:
        """In float32, with something changed to keep the cell from diverging: shown beside the plain one, never for it."""
        return self._is_float32 and self._has_guard

    @property
    def is_bare(self) -> bool:
        """With nothing that a label tells: in float32, without guards, from the cell's own first weights."""
        return self.label == CELL_NAMES[self.cell]

    @property
    def _is_float32(self) -> bool:
        return self.config.training.precision == "fp32"

    @property
    def _has_guard(self) -> bool:
        """Clipping by norm is no guard, since every cell has it; a run without it is shown among the guards too."""
        almost_identity = self.cell == "irnn" and 0.5 < self.model.identity_scale < 1.0
        training, optimizer = self.config.training, self.config.optimizer
        is_clipped_otherwise = optimizer.clip_value is not None or optimizer.clip_norm is None
        return almost_identity or is_clipped_otherwise or training.norm_stabilizer > 0

    @property
    def runs(self) -> list[Run]:
        """One a seed."""
        return self.kept["runs"]

    @property
    def errors(self) -> list[float]:
        """Test error of every seed, ascending; infinite where it diverged, or where the error itself is not finite."""
        found = [None if run["diverged"] else run.get("test_error") for run in self.runs]
        return sorted(math.inf if error is None else error for error in found)

    @property
    def dev_errors(self) -> list[float]:
        """Least error on dev of every seed, ascending; infinite where it diverged. What choices are made by."""
        return sorted(math.inf if run["diverged"] or run["dev_error"] is None else run["dev_error"] for run in self.runs)

    @property
    def num_skipped(self) -> int:
        """Updates that all seeds together skipped, their gradient not being finite."""
        return sum(run["skipped"] for run in self.runs)

    @property
    def num_with_bursts(self) -> int:
        """Seeds that did not diverge, though between two looks, after BURST_AFTER updates, their training loss burst (BURST_LOSS)."""
        limit = BURST_LOSS * self.facts["baseline_loss"]

        def has_burst(curve: Curve) -> bool:
            losses = zip(curve["updates"], curve["train_loss"], strict=True)
            return any(updates > BURST_AFTER and (loss is None or loss > limit) for updates, loss in losses)

        return sum(not run["diverged"] and has_burst(run["curve"]) for run in self.runs)

    @property
    def rates_searched(self) -> list[float]:
        """Learning rates that were tried first; none where its rate was given."""
        return sorted(self.config.search.learning_rates) if self.config.search else []

    @property
    def is_at_an_end(self) -> bool:
        """Whether the best rate is the least or the greatest that was tried, so that there may be a better one."""
        rates = self.rates_searched
        return bool(rates) and self.learning_rate in (rates[0], rates[-1])

    @property
    def updates(self) -> int:
        """The budget of a run, in updates."""
        return self.config.training.updates

    @property
    def epochs(self) -> float:
        """The same in passes over the training sequences."""
        return self.updates * self.config.training.batch / self.facts["sequences"]["train"]
