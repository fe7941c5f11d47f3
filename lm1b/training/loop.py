"""Training from start or from the newest checkpoint to the end, in the order in which things happen."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from lm1b.config import Config
from lm1b.data.batches import Batches
from lm1b.data.shards import TokenDirectory
from lm1b.distributed import Ranks, agree, all_gather_objects
from lm1b.errors import UserError
from lm1b.model.language_model import LanguageModel
from lm1b.model.sampler import LogUniformSampler
from lm1b.training.checkpoint import Checkpoint, apply_retention, list_checkpoints, save_checkpoint
from lm1b.training.engine import Engine, host_name, resolve_precision, start_ranks, stop_ranks
from lm1b.training.run_log import RunLog, best_step
from lm1b.training.step import StepResult, Tables, TrainingStep

SAME_SIGNAL_SECONDS = 5.0  # the launcher passes Ctrl-C on a second time: within this it counts as the same
FIXED_SECTIONS = ("model", "batches", "softmax", "tables", "optimizer")  # what a checkpoint cannot go on with when it changes


class StopSignal:
    """SIGINT and SIGTERM ask for a save after the present step; a second one, later than a few seconds, ends at once."""

    def __init__(self) -> None:
        self.first_at: float | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.first_at is None:
            self.first_at = time.monotonic()
        elif time.monotonic() - self.first_at > SAME_SIGNAL_SECONDS:
            os._exit(128 + number)

    @property
    def requested(self) -> bool:
        return self.first_at is not None


@dataclass
class Counts:
    """Totals of the run, kept in every checkpoint."""

    words: int = 0  # targets trained on
    skipped: int = 0
    skipped_in_a_row: int = 0
    lanes_restarted: int = 0
    elapsed_seconds: float = 0.0


class Run:
    """A training run on this rank: everything built, and resumed where there is a checkpoint."""

    def __init__(self, config: Config, ranks: Ranks):
        self.config, self.ranks = config, ranks
        self.directory = Path(config.run.directory)
        self._check_lanes()
        self.tokens = agree(ranks, lambda: TokenDirectory.open(Path(config.tokens.directory)))
        self.precision = agree(ranks, lambda: resolve_precision(config.training.precision, config.model.cell, ranks.device))
        split = self.tokens.split("train")
        vocabulary_size = self.tokens.vocabulary.size
        self.batches = Batches(
            split,
            end_id=self.tokens.vocabulary.end_id,
            lanes=config.batches.lanes,
            steps=config.batches.steps,
            seed=config.run.seed,
            block_tokens=config.batches.block_tokens,
        )
        epochs = config.training.epochs or 0.0
        self.total_steps = config.training.total_steps or max(1, math.floor(epochs * self.batches.steps_per_epoch))
        sampler = agree(ranks, lambda: LogUniformSampler(vocabulary_size, config.softmax.samples, config.run.seed))
        checkpoint = agree(ranks, self._find_checkpoint)
        model = LanguageModel(config.model, config.run.seed)
        engine = agree(ranks, lambda: Engine(model, config, self.precision, ranks))
        tables = Tables.create(config, vocabulary_size, model.output_width, ranks)
        self.training_step = TrainingStep(config, engine, tables, sampler, self.batches, ranks)
        self.training_step.total_updates = self.total_steps
        self.counts = Counts()
        if checkpoint is None:
            engine.prime(self.training_step.zero_loss)
            if config.training.ema_decay is not None:
                engine.start_ema()
        else:
            self._restore(checkpoint)

    def _check_lanes(self) -> None:
        lanes, parts = self.config.batches.lanes, self.ranks.size * self.config.training.micro_batches
        if lanes % parts:
            raise UserError(
                f"batches.lanes (={lanes}) must be divisible by ranks x training.micro_batches "
                f"(={self.ranks.size} x {self.config.training.micro_batches}); use --num_gpus or --set batches.lanes="
            )

    def _find_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint, verified, of this very experiment; None where the run starts. Raises UserError."""
        checkpoints = list_checkpoints(self.directory)
        if not checkpoints:
            return None
        newest = checkpoints[-1]
        state = newest.state()
        changed = [f"{name}.{key}" for name in FIXED_SECTIONS for key in _differences(state["config"][name], self.config.as_json()[name])]
        if state["config"]["run"]["seed"] != self.config.run.seed:
            changed.append("run.seed")
        if state["vocabulary"] != self.tokens.fingerprint:
            changed.append("the vocabulary")
        if state["corpus"] != self.tokens.corpus:
            changed.append("the corpus")
        if changed:
            raise UserError(
                f"{newest.path}: a checkpoint of another experiment; it differs in {', '.join(changed)}; "
                "go on with the settings it was made with, or choose another run.directory"
            )
        if self.ranks.is_first:
            newest.verify()
        return newest

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Set weights, optimizer state, tables, recurrent state and counters from a checkpoint."""
        step, ranks, state = self.training_step, self.ranks, checkpoint.state()
        weights = checkpoint.core("weights")
        assert weights is not None
        step.engine.prime(step.zero_loss, weights)
        ema = (checkpoint.core("ema") or weights) if self.config.training.ema_decay is not None else None
        optimizer = {key: checkpoint.core(f"optimizer/{key}") or {} for key in checkpoint.optimizer_keys()}
        step.engine.restore(weights, ema, optimizer, state["updates"])
        for table in step.tables.all():
            table.rows.copy_(checkpoint.read_table(table.name, ranks.rank, ranks.size, "rows"))
            table.accumulators.copy_(checkpoint.read_table(table.name, ranks.rank, ranks.size, "accumulators"))
        lanes = slice(step.first_lane, step.first_lane + step.lanes_here)
        step.carry = {name: tensor[lanes].to(ranks.device, step.engine.dtype) for name, tensor in checkpoint.carry().items()}
        step.step, step.updates = state["step"], state["updates"]
        self.counts = Counts(**state["counts"])

    def save(self) -> Checkpoint:
        """Write a checkpoint; every rank calls it."""
        step = self.training_step
        state = {
            "step": step.step,
            "updates": step.updates,
            "epoch": step.step / self.batches.steps_per_epoch,
            "finished": step.step >= self.total_steps,
            "total_steps": self.total_steps,
            "precision": self.precision,
            "counts": vars(self.counts),
            "vocabulary": self.tokens.fingerprint,
            "corpus": self.tokens.corpus,
            "config": self.config.as_json(),
        }
        carry = _gather_lanes(step.carry, self.ranks)
        checkpoint = save_checkpoint(self.directory, state, step.engine.core_state(), carry, step.tables.all(), self.ranks)
        if self.ranks.is_first:
            settings = self.config.checkpoints
            best = best_step(self.directory) if settings.keep_best else None
            apply_retention(self.directory, settings.keep_last, settings.keep_every, best)
        return checkpoint


def train(config: Config, evaluator: list[str] | None = None) -> None:
    """Join the ranks and train as `config` says. Raises UserError on every rank alike.

    evaluator: command that scores checkpoints beside the training, used where the config asks for it.
    """
    ranks = start_ranks()
    try:
        train_on(ranks, config, evaluator)
    finally:
        stop_ranks()


def train_on(ranks: Ranks, config: Config, evaluator: list[str] | None = None) -> Run:
    """Train on ranks that are up; see `train`. Returns the run as it ended."""
    _set_threads(config)
    run = Run(config, ranks)
    _train(run, evaluator if ranks.is_first and config.training.evaluate_alongside else None)
    return run


def _train(run: Run, evaluator: list[str] | None) -> None:
    config, ranks, step = run.config, run.ranks, run.training_step
    stop = StopSignal()
    hosts = all_gather_objects(host_name(), ranks)
    log = RunLog(config, step.step, [str(host) for host in hosts], _facts(run)) if ranks.is_first else None
    _say_start(run, log)
    watcher = _start_evaluator(evaluator) if evaluator else None
    interval = Interval()
    bar = tqdm(total=run.total_steps, initial=step.step, unit="step", disable=not ranks.is_first, mininterval=1.0, dynamic_ncols=True)
    stopped = False
    saved_at = step.step if list_checkpoints(run.directory) else -1
    while step.step < run.total_steps and not stopped:
        gap_every = config.training.gap_every
        check_gap = gap_every is not None and (step.step + 1) % gap_every == 0
        result = step.run(stop_requested=stop.requested, check_gap=check_gap)
        stopped = result.stop
        _count(run, result, log)
        interval.add(result, run.batches.tokens_per_step)
        bar.update()
        if log and (step.step % config.training.log_every == 0 or check_gap or step.step == run.total_steps):
            line = interval.line(run, result)
            log.metrics(line)
            bar.set_postfix_str(_describe(line), refresh=False)
            interval = Interval()
        if step.step % config.checkpoints.every == 0 or stopped or step.step == run.total_steps:
            run.counts.elapsed_seconds += interval.lap()
            run.save()
            saved_at = step.step
    bar.close()
    if saved_at != step.step:
        run.save()
    if log:
        what = "finished" if step.step >= run.total_steps else "stopped on request; the same command goes on from here"
        log.event(f"{what} at step {step.step} of {run.total_steps}; checkpoint saved in {run.directory}/checkpoints", step.step)
        log.close()
    if watcher and step.step >= run.total_steps:
        print("lm1b: waiting for the evaluator beside the training", flush=True)
        if watcher.wait() != 0:
            print(f"lm1b: the evaluator ended with status {watcher.returncode}; see {run.directory}/evaluator.log", flush=True)


class Interval:
    """Sums over the steps between two log lines."""

    def __init__(self) -> None:
        self.started_at = self._lap_at = time.monotonic()
        self.nats, self.words, self.gap = 0.0, 0, None

    def add(self, result: StepResult, words: int) -> None:
        self.words += words if result.applied else 0
        self.nats += result.nats if result.applied else 0.0
        self.gap = result.gap or self.gap

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._lap_at = self._lap_at, time.monotonic()
        return self._lap_at - before

    def line(self, run: Run, result: StepResult) -> dict[str, Any]:
        """One line of metrics.jsonl."""
        seconds = time.monotonic() - self.started_at
        run.counts.elapsed_seconds += self.lap()
        learning_rate = run.config.optimizer.learning_rate * result.learning_rate_factor
        line = {
            "step": run.training_step.step,
            "updates": run.training_step.updates,
            "epoch": run.training_step.step / run.batches.steps_per_epoch,
            "words": run.counts.words,
            "nats_per_word": self.nats / self.words if self.words else None,
            "words_per_second": self.words / seconds,
            "gradient_norm": None if math.isnan(result.gradient_norm) else result.gradient_norm,
            "largest_activation": result.largest_activation,
            "learning_rate": learning_rate,
            "skipped": run.counts.skipped,
            "lanes_restarted": run.counts.lanes_restarted,
            "loss_scale": run.training_step.engine.loss_scale,
            "elapsed_seconds": run.counts.elapsed_seconds,
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if self.gap is not None:
            line |= {"sampled_nats_checked": self.gap[0], "true_nats_checked": self.gap[1]}
        return line


def _count(run: Run, result: StepResult, log: RunLog | None) -> None:
    """Keep the totals; end the run after too many skipped updates in a row. Raises UserError on every rank."""
    counts, step = run.counts, run.training_step.step
    counts.lanes_restarted += result.lanes_restarted
    if result.applied:
        counts.words += run.batches.tokens_per_step
        counts.skipped_in_a_row = 0
        return
    counts.skipped += 1
    counts.skipped_in_a_row += 1
    causes = ", ".join(result.not_finite) or "core gradient"
    if log:
        log.event(f"step {step}: update skipped, not finite: {causes}", step)
    if counts.skipped_in_a_row >= run.config.training.max_skipped:
        raise UserError(
            f"step {step}: {counts.skipped_in_a_row} updates in a row were not finite ({causes}); "
            "lower the learning rate or clip harder, and go on from the last checkpoint"
        )


def _describe(line: dict[str, Any]) -> str:
    nats = line["nats_per_word"]
    loss = f"loss {nats:.3f} (sampled perplexity {math.exp(min(nats, 50)):.1f})" if nats is not None else "no update"
    norm = line["gradient_norm"]
    norm_text = f"{norm:.2f}" if norm is not None else "not finite"
    return f"{loss}, {line['words_per_second']:,.0f} words/s, gradient norm {norm_text}, largest activation {line['largest_activation']:.2f}"


def _facts(run: Run) -> dict[str, Any]:
    return {
        "ranks": run.ranks.size,
        "device": str(run.ranks.device),
        "precision": run.precision,
        "threads": torch.get_num_threads(),
        "core_parameters": run.training_step.engine.core_size,
        "table_parameters": sum(table.num_rows * table.width for table in run.training_step.tables.all()),
    }


def _say_start(run: Run, log: RunLog | None) -> None:
    if log is None:
        return
    step, batches, facts = run.training_step, run.batches, _facts(run)
    how = f"going on at step {step.step}" if step.step else "starting"
    log.event(
        f"{how} of {run.total_steps} steps ({batches.steps_per_epoch} an epoch, {batches.dropped_tokens_per_epoch} tokens left out at each "
        f"epoch's end), {run.ranks.size} ranks x {facts['threads']} threads, {run.precision}, vocabulary {run.tokens.vocabulary.size:,}, "
        f"core {facts['core_parameters']:,} and tables {facts['table_parameters']:,} parameters",
        step.step,
    )


def _start_evaluator(command: list[str]) -> subprocess.Popen[bytes]:
    """The evaluator as a process of its own, in a session of its own (Ctrl-C is for the training), at low priority."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")}
    with open(Path(command[command.index("--run") + 1]) / "evaluator.log", "ab") as output:
        return subprocess.Popen(
            ["nice", "-n", "10", sys.executable, *command],
            env={**clean, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _set_threads(config: Config) -> None:
    """A rank's share of the cores, so that ranks of a host do not fight."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    torch.set_num_threads(config.training.threads or max(1, len(os.sched_getaffinity(0)) // here))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


def _gather_lanes(carry: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """All lanes' state, in lane order, on CPU."""
    if ranks.size == 1:
        return {name: tensor.cpu() for name, tensor in carry.items()}
    whole = {}
    for name, tensor in carry.items():
        parts = [torch.empty_like(tensor) for _ in range(ranks.size)]
        dist.all_gather(parts, tensor.contiguous())
        whole[name] = torch.cat(parts).cpu()
    return whole


