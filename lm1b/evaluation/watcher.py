"""Scores of a run: one checkpoint on demand, or every new one beside the training.

1. `Evaluator` holds what stays the same from one checkpoint to the next: the run's config, its vocabulary, the text.
2. Every result goes to evaluations.jsonl and TensorBoard as soon as it is there.
3. `watch` takes the newest checkpoint that has no result yet, again and again, until the training has ended and all that
   is left on disk is scored. What evaluations.jsonl already has is not scored again, so a killed watcher goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lm1b.config import Config, Split
from lm1b.data.remote_tokens import open_tokens
from lm1b.devices import best_device
from lm1b.distributed import Ranks, single_process
from lm1b.errors import UserError
from lm1b.evaluation.board import show
from lm1b.evaluation.perplexity import evaluate_checkpoint
from lm1b.evaluation.texts import ScoredText, text_of_files, text_of_split
from lm1b.evaluation.token_nats import LARGEST_TOKENS, write_token_nats
from lm1b.files import append_json_line, seal
from lm1b.launchers import here
from lm1b.model.products import keep_float32_exact
from lm1b.peers import naming_the_guilty
from lm1b.progress import Progress
from lm1b.training.checkpoint import Checkpoint, list_checkpoints
from lm1b.training.evaluations import KINDS, Evaluation, Weights
from lm1b.training.run_folder import RunFolder
from lm1b.training.run_state import trainer_state, training_has_finished

POLL_SECONDS = 2.0
GRACE_SECONDS = 30.0  # no trainer and no end: how long a watcher waits for one to start


class Evaluator:
    """Scores checkpoints of one run on one text.

    config: the run's, with the `evaluation` section as asked for. split: of the token directory, or None for `files`.
    """

    def __init__(
        self,
        run_directory: Path,
        config: Config,
        split: Split | None = "validation",
        files: list[Path] | None = None,
        *,
        ranks: Ranks | None = None,
    ) -> None:
        self.folder = RunFolder(run_directory)
        self.config = config
        self.ranks = ranks or single_process()
        tokens = open_tokens(config.tokens)
        tokens.verify_once()
        self.text: ScoredText = text_of_files(tokens.vocabulary, files or []) if split is None else text_of_split(tokens, split)

    def score(self, checkpoint: Checkpoint, kinds: Sequence[Weights] | None = None) -> list[Evaluation]:
        """Score one checkpoint; its lines are written to the run's logs. Raises UserError where it cannot be read.

        kinds: of weights, where not all that the config asks for.
        """
        settings = self.config.evaluation
        kinds = kinds or KINDS[settings.weights]
        settings = settings.model_copy(update={"weights": "both" if len(kinds) > 1 else kinds[0]})
        what, total = f"{checkpoint.path.name} on {self.text.split}", len(kinds) * len(self.text.tokens_N)
        with Progress(what, total, "word", shown=self.ranks.is_first) as bar:
            found = evaluate_checkpoint(
                checkpoint,
                settings,
                self.text,
                ranks=self.ranks,
                on_scored=bar.update,
                on_nats=self._keep_nats if len(self.text.tokens_N) <= LARGEST_TOKENS else None,
            )
        if self.ranks.is_first:
            look = uuid.uuid4().hex
            found = [replace(each, look=look) for each in found]
            for each in found:
                append_json_line(self.folder.evaluations, seal(each.as_line()))
            show(self.folder.path, self.config, found, with_model=self.text.split == "validation" and self.ranks.size == 1)
        return found

    def _keep_nats(self, evaluation: Evaluation, nats: list[np.ndarray]) -> None:
        """For the report's breakdowns; the first rank's."""
        if self.ranks.is_first and evaluation.nats is not None:
            write_token_nats(self.folder, evaluation, self.text, nats)

    def scored(self) -> set[tuple[int, Weights]]:
        """(step, kind of weights) that evaluations.jsonl already has for this text and these settings."""
        wanted = (self.text.split, self.text.fingerprint, self.text.predictions)
        return {
            (each.step, kind)
            for each in self.folder.read_evaluations()
            if (each.split, each.vocabulary, each.predictions) == wanted and each.made_with(self.config.evaluation)
            for kind in each.stands_for
        }


@contextlib.contextmanager
def evaluating_ranks(device: str | None) -> Iterator[Ranks]:
    """This process alone on `device` (None: a GPU if there is one), or one of the ranks that a launcher has started.

    Ranks hold the vocabulary's rows between them and score the same positions. Raises UserError for a GPU that is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device found here; use --device cpu")
    keep_float32_exact()
    if here().size == 1:
        yield single_process(device or best_device())
        return
    from lm1b.training.process_group import start_ranks, stop_ranks  # loads DeepSpeed, which one process does without

    ranks = start_ranks()
    try:
        with naming_the_guilty(ranks.peers, lambda: "run the same command again"):
            yield ranks
    finally:
        stop_ranks()


@contextlib.contextmanager
def only_watcher(run_directory: Path) -> Iterator[None]:
    """Wait until no other process watches this run, then keep others waiting: two would score the same checkpoints twice."""
    with open(RunFolder(run_directory).watcher_lock, "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def watch(
    run_directory: Path,
    evaluator: Evaluator,
    on_result: Callable[[Evaluation], object],
    *,
    poll_seconds: float = POLL_SECONDS,
    grace_seconds: float = GRACE_SECONDS,
) -> str:
    """Score every new checkpoint, newest first, until the training has ended and all is scored. Returns why it ended.

    Raises UserError at the end where a checkpoint could not be scored although it is still there.
    """
    with only_watcher(run_directory):
        asked = KINDS[evaluator.config.evaluation.weights]
        done, problems = evaluator.scored(), []
        give_up_at = time.monotonic() + grace_seconds
        while True:
            # Asked before the checkpoints are listed: what a trainer wrote before it ended is then always seen.
            trainer = trainer_state(run_directory)
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
                    if (newest.path / "manifest.json").exists():
                        problems.append(str(error))
                continue
            reason = _why_ended(run_directory, checkpoints, trainer, time.monotonic() > give_up_at)
            if reason and problems:
                raise UserError("; ".join(problems))
            if reason:
                return reason
            if trainer == "alive":
                give_up_at = 0.0  # it was here: when it has gone there is nothing to wait for
            time.sleep(poll_seconds)


def _why_ended(run_directory: Path, checkpoints: list[Checkpoint], trainer: str, waited_enough: bool) -> str | None:
    """Why there is nothing more to come once all checkpoints are scored, or None."""
    if training_has_finished(checkpoints, RunFolder(run_directory).read_config()):
        return "the training has ended and every checkpoint is scored"
    if trainer == "dead":
        return "the trainer died before the end of the training (its process is gone); every checkpoint that it left is scored"
    if trainer == "absent" and waited_enough:
        return "no training is running here and it had not reached its end; every checkpoint that is there is scored"
    return None
