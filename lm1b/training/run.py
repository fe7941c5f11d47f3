"""A training run on this rank: everything built, resumed from the newest checkpoint where there is one, and saved."""

from __future__ import annotations

import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lm1b.config import Config
from lm1b.data.batches import Batches
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.remote import open_tokens
from lm1b.data.tokens.unchanged import check_corpus_unchanged
from lm1b.distributed import Ranks, agree, all_gather_rows, share_of_cores
from lm1b.errors import UserError
from lm1b.launchers import here
from lm1b.memory import keep_freed_memory
from lm1b.model.kernels import triton_kernels
from lm1b.model.language_model import LanguageModel
from lm1b.model.products import keep_float32_exact
from lm1b.model.sampler import make_sampler
from lm1b.model.tables import Tables
from lm1b.precision import resolve_precision
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.checkpoints.mirror import Mirror
from lm1b.training.checkpoints.retention import apply_retention, best_to_keep
from lm1b.training.checkpoints.saving import CheckpointSaver
from lm1b.training.engine.engine import Engine
from lm1b.training.engine.settings import check_deepspeed_section, language_model_settings
from lm1b.training.resume import Continuation, read_tables
from lm1b.training.run_state import RunLock, training_has_finished
from lm1b.training.same_everywhere import check_patience, check_run_folder, check_tokens
from lm1b.training.step.training_step import TrainingStep


@dataclass
class Counts:
    """Totals of the run, kept in every checkpoint."""

    tokens: int = 0  # targets trained on
    skipped: int = 0
    skipped_in_a_row: int = 0
    lanes_restarted: int = 0
    elapsed_seconds: float = 0.0
    unlogged_nats: float = 0.0  # since the last line of metrics.jsonl: a run that goes on from here writes the same next line
    unlogged_tokens: int = 0


def check_ranks(config: Config, num_ranks: int) -> None:
    """Raise UserError where so many ranks cannot train it: they share the lanes, and under ZeRO-3 call each layer equally often."""
    lanes, micro_batches = config.batches.lanes, config.training.micro_batches
    if lanes % (num_ranks * micro_batches):
        raise UserError(
            f"batches.lanes (={lanes}) must be divisible by ranks x training.micro_batches "
            f"(={num_ranks} x {micro_batches}); use --num_gpus or --set batches.lanes="
        )
    # Each rank cuts a window where its own lanes have sentence ends, and a layer's weights are gathered whenever it is called.
    if num_ranks > 1 and config.training.zero_stage == 3 and config.batches.state == "reset":
        raise UserError(
            "training.zero_stage=3 with batches.state=reset works on one rank alone: the ranks would gather a layer's weights unequally "
            "often; use --set training.zero_stage=2 or --set batches.state=carry"
        )


def length_in_steps(config: Config, steps_per_epoch: int) -> int:
    """How many steps the training has, whichever way the config says it."""
    return config.training.total_steps or max(1, math.floor((config.training.epochs or 0.0) * steps_per_epoch))


