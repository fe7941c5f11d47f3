"""One training that is struck again and again: a fault at each start, and at the end a start without one, to compare.

Between two faults the training must end by itself, all of it; the next start must go on from a checkpoint that is not too
old; and the final checkpoint must have the bytes of an undisturbed run, as must the log's lines.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parts.fault_rig.compare import check_end
from parts.fault_rig.launches import GONE_SECONDS, Failure, Launch
from parts.fault_rig.strikes import Strike
from parts.fault_rig.table import Trial
from parts.fault_rig.workplace import EVERY, FLAVOURS, KEEP_LAST, Workplace

STRIKES_A_CHAIN = 9


def chain_steps(strikes: int) -> int:
    """Length of a training that so many faults may strike: each lets it come two checkpoints further, retention once more."""
    return (2 * strikes + KEEP_LAST + 2) * EVERY


SHORT_STEPS = chain_steps(3)  # length of the trainings that are struck no more often, all compared with the same one


@dataclass(frozen=True)
class _Pending:
    """A trial whose training has not yet started again. last_step: the last one done; being_saved: what was half on disk."""

    trial: Trial
    last_step: int
    being_saved: int | None


class Chain:
    """One training of a flavour and what strikes it."""

    def __init__(self, place: Workplace, flavour: str, strikes: Sequence[Strike], steps: int) -> None:
        self.place, self.strikes, self.steps = place, strikes, steps
        self.name = place.new_name("chain")
        self.expected = place.undisturbed(flavour, steps)
        self.run = place.training(self.name, flavour, steps)
        self._pending: list[_Pending] = []

    def carry_out(self, on_trial: Callable[[Trial], None]) -> list[Trial]:
        """Every fault, then the end. Trials come complete."""
        trials = []
        for number, strike in enumerate(self.strikes):
            trials.append(self._strike(number, strike))
            on_trial(trials[-1])
        log = self.place.logs / f"{self.name}_end.log"
        starts = len(self.run.starts())
        try:
            self.place.finish(self.run, log)
            self._settle(starts)
            self._check(trials)
        except Failure as failure:
            for trial in trials:
                trial.fail(str(failure), log)
        return trials

    def _strike(self, number: int, strike: Strike) -> Trial:
        run, log, mark = self.run, self.place.logs / f"{self.name}_{number}.log", self.place.folder / f"{self.name}_{number}.mark"
        trial = Trial(strike.name, strike.detail, strike.phase, log=str(log))
        starts = len(run.starts())
        launch = self.place.start(run, log, strike.order(mark), variables=strike.variables())
        try:
            at = strike.act(launch, run, mark)
            being_saved = run.being_saved()
            if at is None:
                trial.phase = None
                trial.fail(f"the fault did not strike: the training ended before, status {launch.status}: {launch.last_words()}")
        except Failure as failure:
            at, being_saved = None, run.being_saved()
            trial.fail(str(failure))
        if not launch.wait_gone():
            trial.fail(f"processes of the training were still there after {GONE_SECONDS:.0f} s")
        if at is not None:
            trial.seconds = time.time() - at
            trial.named = says_who_died(launch, strike)
        self._settle(starts)
        self._pending.append(_Pending(trial, run.last_step(), being_saved))
        return trial

    def _settle(self, starts_before: int) -> None:
        """The training has started again, if it has: how far back did it go?"""
        starts = self.run.starts()
        if len(starts) <= starts_before:
            return
        for pending in self._pending:
            lost = max(0, pending.last_step - starts[-1])
            saving = pending.being_saved
            meanwhile = max(0, pending.last_step - saving) if saving is not None and saving > starts[-1] else 0
            pending.trial.steps_lost, pending.trial.steps_while_saving = lost - meanwhile, meanwhile
            if lost - meanwhile > EVERY:
                pending.trial.fail(f"{lost - meanwhile} steps were lost, with a checkpoint every {EVERY}")
        self._pending = []

    def _check(self, trials: list[Trial]) -> None:
        """Compare the end with the undisturbed one. Raises Failure for what is not a matter of bytes."""
        if self._pending:
            raise Failure("events.jsonl does not say that the training went on")
        number = check_end(self.run, self.expected, self.steps)
        for trial in trials:
            trial.wrong_bytes = number


def says_who_died(launch: Launch, strike: Strike) -> bool | None:
    """Whether an error of the program names the rank that was killed, first of all; None where no single rank was, or all is silence."""
    if strike.victim is None or not strike.victim.startswith("rank ") or not launch.said():
        return None
    named = [re.search(r"\brank \d+\b", line) for line in launch.said() if line.startswith("lm1b: error:")]
    return any(match and match.group() == strike.victim for match in named)


def plan_chains(place: Workplace, strikes: Sequence[Strike], generator: random.Random) -> list[Chain]:
    """Shuffle faults over as few chains as will do, precisions in turn."""
    shuffled = list(strikes)
    generator.shuffle(shuffled)
    number = -(-len(shuffled) // STRIKES_A_CHAIN)
    flavours = list(FLAVOURS)
    steps = max(SHORT_STEPS, chain_steps(-(-len(shuffled) // number))) if number else 0
    return [Chain(place, flavours[index % len(flavours)], shuffled[index::number], steps) for index in range(number)]
