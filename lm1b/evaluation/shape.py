"""What model a checkpoint or an exported folder holds: enough to build it, and to know which tables its softmax reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from lm1b.config import ModelConfig, SoftmaxConfig
from lm1b.distributed import Ranks
from lm1b.errors import UserError
from lm1b.model.full_softmax import VOCABULARY_BLOCK
from lm1b.model.language_model import LanguageModel
from lm1b.model.output_layer import AdaptiveOutput, OutputLayer, TableOutput
from lm1b.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Shape:
    """The model's shape, its softmax, and the size of its vocabulary (V)."""

    model: ModelConfig
    softmax: SoftmaxConfig
    vocabulary_size: int

    @property
    def has_output_rows(self) -> bool:
        """Whether there are output rows and their bias; the adaptive softmax has its weights in the core."""
        return self.softmax.kind != "adaptive"

    def core(self) -> LanguageModel:
        """The dense core, without weights."""
        return LanguageModel(self.model, 0, initialize=False, softmax=self.softmax, vocabulary_size=self.vocabulary_size)


def output_layer(
    model: LanguageModel, rows_VP: Tensor | None, bias_V: Tensor | None, ranks: Ranks, vocabulary_block: int = VOCABULARY_BLOCK
) -> OutputLayer:
    """The exact softmax of a model. rows_VP, bias_V: this rank's, None where there are none."""
    if model.adaptive is not None:
        return AdaptiveOutput(model.adaptive, ranks)
    assert rows_VP is not None
    assert bias_V is not None
    return TableOutput(rows_VP, bias_V, ranks, vocabulary_block)


def shape_of(checkpoint: Checkpoint, state: dict[str, Any]) -> Shape:
    """The shape that the checkpoint was trained with, whatever config.json says now. Raises UserError where it holds none."""
    try:
        config = state["config"]
        softmax = SoftmaxConfig.model_validate(config.get("softmax", {}))
        return Shape(ModelConfig.model_validate(config["model"]), softmax, state["tables"]["input_table"]["num_rows"])
    except (KeyError, TypeError, ValidationError):
        raise UserError(f"{checkpoint.path}/state.json: holds no config.model that this program knows") from None


def output_table_name(shape: Shape) -> str:
    """Which table of a checkpoint holds the output rows."""
    return "input_table" if shape.model.tie_tables else "output_table"