class Run:
    """A training run on this rank: everything built, and resumed where there is a checkpoint. Raises UserError on every rank.

    For the start's messages: `fetched` (what was done with the mirror), `damage` (of checkpoints newer than the one taken) and `changes`
    (what a resumed run does otherwise than before). `watcher` and `tokens_at_ceiling` are the loop's own.
    """

    def __init__(self, config: Config, ranks: Ranks):
        self.config, self.ranks = config, ranks
        self.directory = Path(config.run.directory)
        agree(ranks, lambda: check_ranks(config, ranks.size))
        self.mirror: Mirror | None = None  # the first rank's
        self.lock = agree(ranks, lambda: RunLock(self.directory) if ranks.is_first else None)
        try:
            self._build()
        except UserError:
            self.close()
            raise

    def _build(self) -> None:
        """Everything but the lock, which is let go of where this fails."""
        config, ranks = self.config, self.ranks
        agree(ranks, lambda: check_patience(config, ranks))
        check_run_folder(ranks, self.directory)
        self.tokens = agree(ranks, self._open_tokens, may_take_long=True)
        check_tokens(ranks, self.tokens)
        self.tokens_per_word = self.tokens.split("train").tokens_per_word
        self.precision = agree(ranks, lambda: resolve_precision(config.training.precision, ranks.device))
        counts_V = agree(ranks, lambda: self.tokens.vocabulary.counts_V)
        vocabulary_size = len(counts_V)
        self.batches = agree(ranks, self._make_batches, may_take_long=True)  # reads where every sentence ends, perhaps over the net
        self.total_steps = length_in_steps(config, self.batches.steps_per_epoch)
        sampler = agree(ranks, lambda: make_sampler(config.softmax, counts_V, config.run.seed))
        self.mirror = agree(ranks, lambda: Mirror(config, config.run.mirror) if ranks.is_first and config.run.mirror else None)
        self.fetched: list[str] = []  # what was done with the mirror
        self.damage: list[str] = []  # what was wrong with checkpoints newer than the one taken
        self.changes: list[str] = []  # what a resumed run does otherwise than before
        continuation = Continuation(config, self.tokens)
        checkpoint = continuation.newest_checkpoint(ranks, self.mirror, self.fetched.append, self.damage.append)
        model = agree(ranks, lambda: LanguageModel(config.model, config.run.seed, softmax=config.softmax, vocabulary_size=vocabulary_size))
        agree(ranks, lambda: check_deepspeed_section(config))
        engine = Engine(model, language_model_settings(config, ranks), self.precision, ranks)
        tables = Tables.create(config, vocabulary_size, ranks, initialize=checkpoint is None)
        self.training_step = TrainingStep(config, engine, tables, sampler, self.batches, ranks, self.total_steps)
        self.counts = Counts()
        self.saver = CheckpointSaver(self.directory, ranks, in_background=config.checkpoints.in_background)
        self.saved_step: int | None = None  # of the newest checkpoint, committed or begun, that says what this run says there
        self.watcher: subprocess.Popen[bytes] | None = None  # the evaluator beside the training
        self.tokens_at_ceiling: float | None = None  # a second: see log/matmul_rate.py
        if checkpoint is None:
            engine.prime(self.training_step.zero_loss)
            if config.training.ema_decay is not None:
                engine.start_ema()
        else:
            self._restore(checkpoint)
            # A length that ends right here makes it another checkpoint: the end of the training.
            if not self.has_finished or training_has_finished([checkpoint], config):
                self.saved_step = checkpoint.step
            self.changes = continuation.changes(checkpoint.state(), ranks.size, self.precision)

    @property
    def has_finished(self) -> bool:
        """Whether all its steps are done."""
        return self.training_step.step >= self.total_steps

    def _open_tokens(self) -> TokenDirectory:
        """The shards, of which each of a host's ranks verifies its share, once a machine, and of the corpus that the config names."""
        tokens = open_tokens(self.config.tokens)
        place = here()
        tokens.verify_once(place.local_rank, place.local_size)
        if place.local_rank == 0:
            check_corpus_unchanged(self.config, tokens)
        return tokens

    def _make_batches(self) -> Batches:
        settings = self.config.batches
        return Batches(
            self.tokens.split("train"),
            end_id=self.tokens.vocabulary.end_id,
            lanes=settings.lanes,
            steps=settings.steps,
            seed=self.config.run.seed,
            block_tokens=settings.block_tokens,
        )

    def close(self) -> None:
        """End what works beside the steps, and let another training have the run directory. Every rank calls it."""
        step: TrainingStep | None = getattr(self, "training_step", None)  # none yet where building it has failed
        if step is not None:
            step.close()
        if self.mirror is not None:
            self.mirror.close()
        if self.lock is not None:
            self.lock.release()

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Set weights, optimizer state, tables, recurrent state and counters from a checkpoint."""
        step, ranks, state = self.training_step, self.ranks, checkpoint.state()
        weights = checkpoint.core("weights")
        assert weights is not None
        step.engine.prime(step.zero_loss, weights)
        ema = (checkpoint.core("ema") or weights) if self.config.training.ema_decay is not None else None
        optimizer = {key: checkpoint.core(f"optimizer/{key}") or {} for key in checkpoint.optimizer_keys()}
        step.engine.restore(weights, ema, optimizer, state["updates"])
        agree(ranks, lambda: read_tables(checkpoint, ranks, step.tables.all()), may_take_long=True)
        step.restore(state["step"], state["updates"], checkpoint.carry())
        self.counts = Counts(**state["counts"])

    def begin_saving(self) -> None:
        """Start writing a checkpoint; collective. See `CheckpointSaver.begin`; `poll_saving` must follow once a step."""
        step = self.training_step
        state = {
            "step": step.step,
            "updates": step.updates,
            "epoch": step.step / self.batches.steps_per_epoch,
            "finished": self.has_finished,
            "total_steps": self.total_steps,
            "precision": self.precision,
            "counts": dict(vars(self.counts)),
            "vocabulary": self.tokens.fingerprint,
            "corpus": self.tokens.corpus,
            "config": self.config.as_json(),
        }
        self.finish_saving()
        # All lanes' state, in lane order, on CPU: a copy, since it is written behind the steps.
        carry = {name: all_gather_rows(tensor, self.ranks).cpu().clone() for name, tensor in step.carry.items()}
        self.saver.begin(state, step.engine.core_state(is_kept=self.ranks.is_first), carry, step.tables.all())
        self.saved_step = step.step

    def poll_saving(self) -> None:
        """Commit the checkpoint that is being written, where every rank has written its part; collective."""
        if self.saver.poll() is not None:
            agree(self.ranks, self._delete_old_checkpoints, may_take_long=True)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and commit it; collective."""
        if self.saver.finish() is not None:
            agree(self.ranks, self._delete_old_checkpoints, may_take_long=True)

    def _delete_old_checkpoints(self) -> None:
        if self.ranks.is_first:
            apply_retention(self.directory, self.config.checkpoints, best_to_keep(self.config))
            if self.mirror:
                self.mirror.wake()

    def finish_mirroring(self) -> None:
        """Wait until the mirror has every checkpoint, or is known to fail; collective."""
        if self.config.run.mirror is not None:
            agree(self.ranks, lambda: self.mirror and self.mirror.finish(), may_take_long=True)

    def close_mirror(self) -> None:
        """Bring the last lines of the logs there and end its copying; collective."""
        if self.config.run.mirror is not None:
            agree(self.ranks, lambda: self.mirror and self.mirror.close(), may_take_long=True)

    def facts(self) -> dict[str, Any]:
        """What environment.json and the first line say of this run."""
        return {
            "ranks": self.ranks.size,
            "device": str(self.ranks.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "triton": triton_kernels(self.ranks.device) is not None,
            "core_parameters": self.training_step.engine.core_size,
            "table_parameters": sum(table.num_rows * table.width for table in self.training_step.tables.all()),
        }


def prepare_process(config: Config, ranks: Ranks) -> None:
    """Settings of this process: what makes the step faster (threads, memory, tiny numbers), and float32 as such. Every rank calls it."""
    torch.set_num_threads(config.training.threads or share_of_cores(ranks))
    # Numbers below 1e-38 slow a CPU down many times and mean nothing here.
    torch.set_flush_denormal(True)
    keep_freed_memory()
    keep_float32_exact()
