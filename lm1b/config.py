"""The config of an experiment: one JSON file, strict, described, never changed after load. No torch in here.

1. `load_config(path, overrides)` reads the JSON, applies `--set a.b=value`, and validates everything at once.
2. Every problem is reported in one UserError: its path, its value, what was expected and the nearest right name.
3. Paths inside the file are taken relative to the working directory, as a shell would.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from lm1b.corpus_config import CorpusConfig, TokensConfig, VocabularyConfig, problems_of_corpus, problems_of_vocabulary
from lm1b.strict_config import FilePath, NonNegativeFloat, Positive, PositiveFloat, Probability, Section, load, override, parse

CELLS = ["irnn", "np_rnn", "relu_rnn", "tanh_rnn", "lstm"]  # `recurrent.add_cell` adds more
CELLS_FILE = "LM1B_CELLS"  # environment variable: the user's Python file that adds cells, run when one of them is asked for


def _known_cell(name: str) -> str:
    file = os.environ.get(CELLS_FILE)
    if name not in CELLS and file:
        if not Path(file).is_file():
            raise ValueError(f"{CELLS_FILE}={file}: no such file")
        runpy.run_path(file)
    if name not in CELLS:
        raise ValueError(f"no such cell; expected one of {', '.join(CELLS)}, or one that the file named by {CELLS_FILE} adds")
    return name


Cell = Annotated[str, AfterValidator(_known_cell), WithJsonSchema({"enum": CELLS, "type": "string"})]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class RunConfig(Section):
    """Where the run lives and what seeds it."""

    directory: FilePath = Field(description="Run directory: config, logs, checkpoints, evaluations and report go here.")
    seed: int = Field(default=1, ge=0, description="Seed of every random stream: weights, block order, sampler, dropout.")
    mirror: FilePath | None = Field(
        default=None,
        description="URL (s3://, gs://, file://) that gets a copy of every checkpoint and of the logs, and that a run directory on a "
        "fresh host is filled from; null: none.",
    )


class BatchesConfig(Section):
    """How the token stream becomes training steps."""

    lanes: Positive = Field(
        default=128, description="Parallel streams in the global batch (B), over all ranks and micro-batches (LM1B recipe: 128)."
    )
    steps: Positive = Field(default=20, description="Steps of truncated backpropagation through time (T; LM1B recipe: 20).")
    block_tokens: Positive = Field(default=65_536, description="Tokens in a block of whole sentences; blocks are shuffled anew each epoch.")
    state: Literal["carry", "reset"] = Field(
        default="carry", description="`carry` the state across sentence ends, or `reset` it at every </S> (1.4 times the recurrent time)."
    )


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


class CommunicationConfig(Section):
    """What several ranks send each other about table rows, and when."""

    overlap: bool = Field(
        default=True,
        description="Fetch rows and send their gradients in a thread beside the steps, with equal results; false, and on a GPU: within "
        "the step.",
    )
    row_gradients: Literal["compute", "fp32", "bf16", "int8"] = Field(
        default="compute",
        description="What gradients of rows travel in: the computing precision (fp32 for fp16), another, or int8 with a scale a row and "
        "stochastic rounding.",
    )
    tables_on_host: bool = Field(
        default=False,
        description="Where a GPU computes, keep the vocabulary tables in the host's memory, for vocabularies beyond the GPU's: each step's "
        "rows are copied to the GPU and their gradients back. On a CPU it changes nothing.",
    )


class OptimizerConfig(Section):
    """The dense core's optimizer: recurrent layers and projection."""

    kind: Literal["adagrad", "adam", "sgd"] = Field(default="adagrad", description="Optimizer of the core.")
    learning_rate: PositiveFloat = Field(default=0.2, description="Learning rate at the schedule's height (LM1B recipe: 0.2 with Adagrad).")
    initial_accumulator: NonNegativeFloat = Field(default=1.0, description="adagrad: initial accumulator (LM1B recipe: 1.0).")
    epsilon: PositiveFloat = Field(default=1e-10, description="adagrad, adam: added to the denominator.")
    beta1: Probability = Field(default=0.9, description="adam: decay of the first moment.")
    beta2: Probability = Field(default=0.999, description="adam: decay of the second moment.")
    momentum: Probability = Field(default=0.0, description="sgd: share of the last update that is added to the next one.")
    clip_norm: PositiveFloat | None = Field(
        default=10.0,
        description="Clip the core's global gradient norm at this (LM1B recipe: 10); null: no clipping. Tables are never clipped.",
    )


