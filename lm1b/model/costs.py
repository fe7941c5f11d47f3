"""How large a language model is and how much work a word of it takes, from its config alone."""

from __future__ import annotations

import torch

from lm1b.config import ModelConfig, SoftmaxConfig
from lm1b.model.adaptive import adaptive_cutoffs
from lm1b.model.language_model import LanguageModel

TABLE_BYTES_A_PARAMETER = 8  # float32 and its Adagrad accumulator


def core_parameters(model: ModelConfig, softmax: SoftmaxConfig | None = None, vocabulary_size: int = 0) -> int:
    """Parameters of the dense core: recurrent layers, projection, and the adaptive softmax where it is asked for."""
    return sum(parameter.numel() for parameter in _core(model, softmax, vocabulary_size).parameters())


def _core(model: ModelConfig, softmax: SoftmaxConfig | None, vocabulary_size: int) -> LanguageModel:
    with torch.device("meta"):  # shapes without memory
        return LanguageModel(model, 0, initialize=False, softmax=softmax, vocabulary_size=vocabulary_size)


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

    logits: words whose logits are computed for each position; see `logits_per_word`. A matrix of the core, of whatever cell, is taken
    for one that every word is multiplied by once.
    """
    matrices = sum(parameter.numel() for parameter in _core(model, None, 0).parameters() if parameter.dim() > 1)
    return 6.0 * (matrices + logits * model.output_width)
