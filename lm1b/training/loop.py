"""Training from start or from the newest checkpoint to the end, in the order in which things happen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from tqdm import tqdm

from lm1b.config import Config
from lm1b.distributed import Ranks, agree, all_gather_objects
from lm1b.errors import UserError
from lm1b.training.engine import host_name, start_ranks, stop_ranks
from lm1b.training.progress import Interval, describe
from lm1b.training.run import Run, prepare_process
from lm1b.training.run_log import RunLog
from lm1b.training.step import StepResult

SAVING_SECONDS = 25.0  # what a save after a signal should fit in
NAMED_CAUSES = 4  # of a skipped update: one NaN soon is in every tensor of its rank
SAME_SIGNAL_SECONDS = 5.0  # the launcher passes Ctrl-C on a second time: within this it counts as the same


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


def train(config: Config, evaluator: list[str] | None = None) -> None:
    """Join the ranks and train as `config` says. Raises UserError on every rank alike.

    evaluator: command that scores checkpoints beside the training, used where the config asks for it; it is waited for.
    """
    ranks = start_ranks()
    beside = evaluator if ranks.is_first and config.training.evaluate_alongside else None
    try:
        run = train_on(ranks, config, beside)
        watcher = run.watcher if run.has_finished else None
        del run  # its engine holds process groups, whose threads must end before the interpreter does
    finally:
        stop_ranks()
    if watcher:
        print("lm1b: waiting for the evaluator beside the training", flush=True)
        if watcher.wait() != 0:
            print(f"lm1b: the evaluator ended with status {watcher.returncode}; see {config.run.directory}/evaluator.log", flush=True)


def train_on(ranks: Ranks, config: Config, evaluator: list[str] | None = None) -> Run:
    """Train on ranks that are up; see `train`. Returns the run as it ended."""
    prepare_process(config)
    run = Run(config, ranks)
    config, ranks, step = run.config, run.ranks, run.training_step
    stop = StopSignal()
    hosts = all_gather_objects(host_name(), ranks)
    facts = run.facts()
    log = agree(ranks, lambda: RunLog(config, step.step, [str(host) for host in hosts], facts) if ranks.is_first else None)
    _say_start(run, log)
    run.watcher = _start_evaluator(evaluator) if evaluator else None
    interval = Interval()
    bar = tqdm(total=run.total_steps, initial=step.step, unit="step", disable=not ranks.is_first, mininterval=1.0, dynamic_ncols=True)
    stopped = False
    while not run.has_finished and not stopped:
        gap_every = config.training.gap_every
        check_gap = gap_every is not None and (step.step + 1) % gap_every == 0
        result = step.run(stop_requested=stop.requested, check_gap=check_gap)
        stopped = result.stop
        _count(run, result, log)
        interval.add(run, result)
        bar.update()
        if log and (step.step % config.training.log_every == 0 or check_gap or run.has_finished):
            line = interval.line(run, result)
            log.metrics(line)
            bar.set_postfix_str(describe(line), refresh=False)
            interval = Interval()
        run.poll_saving()
        if step.step % config.checkpoints.every == 0:
            run.counts.elapsed_seconds += interval.lap()
            run.begin_saving()
            interval.leave_out_saving()
    bar.close()
    if run.saved_at != step.step:
        if stopped and log:
            _say_if_slow(run, log)
        run.begin_saving()
    run.finish_saving()
    if log:
        what = "finished" if run.has_finished else "stopped on request; the same command goes on from here"
        log.event(f"{what} at step {step.step} of {run.total_steps}; checkpoint saved in {run.directory}/checkpoints", step.step)
        log.close()
    run.close()
    return run


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
    named = result.not_finite[:NAMED_CAUSES]
    causes = ", ".join(named) + (f" and {len(result.not_finite) - len(named)} more" if len(result.not_finite) > len(named) else "")
    if log:
        log.event(f"step {step}: update skipped, not finite: {causes}", step)
    if counts.skipped_in_a_row >= run.config.training.max_skipped:
        run.finish_saving()
        raise UserError(
            f"step {step}: {counts.skipped_in_a_row} updates in a row were not finite ({causes}); "
            "the last checkpoint is sound; if the same command ends here again, start a new run with a lower learning rate or clip harder"
        )


def _say_start(run: Run, log: RunLog | None) -> None:
    if log is None:
        return
    step, batches, facts = run.training_step, run.batches, run.facts()
    how = f"going on at step {step.step}" if step.step else "starting"
    log.event(
        f"{how} of {run.total_steps} steps ({batches.steps_per_epoch} an epoch, {batches.dropped_tokens_per_epoch} tokens left out at each "
        f"epoch's end), {run.ranks.size} ranks x {facts['threads']} threads, {run.precision}, vocabulary {run.tokens.vocabulary.size:,}, "
        f"core {facts['core_parameters']:,} and tables {facts['table_parameters']:,} parameters",
        step.step,
    )
    if run.changes:
        log.event(f"changed since the checkpoint: {'; '.join(run.changes)}", step.step)
    for note in filter(None, [*run.damage, run.saver.why_in_foreground(step.engine.core_size)]):
        log.event(note, step.step)


def _say_if_slow(run: Run, log: RunLog) -> None:
    """Say so where saving may take longer than those who sent the signal will wait."""
    seconds = run.saver.estimated_seconds(run.training_step.engine.core_size, run.training_step.tables.all())
    if seconds > SAVING_SECONDS:
        log.event(
            f"saving will take about {seconds:.0f} s; DeepSpeed's launcher ends what is not done 30 s after Ctrl-C: "
            "the checkpoint before this one stays until this one is whole",
            run.training_step.step,
        )


def _start_evaluator(command: list[str]) -> subprocess.Popen[bytes]:
    """The evaluator as a process of its own, at low priority, in a process group of its own: Ctrl-C is for the training.

    Not in a session of its own: Linux shares the cores between sessions first, and low priority would mean nothing.
    """
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE")}
    with open(Path(command[command.index("--run") + 1]) / "evaluator.log", "ab") as output:
        return subprocess.Popen(
            ["nice", "-n", "10", sys.executable, *command],
            env={**clean, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
