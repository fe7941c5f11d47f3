"""What model a checkpoint or an exported folder holds: enough to build it, and to know which tables its softmax reads.

A checkpoint tells it in state.json (the config that it was trained with), an exported model in config.json (`lm1b.model`, `lm1b.softmax`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lm1b.config import ModelConfig, SoftmaxConfig
from lm1b.errors import UserError
from lm1b.model.language_model import LanguageModel
from lm1b.strict import parse
from lm1b.training.checkpoints.checkpoint import Checkpoint


@dataclass(frozen=True)
class Architecture:
    """The recurrent layers, the softmax, and the size of the vocabulary (V)."""

    model: ModelConfig
    softmax: SoftmaxConfig
    vocabulary_size: int

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint, state: dict[str, Any]) -> Architecture:
        """As the checkpoint was trained, whatever the run's config.json says now. Raises UserError where its state tells none."""
        try:
            config = state["config"]
            softmax = SoftmaxConfig.model_validate(config.get("softmax", {}))
            return cls(ModelConfig.model_validate(config["model"]), softmax, state["tables"]["input_table"]["num_rows"])
        except (KeyError, TypeError, ValidationError):
            raise UserError(f"{checkpoint.path}/state.json: holds no config.model that this program knows") from None

    @classmethod
    def of_export(cls, facts: dict[str, Any], vocabulary_size: int, source: str) -> Architecture:
        """As an exported model's config.json tells. facts: its `lm1b` part. Raises UserError where it is none that this program knows."""
        softmax = parse(SoftmaxConfig, facts.get("softmax") or {}, f"{source}: lm1b.softmax")
        return cls(parse(ModelConfig, facts.get("model"), f"{source}: lm1b.model"), softmax, vocabulary_size)

    @property
    def has_output_rows(self) -> bool:
        """Whether there are output rows and their bias; the adaptive softmax has its weights in the core."""
        return self.softmax.kind != "adaptive"

    def core(self) -> LanguageModel:
        """The dense core, without weights."""
        return LanguageModel(self.model, 0, initialize=False, softmax=self.softmax, vocabulary_size=self.vocabulary_size)
