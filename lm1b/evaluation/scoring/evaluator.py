"""Scores of a run's checkpoints on one text, written where the run's results are kept.

1. `Evaluator` holds what stays the same from one checkpoint to the next: the run's config, its vocabulary, the text, the ranks.
2. When a checkpoint has been scored with every kind of weights, its results go to evaluations.jsonl and TensorBoard; the nats of every
   token have gone to token_nats/ with each kind.
3. launch/evaluate.py scores one checkpoint (`score_and_say`); watch.py all of them, beside the training.

    evaluator = Evaluator(Path("runs/irnn_lm"), config)            # validation, by the config's `evaluation` section
    (evaluation,) = evaluator.score(choose_checkpoint(Path("runs/irnn_lm"), "latest"))
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lm1b.config import Config, Split
from lm1b.console import say
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.remote import open_tokens
from lm1b.distributed import Ranks, agree, single_process
from lm1b.errors import UserError
from lm1b.evaluation.scoring.checkpoint_board import show
from lm1b.evaluation.scoring.perplexity import evaluate_checkpoint
from lm1b.evaluation.scoring.texts import ScoredText, digests_of_test, text_of_files, text_of_split
from lm1b.evaluation.scoring.token_nats import LARGEST_TOKENS, write_token_nats
from lm1b.evaluation.trained.loading import LoadedModel, load_checkpoint
from lm1b.files import append_json_line, seal
from lm1b.launchers import Place, here
from lm1b.progress import Progress
from lm1b.training.checkpoints.checkpoint import Checkpoint
from lm1b.training.evaluations import KINDS, Evaluation, Weights, count_test_looks
from lm1b.training.run_folder import RunFolder
from lm1b.training.same_everywhere import check_tokens


class Evaluator:
    """Scores checkpoints of one run on one text.

    config: the run's, with the `evaluation` section as asked for. split: of the token directory, or None for `files`. A collective, and so
    is `score`: a mistake that one rank finds is a UserError on all.
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
        self.tokens, self.text = agree(self.ranks, lambda: self._open(split, files or []), may_take_long=True)
        check_tokens(self.ranks, self.tokens)

    def _open(self, split: Split | None, files: list[Path]) -> tuple[TokenDirectory, ScoredText]:
        tokens = open_tokens(self.config.tokens)
        place = here() if self.ranks.size > 1 else Place()  # a process on its own verifies all
        tokens.verify_once(place.local_rank, place.local_size)
        return tokens, text_of_files(tokens.vocabulary, files, digests_of_test(tokens)) if split is None else text_of_split(tokens, split)

    def score(self, checkpoint: Checkpoint, kinds: Sequence[Weights] | None = None) -> list[Evaluation]:
        """Score one checkpoint; its lines are written to the run's logs. Raises UserError where it cannot be read.

        kinds: of weights, where not all that the config asks for.
        """
        settings = self.config.evaluation
        kinds = kinds or KINDS[settings.weights]
        settings = settings.model_copy(update={"weights": "both" if len(kinds) > 1 else kinds[0]})
        what, length = f"{checkpoint.path.name} on {self.text.split}", len(self.text.tokens_N)
        with Progress(what, length, "token", shown=self.ranks.is_first) as bar:

            def on_scored(n: int, total: int) -> None:
                bar.total = total  # known once it is seen which weights the checkpoint holds
                bar.update(n)

            found = evaluate_checkpoint(
                checkpoint,
                settings,
                self.text,
                ranks=self.ranks,
                on_scored=on_scored,
                on_nats=self._keep_nats if length <= LARGEST_TOKENS else None,
            )
        if self.ranks.is_first:
            look = uuid.uuid4().hex
            found = [replace(each, look=look) for each in found]
            for each in found:
                append_json_line(self.folder.evaluations, seal(each.as_line()))
            show(self.folder, self.config, found, self._model_to_show(checkpoint))
        return found

    def _model_to_show(self, checkpoint: Checkpoint) -> LoadedModel | None:
        """For sentences and its words' rows: the checkpoint read once more, with all rows of both tables in memory at once, where it has
        been scored. None where neither is wanted, or it has been deleted meanwhile.
        """
        is_wanted = self.config.logging.samples or self.config.logging.projector_words
        if self.text.split != "validation" or self.ranks.size > 1 or not is_wanted:
            return None
        try:
            return load_checkpoint(checkpoint, self.tokens, self.config.evaluation, "ema", self.ranks.device)
        except UserError:
            return None

    def _keep_nats(self, evaluation: Evaluation, nats: list[np.ndarray]) -> None:
        """For the report's breakdowns; the first rank's."""
        if self.ranks.is_first and evaluation.nats is not None:
            write_token_nats(self.folder, evaluation, self.text, nats)

    def scored(self) -> set[tuple[int, Weights]]:
        """(step, kind of weights) that evaluations.jsonl already has for this text and these settings."""
        wanted = self.text.key
        return {
            (each.step, kind)
            for each in self.folder.read_evaluations()
            if each.text_key == wanted and each.made_with(self.config.evaluation)
            for kind in each.stands_for
        }


def say_result(evaluation: Evaluation) -> None:
    """The result in words, or as an object of `--log-format json`."""
    say(evaluation.in_words(), event="evaluation", step=evaluation.step, metrics=evaluation.as_line())


def score_and_say(evaluator: Evaluator, checkpoint: Checkpoint) -> None:
    """Score one checkpoint and say what came out, with the number of looks at a test text. Raises UserError as `Evaluator.score`."""
    found = evaluator.score(checkpoint)
    if not evaluator.ranks.is_first:
        return
    for evaluation in found:
        say_result(evaluation)
    if evaluator.text.is_test:
        looks = count_test_looks(evaluator.folder.read_evaluations())
        say(f"looks at test by this run so far: {looks}; choose nothing by them")
