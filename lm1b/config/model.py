"""Sections of the config about the model: its cell and layers, its training loss, its vocabulary tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lm1b.config.cells import Cell
from lm1b.strict import NonNegativeFloat, Positive, PositiveFloat, Probability, Section


class CellConfig(Section):
    """Recurrent layers of one kind of cell, and their initial weights."""

    cell: Cell = Field(
        description="irnn: ReLU from the identity (Le 2015). np_rnn: ReLU from a normalised positive-definite matrix (Talathi 2015)."
    )
    layers: Positive = Field(default=1, description="Recurrent layers, one on the other's outputs.")
    hidden: Positive = Field(description="Units of a recurrent layer (H).")
    recurrent_projection: Positive | None = Field(
        default=None, description="lstm only: width of the state that a projection feeds back (LSTMP, Sak 2014); null: none."
    )
    identity_scale: PositiveFloat = Field(
        default=1.0, description="irnn: the recurrent weight starts at this times the identity (Le 2015: 1; 0.01 for short memory)."
    )
    forget_bias: float = Field(default=1.0, description="lstm: initial bias of the forget gate (Le 2015 searches 1, 4, 10, 20).")
    input_weight: Literal["normal", "np_rnn", "glorot"] = Field(
        default="glorot",
        description="Initial input weights. `normal`: N(0, input_weight_std). `np_rnn`: N(0, a/N), a = sqrt(2) exp(1.2/(max(N,6)-2.4)) "
        "(Talathi 2015). `glorot`: uniform with Glorot's limit.",
    )
    input_weight_std: PositiveFloat = Field(default=0.001, description="Standard deviation of normal input weights (Le 2015: 0.001).")
    recurrent_weight_std: PositiveFloat | None = Field(
        default=None, description="relu_rnn, tanh_rnn, lstm: standard deviation of normal recurrent weights; null: 1/sqrt(H)."
    )

    @model_validator(mode="after")
    def _check_projection(self) -> CellConfig:
        if self.recurrent_projection is not None and self.cell != "lstm":
            raise ValueError(f"recurrent_projection needs cell=lstm, found {self.cell}")
        if self.recurrent_projection is not None and self.recurrent_projection >= self.hidden:
            raise ValueError(f"recurrent_projection (={self.recurrent_projection}) must be smaller than hidden (={self.hidden})")
        return self


class ModelConfig(CellConfig):
    """The recurrent language model: rows of the input table, recurrent layers, and a projection before the softmax."""

    embedding: Positive = Field(default=512, description="Width of the input rows (D).")
    projection: Positive | None = Field(
        default=None, description="Width of the linear projection before the softmax (P); null: none, the last layer's output is used."
    )
    dropout: Probability = Field(
        default=0.0, description="Probability of dropping an activation at the input of every layer and of the softmax."
    )
    projection_weight: Literal["glorot_uniform", "glorot_normal"] = Field(
        default="glorot_uniform",
        description="Initial weights of the projection: uniform or normal with Glorot's variance 2/(in + out) (normal: Talathi 2015).",
    )
    tie_tables: bool = Field(
        default=False,
        description="One table for input and output rows (Press 2017): half the parameters. embedding must equal the softmax's width.",
    )

    @property
    def output_width(self) -> int:
        """Width of what the softmax reads (P)."""
        return self.projection or self.recurrent_projection or self.hidden

    @model_validator(mode="after")
    def _check_tied(self) -> ModelConfig:
        if self.tie_tables and self.embedding != self.output_width:
            raise ValueError(f"tie_tables needs embedding (={self.embedding}) to be as wide as the softmax's input (={self.output_width})")
        return self


class SoftmaxConfig(Section):
    """The training loss."""

    kind: Literal["sampled", "full", "adaptive"] = Field(
        default="sampled",
        description="`sampled`: drawn words stand in for the vocabulary. `full`: exact, over the whole of it; each rank works on its own "
        "rows. For small vocabularies, and as the reference: its work and its memory grow with the vocabulary. `adaptive`: exact, rare "
        "words in clusters of narrower rows (Grave 2017); dense weights in the core, at most 100,000 words.",
    )
    samples: Positive = Field(
        default=8192,
        description="`sampled`: words drawn without replacement from the proposal, the same on every rank (S; LM1B recipe: 8,192).",
    )
    proposal: Literal["log_uniform", "unigram"] = Field(
        default="log_uniform",
        description="`sampled`: what words are drawn by. `log_uniform`: their rank by training count (LM1B recipe). `unigram`: their "
        "training count to the power unigram_power.",
    )
    unigram_power: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.75, description="proposal=unigram: power of the training counts (Mikolov 2013: 0.75); 0 draws uniformly."
    )
    cutoffs: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        default=None,
        description="`adaptive`: ids at which the clusters of rarer words begin, rising; null: 1/20 and 1/4 of the vocabulary.",
    )
    cluster_factor: Annotated[float, Field(ge=1.0)] = Field(
        default=4.0, description="`adaptive`: each cluster's rows are narrower by this than those of the one before (Grave 2017: 4)."
    )

    @model_validator(mode="after")
    def _check_cutoffs(self) -> SoftmaxConfig:
        if self.cutoffs is not None and sorted(set(self.cutoffs)) != self.cutoffs:
            raise ValueError(f"cutoffs (={self.cutoffs}) must rise")
        return self


class TablesConfig(Section):
    """Vocabulary tables: input rows, output rows and output bias, cut by rows over the ranks, sparse Adagrad."""

    learning_rate: PositiveFloat = Field(
        default=0.2,
        description="Adagrad's learning rate of the tables (LM1B recipe: 0.2; 0.5 learns sooner from some million words, see "
        "results/settings.json); follows the schedule.",
    )
    initial_accumulator: NonNegativeFloat = Field(default=1.0, description="Adagrad's initial accumulator (LM1B recipe: 1.0).")
    gradient_scale: PositiveFloat = Field(
        default=1.0, description="Factor on the tables' gradient, which is that of the sum of nats over all tokens of a step."
    )
    initial_scale: PositiveFloat = Field(
        default=1.0,
        description="Rows start uniform in +-initial_scale * sqrt(3 / width), so that their variance is initial_scale^2 / width.",
    )
