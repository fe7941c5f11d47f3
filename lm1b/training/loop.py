"""Training from start or from the newest checkpoint to the end, in the order in which things happen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from lm1b.config import Config
from lm1b.console import remark, say
from lm1b.distributed import Ranks, agree
from lm1b.errors import AgreedError, UserError, listed
from lm1b.launchers import without_place
from lm1b.peers import naming_the_guilty
from lm1b.processes import RankProcess
from lm1b.training.checkpoints.mirror import mirror_logs
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.log.activations import ActivationWatch
from lm1b.training.log.matmul_rate import tokens_at_ceiling
from lm1b.training.log.metrics_line import Interval
from lm1b.training.log.run_log import RunLog
from lm1b.training.log.services import Services, check_services
from lm1b.training.log.step_progress import StepProgress
from lm1b.training.run import Run, prepare_process
from lm1b.training.run_folder import RunFolder
from lm1b.training.run_state import where_to_go_on
from lm1b.training.same_everywhere import check_program
from lm1b.training.step.training_step import StepResult
from lm1b.training.stopping import Launcher, StopSignal, default_signals, ignore_signals

SAVING_SECONDS = 25.0  # what a save after a signal should fit in
NAMED_CAUSES = 4  # of a skipped update: one NaN soon is in every tensor of its rank


def train(config: Config, evaluator: list[str] | None = None) -> None:
    """Join the ranks and train as `config` says. Raises UserError on every rank alike.

    evaluator: command that scores checkpoints beside the training, used where the config asks for it; it is waited for.
    """
    launcher, at_hangup = Launcher(), signal.getsignal(signal.SIGHUP)  # before anything takes time: as they are when the ranks are started
    ranks = start_ranks()
    beside = evaluator if ranks.is_first and config.training.evaluate_alongside else None
    try:
        with naming_the_guilty(ranks.peers, lambda: where_to_go_on(Path(config.run.directory))):
            run = train_on(ranks, config, beside, launcher)
        watcher = run.watcher if run.has_finished else None
        del run  # its engine holds process groups, whose threads must end before the interpreter does
    finally:
        stop_ranks()
    if watcher:
        default_signals(at_hangup)
        remark("waiting for the evaluator beside the training")
        if watcher.wait() != 0:
            its_log = RunFolder(config.run.directory).evaluator_log
            remark(f"the evaluator ended with status {watcher.returncode}; see {its_log}", level="warning")
        _send_last_evaluations(config)
        mirror_logs(config)


def train_on(ranks: Ranks, config: Config, evaluator: list[str] | None = None, launcher: Launcher | None = None) -> Run:
    """Train on ranks that are up; see `train`. Returns the run as it ended."""
    notes = check_program(ranks, config)
    agree(ranks, lambda: check_services(config) if ranks.is_first else None)
    prepare_process(config, ranks)
    run = Run(config, ranks)
    log = None
    try:
        run.tokens_at_ceiling = tokens_at_ceiling(config, run.tokens.vocabulary.size, run.training_step.engine.dtype, ranks)
        log = _open_log(run, notes)
        if log and run.mirror:
            run.mirror.start(lambda text: log.event(text, run.training_step.step))
        run.watcher = _start_evaluator(evaluator) if evaluator else None
        stop = StopSignal(launcher)
        _take_steps(run, log, stop)
        _save_the_end(run, log)
        run.finish_mirroring()
        ignore_signals()
        _say_end(run, log, stop)
    except UserError as error:
        if log:
            log.failed(str(error), run.training_step.step)
        _close(run, log)  # an end in order too: its user is told of it
        raise
    if log:
        log.close()
    run.close_mirror()  # the other ranks wait for it here, as long as it takes
    run.close()
    agree(ranks, lambda: log.check() if log else None)
    return run


def _send_last_evaluations(config: Config) -> None:
    """To the services, what the evaluator found after the training's end; the files have it whatever comes of that."""
    if config.logging.services:
        try:
            services = Services(config, Path(config.run.directory), say)
        except UserError as error:
            remark(str(error), level="warning")
            return
        services.evaluations()
        services.close()