class ScheduleConfig(Section):
    """Learning rate over updates: warm-up, then a shape; for core and tables alike."""

    shape: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="How the rate goes from its height, after warm-up, to the last update."
    )
    warmup_updates: int = Field(default=0, ge=0, description="Updates over which the rate climbs linearly from 0.")
    final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0, description="linear, cosine: share of the rate left at the last update."
    )


class TrainingConfig(Section):
    """How long and on what machinery to train."""

    epochs: PositiveFloat | None = Field(
        default=None, description="Length in passes over the training split (may be a fraction); either this or total_steps."
    )
    total_steps: Positive | None = Field(default=None, description="Length in steps; either this or epochs.")
    precision: Precision = Field(
        default="auto", description="Computing precision. auto: bf16 on a GPU or a CPU with AVX-512 bf16, else fp32. fp16: GPU only."
    )
    zero_stage: Literal[1, 2, 3] = Field(default=1, description="DeepSpeed's ZeRO stage of the core.")
    micro_batches: Positive = Field(default=1, description="Gradient accumulation: into how many micro-batches a rank's lanes are split.")
    ema_decay: Probability | None = Field(
        default=0.999,
        description="Decay of the moving average of the core's weights used by evaluation (LM1B recipe: 0.999), at most "
        "(1+u)/(10+u) at update u; null: none.",
    )
    threads: Positive | None = Field(default=None, description="CPU threads a rank; null: the rank's share of the cores.")
    log_every: Positive = Field(default=10, description="Steps between two lines of metrics.jsonl.")
    gap_every: Positive | None = Field(
        default=200, description="Steps between two full-softmax checks of the sampled loss; null: never (only `sampled` has one)."
    )
    gap_positions: Positive = Field(default=256, description="Positions scored by the full softmax at each check.")
    max_skipped: Positive = Field(default=20, description="Skipped (non-finite) updates in a row that end the run.")
    evaluate_alongside: bool = Field(
        default=False, description="Start the evaluator as a process of its own beside the training; it ends when all is scored."
    )


class CheckpointsConfig(Section):
    """What is saved and kept."""

    every: Positive = Field(default=1000, description="Steps between two checkpoints; one more is written at the end.")
    in_background: bool = Field(
        default=True, description="Write behind the steps, on a CPU, with at most 256 MB beside the tables; false: the steps wait."
    )
    keep_last: Positive = Field(default=2, description="How many of the newest checkpoints are kept.")
    keep_every: Positive | None = Field(default=None, description="Also keep every checkpoint whose step this divides; null: none.")
    keep_best: bool = Field(default=True, description="Also keep the best on validation so far, by evaluations.jsonl.")


class LoggingConfig(Section):
    """What is told of a run beside metrics.jsonl; `--explain metrics` says what its numbers mean."""

    services: list[Literal["wandb", "mlflow"]] = Field(
        default=[],
        description="Also send the same numbers to Weights & Biases or MLflow: their clients must be installed, and their own environment "
        "variables say where to (WANDB_PROJECT, WANDB_MODE; MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).",
    )
    ceiling: bool = Field(
        default=True, description="Measure the rate of matrix products for 0.2 s at the start, which the speed is then set against."
    )
    samples: int = Field(
        default=3, ge=0, description="Sentences drawn from each checkpoint that is scored on validation, shown in TensorBoard; 0: none."
    )
    projector_words: int = Field(
        default=5000,
        ge=0,
        le=100_000,
        description="Commonest words whose input rows TensorBoard's projector shows, of the checkpoint scored last; 0: none.",
    )


class EvaluationConfig(Section):
    """The exact evaluator's settings."""

    lanes: Positive = Field(
        default=32, description="Pieces, cut at sentence ends, that the files are scored in side by side; recorded with each figure."
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Computing precision of the model; nats are summed in float64 either way."
    )
    state: Literal["carry", "reset"] = Field(
        default="carry", description="`carry` the state over sentence ends or `reset` it to score sentences alone."
    )
    weights: Literal["ema", "raw", "both"] = Field(
        default="ema", description="Which core weights to score; `both` writes two lines. ema falls back to raw where training kept none."
    )
    vocabulary_block: Positive = Field(default=8192, description="Words of the vocabulary whose logits are held at a time.")


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
