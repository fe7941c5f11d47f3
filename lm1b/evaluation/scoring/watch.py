"""Every new checkpoint of a run scored beside its training.

1. The newest checkpoint that has no result yet is scored, again and again, until the training has ended and all that is left on disk has
   one. What evaluations.jsonl already has is not scored again, so a killed watcher goes on.
2. Retention may delete a checkpoint before it is scored: then the next one is taken. What is damaged is told at the end.

    watch(Evaluator(Path("runs/irnn_lm"), config))                 # -> "the training has ended and every checkpoint is scored"
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Callable, Generator
from pathlib import Path

from lm1b.errors import UserError
from lm1b.evaluation.scoring.evaluator import Evaluator, say_result
from lm1b.training.checkpoints.checkpoint import MANIFEST, list_checkpoints
from lm1b.training.evaluations import KINDS, Evaluation, Weights
from lm1b.training.run_folder import RunFolder
from lm1b.training.run_state import RunState, run_state

POLL_SECONDS = 2.0
GRACE_SECONDS = 30.0  # no trainer and no end: how long a watcher waits for one to start


@contextlib.contextmanager
def only_watcher(run_directory: Path) -> Generator[None]:
    """Wait until no other process watches this run, then keep others waiting: two would score the same checkpoints twice."""
    with open(RunFolder(run_directory).watcher_lock, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def watch(
    evaluator: Evaluator,
    on_result: Callable[[Evaluation], object] = say_result,
    *,
    poll_seconds: float = POLL_SECONDS,
    grace_seconds: float = GRACE_SECONDS,
) -> str:
    """Score every new checkpoint, newest first, until the training has ended and all is scored. Returns why it ended.

    Raises UserError for several ranks, and at the end where a checkpoint could not be scored although it is still there.
    """
    if evaluator.ranks.size > 1:
        raise UserError("--watch runs as one process; start it with python, not with a launcher of ranks")
    run_directory = evaluator.folder.path
    with only_watcher(run_directory):
        asked = KINDS[evaluator.config.evaluation.weights]
        done, problems = evaluator.scored(), []
        give_up_at = time.monotonic() + grace_seconds
        while True:
            # Asked before the checkpoints are listed: what a trainer wrote before it ended is then always seen.
            state = run_state(run_directory)
            checkpoints = list_checkpoints(run_directory)
            pending = [checkpoint for checkpoint in checkpoints if not done.issuperset((checkpoint.step, kind) for kind in asked)]
            if pending:
                newest = pending[-1]
                missing: list[Weights] = [kind for kind in asked if (newest.step, kind) not in done]
                done |= {(newest.step, kind) for kind in missing}
                try:
                    for evaluation in evaluator.score(newest, missing):
                        on_result(evaluation)
                except UserError as error:
                    # Retention may have been faster; what is still there and cannot be scored is told at the end.
                    if (newest.path / MANIFEST).exists():
                        problems.append(str(error))
                continue
            reason = _why_ended(state, time.monotonic() > give_up_at)
            if reason and problems:
                raise UserError("; ".join(problems))
            if reason:
                return reason
            if state == "running":
                give_up_at = 0.0  # it was here: when it has gone there is nothing to wait for
            time.sleep(poll_seconds)


def _why_ended(state: RunState, waited_enough: bool) -> str | None:
    """Why there is nothing more to come once all checkpoints are scored, or None."""
    if state == "finished":
        return "the training has ended and every checkpoint is scored"
    if state == "dead":
        return "the trainer died before the end of the training (its process is gone); every checkpoint that it left is scored"
    if state != "running" and waited_enough:
        return "no training is running here and it had not reached its end; every checkpoint that is there is scored"
    return None
