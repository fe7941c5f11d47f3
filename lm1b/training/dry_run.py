"""What a training will be, before it begins: `launch/train.py --dry-run`. Reads the config and the tokens, trains nothing.

It refuses what the training would refuse of config, corpus, tokens and ranks, but reads no shard through and does not look at what lies in
the run directory.

Memory is an estimate: tables (float32 with their accumulators, cut over the ranks), the core with its gradients, optimizer state and
average, the rows and activations of a step, and what a process with torch and DeepSpeed takes by itself. Time comes from this machine's
own rate of matrix products, measured for half a second, and the share of it that a step reaches (the table of speed in results/README.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from lm1b.config import Config
from lm1b.console import say
from lm1b.data.batches import steps_per_epoch
from lm1b.data.tokens.remote import open_tokens
from lm1b.data.tokens.unchanged import check_corpus_unchanged
from lm1b.devices import best_device
from lm1b.files import megabytes
from lm1b.launchers import Place, here
from lm1b.model.costs import TABLE_BYTES_A_PARAMETER, core_parameters, flops_per_word, logits_per_word, table_parameters
from lm1b.model.sampler import make_sampler
from lm1b.precision import DTYPES, resolve_precision
from lm1b.progress import duration
from lm1b.training.engine.settings import check_deepspeed_section
from lm1b.training.log.matmul_rate import products_rate
from lm1b.training.log.services import check_services
from lm1b.training.run import check_ranks, length_in_steps
from lm1b.workers import usable_cores

PROCESS_BYTES = 620 << 20  # torch, DeepSpeed and gloo, before a model
CORE_BYTES_A_PARAMETER = 30  # weights and their copies, gradients, Adam's state, average: of any optimizer and precision at most
SHARE_OF_PRODUCTS = {1: 0.7, 2: 0.6}  # of the products' rate that a step reaches on one core, and on more of them
MEASURED_SECONDS = 0.5


@dataclass(frozen=True)
class TrainingPlan:
    """Sizes of a training. bytes_a_rank and seconds: estimates. words: of all steps, with sentence ends, as a training tells its speed."""

    vocabulary_size: int
    vocabulary_of: str
    tokens_per_epoch: int
    core: int
    tables: int
    total_steps: int
    tokens_per_step: int
    bytes_a_rank: float
    words: float
    seconds: float
    precision: str
    ranks: int

    def text(self) -> str:
        """A few lines for people."""
        tokens = self.total_steps * self.tokens_per_step
        lines = [
            f"vocabulary       {self.vocabulary_size:,} {self.vocabulary_of}",
            f"parameters       {self.core + self.tables:,}: core {self.core:,}, tables {self.tables:,}",
            f"training tokens  {self.tokens_per_epoch:,} an epoch, {self.tokens_per_step:,} a step",
            f"length           {self.total_steps:,} steps, {tokens:,} tokens, {tokens / self.tokens_per_epoch:.2f} epochs",
            f"memory           about {megabytes(round(self.bytes_a_rank))} a rank (ranks: {self.ranks}), {self.precision}",
            f"time             about {duration(self.seconds)} on this machine, {self.words / self.seconds:,.0f} words/s",
        ]
        return "\n".join(lines)


def make_plan(config: Config, place: Place, device: torch.device) -> TrainingPlan:
    """The plan of a training by the ranks that have been launched, on machines like this one. Raises UserError as the training would."""
    check_ranks(config, place.size)
    check_deepspeed_section(config)
    check_services(config)
    tokens = open_tokens(config.tokens)
    check_corpus_unchanged(config, tokens)
    make_sampler(config.softmax, tokens.vocabulary.counts_V, config.run.seed)
    vocabulary_size = tokens.vocabulary.size
    precision = resolve_precision(config.training.precision, device)
    split, lanes, steps = tokens.split("train"), config.batches.lanes, config.batches.steps
    total_steps = length_in_steps(config, steps_per_epoch(split, lanes, steps))
    num_tokens = total_steps * lanes * steps
    core = core_parameters(config.model, config.softmax, vocabulary_size)
    tables = table_parameters(config.model, config.softmax, vocabulary_size)
    return TrainingPlan(
        vocabulary_size=vocabulary_size,
        vocabulary_of="words" if tokens.vocabulary.kind == "words" else f"pieces of words ({tokens.vocabulary.label})",
        tokens_per_epoch=split.num_tokens,
        core=core,
        tables=tables,
        total_steps=total_steps,
        tokens_per_step=lanes * steps,
        bytes_a_rank=_bytes_a_rank(config, core, tables, vocabulary_size, place.size, precision),
        words=num_tokens / split.tokens_per_word,
        seconds=num_tokens
        * flops_per_word(config.model, logits_per_word(config.softmax, vocabulary_size))
        / _rate(config, place, precision, device),
        precision=precision,
        ranks=place.size,
    )


def _bytes_a_rank(config: Config, core: int, tables: int, vocabulary_size: int, ranks: int, precision: str) -> float:
    model, element = config.model, 4 if precision == "fp32" else 2
    positions = config.batches.lanes * config.batches.steps / ranks
    sampled = config.softmax.samples if config.softmax.kind == "sampled" else 0
    rows = min(vocabulary_size, positions) + sampled
    gates = 4 if model.cell == "lstm" else 1
    activations = positions * (model.embedding + model.layers * model.hidden * (3 * gates + 2) + model.output_width) * element
    step = rows * (model.embedding + model.output_width) * (4 + 4 + element) + 2 * activations
    if config.softmax.kind == "full":
        step += 4 * vocabulary_size * (model.output_width + 1) / ranks  # the gradient of all of a rank's output rows
    return PROCESS_BYTES + tables * TABLE_BYTES_A_PARAMETER / ranks + core * CORE_BYTES_A_PARAMETER + step


def _rate(config: Config, place: Place, precision: str, device: torch.device) -> float:
    """Multiply-adds times two a second that all ranks together will do."""
    rate = _rate_of_a_core(DTYPES[precision], config.model.output_width, device)
    if device.type != "cpu":
        return rate * SHARE_OF_PRODUCTS[1] * place.size
    own = max(1, usable_cores() // place.local_size)
    cores = place.size * min(own, config.training.threads or own)
    return rate * cores * SHARE_OF_PRODUCTS[min(cores, 2)]


def _rate_of_a_core(dtype: torch.dtype, width: int, device: torch.device) -> float:
    """Of one core, or of the GPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return products_rate(dtype, width, device, MEASURED_SECONDS)
    finally:
        torch.set_num_threads(threads)


def dry_run(config: Config) -> None:
    """Print the resolved config and the plan; of launched ranks the first does. Raises UserError on every rank alike."""
    place = here()
    text = make_plan(config, place, best_device()).text()
    if place.rank == 0:
        say(f"{json.dumps(config.as_json(), indent=2)}\n\n{text}")
