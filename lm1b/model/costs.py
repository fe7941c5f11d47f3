"""How large a language model is and how much work a word of it takes, from its config alone."""

from __future__ import annotations

import torch

from lm1b.config import ModelConfig, SoftmaxConfig
from lm1b.model.adaptive import adaptive_cutoffs
from lm1b.model.language_model import LanguageModel

TABLE_BYTES_A_PARAMETER = 8  # float32 and its Adagrad accumulator


def core_parameters(model: ModelConfig, softmax: SoftmaxConfig | None = None, vocabulary_size: int = 0) -> int:
    """Parameters of the dense core: recurrent layers, projection, and the adaptive softmax where it is asked for."""
    with torch.device("meta"):  # shapes without memory
        core = LanguageModel(model, 0, initialize=False, softmax=softmax, vocabulary_size=vocabulary_size)
    return sum(parameter.numel() for parameter in core.parameters())


def table_parameters(model: ModelConfig, softmax: SoftmaxConfig, vocabulary_size: int) -> int:
    """Parameters of input rows, output rows and output bias."""
    outputs = 0 if softmax.kind == "adaptive" else 1 if model.tie_tables else model.output_width + 1
    return vocabulary_size * (model.embedding + outputs)


def logits_per_word(softmax: SoftmaxConfig, vocabulary_size: int) -> float:
    """Logits of the softmax's full width that training computes for a position; of the adaptive one those of its head."""
    if softmax.kind == "adaptive":
        return adaptive_cutoffs(softmax, vocabulary_size)[0]
    return softmax.samples if softmax.kind == "sampled" else vocabulary_size


def flops_per_word(model: ModelConfig, logits: float) -> float:
    """Multiply-adds times two of a training step's matrix products, forward and backward (three products for one), a word.

    logits: words whose logits are computed for each position; see `logits_per_word`.
    """
    products, width = 0.0, model.embedding
    gates = 4 if model.cell == "lstm" else 1
    for _ in range(model.layers):
        out = model.recurrent_projection or model.hidden
        products += gates * model.hidden * (width + out) + (model.hidden * out if model.recurrent_projection else 0)
        width = out
    products += width * model.projection if model.projection else 0
    return 6.0 * (products + logits * model.output_width)
