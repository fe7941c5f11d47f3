"""What a run goes on from: the newest sound checkpoint of its own experiment, here or in its mirror.

1. A newer checkpoint of the mirror is copied into the run directory first.
2. The newest one here is verified, every file; a damaged one is set aside and named, and the one before it is taken.
3. It must be of the same experiment: corpus, vocabulary, seed and `FIXED_SECTIONS` of the config. All else may have changed, and is
   told (`Continuation.changes`).

Example: the same config with `batches.lanes=256` instead of 128 is refused ("it differs in batches.lanes"); with `training.epochs=2.0`
instead of 1.0 it goes on, and the log says `training.epochs 1.0 -> 2.0`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lm1b.config import Config, parse_config
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.distributed import Ranks, agree, all_gather_objects, from_first
from lm1b.errors import UserError
from lm1b.model.tables import VocabularyTable
from lm1b.training.checkpoints.checkpoint import Checkpoint, DamagedCheckpoint, checkpoint_folder, list_checkpoints
from lm1b.training.checkpoints.mirror import Mirror
from lm1b.training.run_folder import RunFolder
from lm1b.training.same_everywhere import check_run_folder

FETCHES = 2  # from the mirror: if a checkpoint is damaged again right after it was fetched, blame this disk and stop fetching
FIXED_SECTIONS = ("model", "batches", "softmax", "tables", "optimizer")  # of the config: a checkpoint of others is another experiment's


@dataclass(frozen=True)
class Continuation:
    """What a checkpoint must agree with for a run to go on from it."""

    config: Config
    tokens: TokenDirectory

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.config.run.directory)

    def newest_checkpoint(
        self, ranks: Ranks, mirror: Mirror | None, on_fetch: Callable[[str], object], on_damage: Callable[[str], object]
    ) -> Checkpoint | None:
        """The newest sound checkpoint of the run directory, into which a newer one of its mirror is copied first; None: none. Collective.

        mirror: the first rank's. Raises UserError on every rank for a checkpoint of another experiment; see also `newest_sound_checkpoint`.
        """
        if self.config.run.mirror is None:
            return newest_sound_checkpoint(self.directory, ranks, self.accept, on_damage)
        checkpoint = None
        for _ in range(FETCHES):
            agree(ranks, lambda: mirror and mirror.there.fetch_newer(self.accept, on_fetch), may_take_long=True)
            check_run_folder(ranks, self.directory)  # waits until every host sees what was fetched
            damaged: list[str] = []
            checkpoint = newest_sound_checkpoint(self.directory, ranks, self.accept, damaged.append)
            for problem in damaged:
                on_damage(problem)
            if not damaged:
                break  # else one was set aside, and the mirror may have it as it was
        return checkpoint

    def accept(self, state: dict[str, Any]) -> None:
        """Raise UserError where a checkpoint's state is of another experiment than the config's."""
        before, now = _with_defaults(state["config"]), self.config.as_json()
        changed = [f"{name}.{key}" for name in FIXED_SECTIONS for key in _differences(before[name], now[name])]
        if before["run"]["seed"] != self.config.run.seed:
            changed.append("run.seed")
        if state["vocabulary"] != self.tokens.fingerprint:
            changed.append("the vocabulary")
        if state["corpus"] != self.tokens.corpus:
            changed.append("the corpus")
        if changed:
            raise UserError(
                f"{self.directory}: its checkpoint of step {state['step']} is of another experiment; it differs in {', '.join(changed)}; "
                "go on with the settings it was made with, or choose another run.directory"
            )

    def changes(self, state: dict[str, Any], num_ranks: int, precision: str) -> list[str]:
        """What the run does otherwise from here on than in the training that saved the checkpoint: `section.key old -> new`."""
        before, now = _with_defaults(state["config"]), self.config.as_json()
        fields = [(section, key) for section in now for key in _differences(before.get(section, {}), now[section])]
        changes = [f"{section}.{key} {before.get(section, {}).get(key)} -> {now[section].get(key)}" for section, key in fields]
        for name, old, new in (("ranks", state["ranks"], num_ranks), ("computing precision", state["precision"], precision)):
            if old != new:
                changes.append(f"{name} {old} -> {new}")
        return changes


def newest_sound_checkpoint(
    run_directory: Path, ranks: Ranks, accept: Callable[[dict[str, Any]], object], on_damage: Callable[[str], object]
) -> Checkpoint | None:
    """The newest checkpoint whose every file is as it was written; None where the run has none. Collective.

    A damaged one is set aside; on_damage is told which file it was. accept: is given the state, and raises UserError where this
    run cannot go on from it. Raises UserError on every rank where all that there were are damaged: no run starts anew unasked.
    """
    while True:
        # The first rank's view: others may see an older one of a shared folder.
        steps = from_first(ranks, lambda: [checkpoint.step for checkpoint in list_checkpoints(run_directory, damaged_too=True)])
        if not steps:
            break
        step = steps[-1]
        checkpoint = Checkpoint(step, checkpoint_folder(run_directory, step))
        problem = _first_problem(checkpoint.state, ranks)
        if problem is None:
            agree(ranks, lambda checkpoint=checkpoint: accept(checkpoint.state()))
            problem = _first_problem(lambda checkpoint=checkpoint: checkpoint.verify(ranks.rank, ranks.size), ranks)
        if problem is None:
            return checkpoint
        aside = agree(ranks, lambda checkpoint=checkpoint: checkpoint.set_aside() if ranks.is_first else None)
        on_damage(f"{problem}; set aside as {aside}")
    damaged = sorted(RunFolder(run_directory).checkpoints.glob("step_*.damaged*"))
    agree(ranks, lambda: _refuse_to_start_anew(damaged))
    return None


def _first_problem(check: Callable[[], object], ranks: Ranks) -> str | None:
    """What the first rank that found damage says; None where all is sound."""

    def look() -> str | None:
        try:
            check()
        except DamagedCheckpoint as error:
            return str(error)
        return None

    problems = all_gather_objects(agree(ranks, look, may_take_long=True), ranks)
    return next((problem for problem in problems if problem is not None), None)


def _refuse_to_start_anew(damaged: list[Path]) -> None:
    if damaged:
        raise UserError(
            f"{damaged[0].parent}: every checkpoint is damaged ({', '.join(path.name for path in damaged)}); "
            "put a sound copy there to go on, or remove these folders to start from the beginning"
        )


def read_tables(checkpoint: Checkpoint, ranks: Ranks, tables: list[VocabularyTable]) -> None:
    """This rank's rows, straight into their place, as many matrices at a time as there are threads."""
    reading = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for table in tables:
            for key, matrix in (("rows", table.rows), ("accumulators", table.accumulators)):
                reading.append(pool.submit(checkpoint.read_table, table.name, ranks.rank, ranks.size, key, matrix))
        for done in reading:
            done.result()


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's config, in which a program that did not know a field yet did what is that field's default now."""
    try:
        return parse_config(config).as_json()
    except UserError:
        return config


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
