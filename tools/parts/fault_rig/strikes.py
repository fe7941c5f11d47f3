"""Faults that strike a training under the launcher: inside a rank at a named call, or from outside at some moment."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import psutil

from lm1b.files import read_json
from parts.fault_rig.launches import TRAIN, Failure, Launch
from parts.fault_rig.points import Moment, Order, moments_of
from parts.fault_rig.workplace import EVERY, TrainingRun

PAUSE_LIMIT_SECONDS = 15.0  # the program's own time limit while a rank is paused
PAUSE_GRACE_SECONDS = 75.0  # beyond it, until the others must have ended
SLOW_STEP_SECONDS = 3.0
RANDOM = "random moment"  # the phase of a kill that no named call marks
LAUNCHER_KILLED = "launcher killed, ranks left alone"


class Strike(ABC):
    """A fault: what the victims are told, and what is done from outside. victim: the rank that dies, if it is one."""

    phase: str | None = None
    victim: str | None = None

    def __init__(self, name: str, detail: str) -> None:
        self.name, self.detail = name, detail

    def order(self, mark: Path) -> Order | None:
        """What a process of the training is told to do to itself."""
        return None

    def variables(self) -> dict[str, str]:
        """Environment variables of the training."""
        return {}

    @abstractmethod
    def act(self, launch: Launch, run: TrainingRun, mark: Path) -> float | None:
        """Strike; returns when (time.time()), or None where the training ended before. Raises Failure."""


class KillInPhase(Strike):
    """SIGKILL of one rank at the n-th call of a phase."""

    def __init__(self, phase: str, point: str, victim: str, occurrence: int, moment: Moment) -> None:
        super().__init__("rank killed", f"{phase}: {victim}, {moment} call {occurrence}")
        self.phase, self.victim, self.occurrence = phase, victim, occurrence
        self.point = point
        self.moment: Moment = moment

    def order(self, mark: Path) -> Order:
        return Order(TRAIN, self.point, str(mark), self.victim or "any", self.occurrence, self.moment)

    def act(self, launch: Launch, run: TrainingRun, mark: Path) -> float | None:
        return float(read_json(mark)["at"]) if launch.wait_until(mark.exists) else None


class FromOutside(Strike):
    """Something done to the processes of a launch, after some more steps or at some moment of its start."""

    def __init__(self, name: str, detail: str, steps: int | None, seconds: float) -> None:
        """steps: how many more before it happens, None: during the start; seconds: and then so long."""
        moment = "the ranks' start" if steps is None else f"{steps} more steps"
        super().__init__(name, f"{detail}, {seconds:.2f} s after {moment}")
        self.steps, self.seconds = steps, seconds

    def act(self, launch: Launch, run: TrainingRun, mark: Path) -> float | None:
        starts = len(run.starts())
        if self.steps is None:
            ready = launch.wait_until(lambda: len(launch.ranks()) > 0)
        else:
            ready = launch.wait_until(lambda: len(run.starts()) > starts)
            first = run.starts()[-1] if ready else 0
            ready = ready and launch.wait_until(lambda: run.last_step() >= first + (self.steps or 0))
        time.sleep(self.seconds)
        if not ready or launch.status is not None:
            return None
        at = time.time()
        self.strike(launch)
        return at

    @abstractmethod
    def strike(self, launch: Launch) -> None:
        """What is done."""


class KillFromOutside(FromOutside):
    """SIGKILL of a rank, of all of them, or of the launcher with them, as when a machine goes down."""

    phase = RANDOM

    def __init__(self, victim: str, steps: int | None, seconds: float) -> None:
        super().__init__("rank killed", f"{RANDOM}: {victim}", steps, seconds)
        self.victim = victim

    def strike(self, launch: Launch) -> None:
        ranks = launch.ranks()
        chosen = [process for rank, process in ranks.items() if self.victim in ("all ranks", f"rank {rank}")]
        for process in launch.members() if self.victim == "launcher and ranks" else chosen:
            with contextlib.suppress(psutil.Error):  # it may have gone with another one
                process.send_signal(signal.SIGKILL)


class KillLauncher(FromOutside):
    """SIGTERM to the `deepspeed` command, or SIGKILL of all of the launcher: the ranks must notice, save and end."""

    def __init__(self, steps: int, *, runner_only: bool) -> None:
        name = "SIGTERM to the runner alone" if runner_only else LAUNCHER_KILLED
        super().__init__(name, name, steps, 0.0)
        self.steps: int = steps
        self.runner_only = runner_only

    def order(self, mark: Path) -> Order:
        # From then on so slow that the ranks do not reach the end by themselves while they are waited for.
        return Order(TRAIN, "backward", str(mark), occurrence=self.steps, action="sleep", every=True, seconds=SLOW_STEP_SECONDS)

    def strike(self, launch: Launch) -> None:
        if self.runner_only:
            os.kill(launch.pid, signal.SIGTERM)
            return
        ranks = {process.pid for process in launch.ranks().values()}
        for process in launch.members():
            if process.pid not in ranks:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(signal.SIGKILL)


class PauseRank(FromOutside):
    """SIGSTOP of a rank: the others must end within the time limit; then it may go on, and must end too."""

    def __init__(self, rank: int, steps: int) -> None:
        super().__init__("rank paused (SIGSTOP)", f"rank {rank}", steps, 0.0)
        self.rank = rank

    def variables(self) -> dict[str, str]:
        return {"LM1B_TIMEOUT_SECONDS": str(round(PAUSE_LIMIT_SECONDS))}

    def strike(self, launch: Launch) -> None:
        paused = launch.ranks()[self.rank]
        paused.suspend()
        others_gone = launch.wait_until(lambda: set(launch.ranks()) <= {self.rank}, PAUSE_LIMIT_SECONDS + PAUSE_GRACE_SECONDS)
        paused.resume()
        if not others_gone:
            raise Failure(f"rank {self.rank} was paused, and the others were still waiting after the time limit")


@dataclass(frozen=True)
class Phase:
    """A phase of training in which a rank is killed.

    point: one of POINTS; calls: from which to which of its calls; moments: None takes all that there are.
    """

    name: str
    point: str
    calls: tuple[int, int]
    moments: tuple[Moment, ...] | None = None
    first_rank_only: bool = False

    def draw(self, generator: random.Random, ranks: int, number: int) -> KillInPhase:
        """The number-th kill in this phase: moments take turns, the rest is drawn."""
        moments = self.moments or moments_of(self.point)
        victim = 0 if self.first_rank_only else generator.randrange(ranks)
        return KillInPhase(self.name, self.point, f"rank {victim}", generator.randint(*self.calls), moments[number % len(moments)])


# A training comes at most two checkpoints further before one of these strikes.
PHASES = (
    Phase("backward", "backward", (2, 2 * EVERY)),
    Phase("all-to-all", "all-to-all", (5, 15 * EVERY)),
    Phase("core file", "core file", (1, 30), first_rank_only=True),
    Phase("table file", "table file", (1, 15)),
    Phase("before the manifest", "manifest", (1, 2), ("before",), True),
    Phase("after the manifest", "manifest", (1, 2), ("after",), True),
    Phase("rename", "rename", (1, 2), ("after",), True),
    Phase("deleting an old checkpoint", "retention", (1, 1), ("after",), True),
)


def draw_random_kill(generator: random.Random, ranks: int) -> KillFromOutside:
    """A kill at a moment that nothing in the program marks: now and then during the start, else in the middle of some step."""
    victim = generator.choice([*(f"rank {rank}" for rank in range(ranks)), "all ranks", "launcher and ranks"])
    if generator.random() < 0.25:
        return KillFromOutside(victim, None, generator.uniform(0.3, 8.0))
    return KillFromOutside(victim, generator.randrange(2 * EVERY), generator.uniform(0.0, 0.1))
