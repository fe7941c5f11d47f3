"""How large a language model is and how much work a word of it takes, from its config alone."""

from __future__ import annotations

import torch
from torch import nn

from lm1b.config import ModelConfig
from lm1b.model.recurrent import RecurrentStack

TABLE_BYTES_A_PARAMETER = 8  # float32 and its Adagrad accumulator


def output_width(model: ModelConfig) -> int:
    """Width of what the softmax reads (P)."""
    return model.projection or model.recurrent_projection or model.hidden


def core_parameters(model: ModelConfig) -> int:
    """Parameters of the dense core: recurrent layers and projection."""
    with torch.device("meta"):  # shapes without memory
        stack = RecurrentStack(model, model.embedding)
        parts: list[nn.Module] = [stack]
        if model.projection:
            parts.append(nn.Linear(stack.output_width, model.projection))
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def table_parameters(model: ModelConfig, vocabulary_size: int) -> int:
    """Parameters of input rows, output rows and output bias."""
    return vocabulary_size * (model.embedding + output_width(model) + 1)


def flops_per_word(model: ModelConfig, logits: int) -> float:
    """Multiply-adds times two of a training step's matrix products, forward and backward (three products for one), a word.

    logits: words whose logits are computed for each position: the samples, or the vocabulary.
    """
    products, width = 0.0, model.embedding
    gates = 4 if model.cell == "lstm" else 1
    for _ in range(model.layers):
        out = model.recurrent_projection or model.hidden
        products += gates * model.hidden * (width + out) + (model.hidden * out if model.recurrent_projection else 0)
        width = out
    products += width * model.projection if model.projection else 0
    return 6.0 * (products + logits * output_width(model))