def _take_steps(run: Run, log: RunLog | None, stop: StopSignal) -> None:
    """Step after step until the end of the training, or until some rank is asked to stop."""
    config, step = run.config, run.training_step
    interval, stopped = Interval(), False
    activations = ActivationWatch(step.model.stack) if log else None
    with StepProgress(step.step, run.total_steps, shown=run.ranks.is_first) as progress:
        while not run.has_finished and not stopped:
            gap_every = config.training.gap_every
            check_gap = gap_every is not None and (step.step + 1) % gap_every == 0
            if log and log.problem:
                stop.failed(log.problem)
            is_logged = check_gap or (step.step + 1) % config.training.log_every == 0 or step.step + 1 >= run.total_steps
            if activations and is_logged:
                activations.begin()
            result = step.run(stop_requested=stop.requested, check_gap=check_gap)
            stopped = result.stop
            _count(run, result, log)
            interval.add(run, result)
            progress.update()
            if log and is_logged:
                line = interval.line(run, result) | (activations.take() if activations else {})
                log.metrics(line)
                progress.tell(line)
                interval = Interval()
            run.poll_saving()
            if step.step % config.checkpoints.every == 0:
                run.counts.elapsed_seconds += interval.lap()
                run.begin_saving()
                interval.leave_out_saving()
    run.counts.elapsed_seconds += interval.lap()  # since the last line: a training that is stopped ends between two


def _save_the_end(run: Run, log: RunLog | None) -> None:
    """A checkpoint of the last step, and the one before it committed."""
    if run.saved_step != run.training_step.step:
        if log and not run.has_finished:
            _say_if_slow(run, log)
        run.begin_saving()
    run.finish_saving()


def _close(run: Run, log: RunLog | None) -> None:
    if log:
        log.close()
    run.close()


def _count(run: Run, result: StepResult, log: RunLog | None) -> None:
    """Keep the totals; end the run after too many skipped updates in a row, by AgreedError."""
    counts, step = run.counts, run.training_step.step
    counts.lanes_restarted += result.lanes_restarted
    if result.applied:
        counts.tokens += run.batches.tokens_per_step
        counts.skipped_in_a_row = 0
        return
    counts.skipped += 1
    counts.skipped_in_a_row += 1
    causes = listed(result.not_finite, NAMED_CAUSES)
    if log:
        log.event(f"step {step}: update skipped, not finite: {causes}", step)
    if counts.skipped_in_a_row >= run.config.training.max_skipped:
        run.finish_saving()
        raise AgreedError(
            f"step {step}: {counts.skipped_in_a_row} updates in a row were not finite ({causes}); "
            "the last checkpoint is sound; if the same command ends here again, start a new run with a lower learning rate or clip harder"
        )


def _open_log(run: Run, notes: list[str]) -> RunLog | None:
    """The first rank's log, with how the training starts; None on the others. Every rank calls it."""
    members = run.ranks.peers.members if run.ranks.peers else [RankProcess.here(0)]
    facts = run.facts()
    log = agree(run.ranks, lambda: RunLog(run.config, run.training_step.step, members, facts) if run.ranks.is_first else None)
    if log:
        _say_start(run, log, notes)
    return log


def _say_start(run: Run, log: RunLog, notes: list[str]) -> None:
    if run.lock and run.lock.stale_owner:
        log.event(f"the last training here ({run.lock.stale_owner}) did not end cleanly", run.training_step.step)
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
    for note in filter(None, [*notes, *run.fetched, *run.damage, run.saver.why_in_foreground(step.engine.core_size)]):
        log.event(note, step.step)


def _say_end(run: Run, log: RunLog | None, stop: StopSignal) -> None:
    """Every rank calls it: why a run stopped short may be known to any of them."""
    ending, what = ("finished", "finished") if run.has_finished else stop.agreed(run.ranks)
    if log:
        step = run.training_step.step
        what += f" at step {step} of {run.total_steps}; checkpoint saved in {run.directory}/checkpoints"
        log.event(what if run.has_finished else f"{what}; the same command goes on from there", step, ended=ending)


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
    with open(RunFolder(command[command.index("--run") + 1]).evaluator_log, "ab") as output:
        return subprocess.Popen(
            ["nice", "-n", "10", sys.executable, *command],
            env={**without_place(os.environ), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
