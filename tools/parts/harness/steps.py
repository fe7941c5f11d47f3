"""A training step as a run has it, on made-up tokens and tables of any size: what is measured."""

from __future__ import annotations

import numpy as np

from lm1b.config import Config
from lm1b.distributed import Ranks
from lm1b.model.language_model import LanguageModel
from lm1b.model.sampler import make_sampler
from lm1b.model.tables import Tables
from lm1b.training.engine.engine import Engine
from lm1b.training.engine.settings import language_model_settings
from lm1b.training.run import prepare_process
from lm1b.training.step.training_step import TrainingStep
from parts.harness.batches import PreparedBatches, UnigramBatches

WARM_STEPS = {"cpu": 3, "cuda": 10}


def build_step(config: Config, counts_V: np.ndarray, ranks: Ranks, precision: str, tables: Tables | None = None) -> TrainingStep:
    """A training step as a run has it, on made-up batches, warmed up. tables: used again from another step of the same widths."""
    prepare_process(config, ranks)
    model = LanguageModel(config.model, config.run.seed)
    engine = Engine(model, language_model_settings(config, ranks), precision, ranks)
    tables = tables or filled_tables(config, len(counts_V), ranks)
    sampler = make_sampler(config.softmax, counts_V, config.run.seed)
    batches: UnigramBatches | PreparedBatches = UnigramBatches(np.cumsum(counts_V), config.batches.lanes, config.batches.steps)
    if ranks.device.type == "cuda":
        batches = PreparedBatches(batches)  # a step takes a GPU as long as drawing its tokens takes the host
    step = TrainingStep(config, engine, tables, sampler, batches, ranks, total_steps=1 << 40)  # type: ignore[arg-type]  (no step is the last)
    engine.prime(step.zero_loss)
    engine.start_ema()
    for _ in range(WARM_STEPS[ranks.device.type]):
        step.run()
    return step


def filled_tables(config: Config, vocabulary: int, ranks: Ranks) -> Tables:
    """Tables with some numbers in every row: memory that nobody has written to yet would be slower, or not there at all."""
    tables = Tables.create(config, vocabulary, ranks, initialize=False)
    for table in tables.all():
        table.rows.uniform_(-0.05, 0.05)
    return tables
