"""Which checkpoint a run goes on from: the newest sound one, with damaged ones set aside and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm1b.distributed import Ranks, agree, all_gather_objects
from lm1b.errors import UserError
from lm1b.training.checkpoint import Checkpoint, DamagedCheckpoint, checkpoint_folder, list_checkpoints
from lm1b.training.run_folder import RunFolder


def newest_sound_checkpoint(
    run_directory: Path, ranks: Ranks, accept: Callable[[dict[str, Any]], object], on_damage: Callable[[str], object]
) -> Checkpoint | None:
    """The newest checkpoint whose every file is as it was written; None where the run has none. Collective.

    A damaged one is set aside; on_damage is told which file it was. accept: is given the state, and raises UserError where this
    run cannot go on from it. Raises UserError on every rank where all that there were are damaged: no run starts anew unasked.
    """
    while True:
        steps = all_gather_objects([checkpoint.step for checkpoint in list_checkpoints(run_directory, damaged_too=True)], ranks)
        if not steps[0]:
            break
        step = int(steps[0][-1])  # type: ignore[index]  (rank 0's view: others may see an older one of a shared folder)
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

    return next(
        (str(problem) for problem in all_gather_objects(agree(ranks, look, may_take_long=True), ranks) if problem is not None), None
    )


def _refuse_to_start_anew(damaged: list[Path]) -> None:
    if damaged:
        raise UserError(
            f"{damaged[0].parent}: every checkpoint is damaged ({', '.join(path.name for path in damaged)}); "
            "put a sound copy there to go on, or remove these folders to start from the beginning"
        )
