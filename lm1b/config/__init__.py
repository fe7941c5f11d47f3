"""The config of an experiment: one JSON file, strict, described, never changed after load. No torch in here.

1. `load_config(path, overrides)` reads the JSON, applies `--set a.b=value`, and validates: lm1b/strict.py.
2. Every field's problem is reported in one UserError: its path, its value, what was expected and the nearest right name. Problems
   between fields are reported once each field is right by itself.
3. Paths inside the file are taken relative to the working directory, as a shell would.

cells.py     the cells that a config may name, a user's own among them
text.py      sections about text: corpus, vocabulary, tokens
model.py     sections about the model: cell, layers, softmax, tables
training.py  sections about a run: all else

Example: `load_config("configs/irnn_lm.json", ["batches.lanes=64"]).batches.lanes` is 64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from lm1b.config.cells import CELLS, CELLS_FILE
from lm1b.config.model import CellConfig, ModelConfig, SoftmaxConfig, TablesConfig
from lm1b.config.text import SPLITS, CorpusConfig, Split, TokensConfig, VocabularyConfig, problems_of_corpus, problems_of_vocabulary
from lm1b.config.training import (
    BatchesConfig,
    CheckpointsConfig,
    CommunicationConfig,
    EvaluationConfig,
    LoggingConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
)
from lm1b.strict import Section, load, override, parse

__all__ = [
    "CELLS",
    "CELLS_FILE",
    "SPLITS",
    "BatchesConfig",
    "CellConfig",
    "CheckpointsConfig",
    "CommunicationConfig",
    "Config",
    "CorpusConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "SoftmaxConfig",
    "Split",
    "TablesConfig",
    "TokensConfig",
    "TrainingConfig",
    "VocabularyConfig",
    "load_config",
    "override_config",
    "parse_config",
]


class Config(Section):
    """One experiment."""

    run: RunConfig
    corpus: CorpusConfig
    vocabulary: VocabularyConfig = VocabularyConfig()
    tokens: TokensConfig
    batches: BatchesConfig = BatchesConfig()
    model: ModelConfig
    softmax: SoftmaxConfig = SoftmaxConfig()
    tables: TablesConfig = TablesConfig()
    communication: CommunicationConfig = CommunicationConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="DeepSpeed keys passed through as they are; checked for names that DeepSpeed has."
    )

    @model_validator(mode="after")
    def _check_across_fields(self) -> Config:
        problems = []
        training = self.training
        problems += problems_of_corpus(self.corpus) + problems_of_vocabulary(self.vocabulary)
        if (training.epochs is None) == (training.total_steps is None):
            problems.append("exactly one of training.epochs and training.total_steps must be given")
        if self.batches.lanes % training.micro_batches:
            problems.append(
                f"batches.lanes (={self.batches.lanes}) must be divisible by training.micro_batches (={training.micro_batches})"
            )
        if self.model.tie_tables and self.softmax.kind == "adaptive":
            problems.append("model.tie_tables needs softmax.kind=sampled or full: the adaptive softmax has no output table")
        if self.communication.tables_on_host and self.softmax.kind == "full":
            problems.append("communication.tables_on_host needs softmax.kind=sampled or adaptive: the full one computes with every row")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def parse_config(value: Any, source: str = "config") -> Config:
    """Validate a JSON value. Raises UserError that names every problem."""
    return parse(Config, value, source)


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a config file and apply `--set` overrides. Raises UserError that names every problem."""
    return load(Config, path, overrides)


def override_config(config: Config, overrides: list[str]) -> Config:
    """A config with `a.b=value` overrides applied, validated anew. Raises UserError that names every problem."""
    return override(config, overrides)
