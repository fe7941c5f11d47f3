"""Sections of the config about a run: where it lives, how it trains, what it keeps and logs, how it is evaluated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lm1b.strict import FilePath, NonNegativeFloat, Positive, PositiveFloat, Probability, Section

Precision = Literal["auto", "fp32", "bf16", "fp16"]


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


class CommunicationConfig(Section):
    """What several ranks send each other about table rows, and when."""

    overlap: bool = Field(
        default=True,
        description="Fetch rows and send their gradients in a thread beside the steps, with equal results; false, and on a GPU unless "
        "tables_on_host: within the step.",
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
        default=0.0, description="linear, cosine: share of the rate left where the updates end, one update after the last."
    )


class TrainingConfig(Section):
    """How long and on what machinery to train."""

    epochs: PositiveFloat | None = Field(
        default=None, description="Length in passes over the training split (may be a fraction); either this or total_steps."
    )
    total_steps: Positive | None = Field(default=None, description="Length in steps; either this or epochs.")
    precision: Precision = Field(
        default="auto",
        description="Computing precision. auto: bf16 on a GPU or a CPU that is faster in it (AMX; AMD), else fp32. fp16: GPU only.",
    )
    zero_stage: Literal[1, 2, 3] = Field(
        default=1, description="DeepSpeed's ZeRO stage of the core. On several ranks 3 does not go with batches.state=reset."
    )
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
        default=True,
        description="Write behind the steps, on a CPU, with at most 256 MB beside the tables (the steps wait for a core above 64 MB); "
        "false: the steps wait.",
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
