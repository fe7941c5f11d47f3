"""Strikes real trainings, evaluations and preprocessings, and shows that nothing is lost: a table of faults and what became of them.

    python tools/fault_rig.py --kills 40 --seed 1

Everything that is drawn depends on the seed alone. Exit status 0 only where every fault was survived that could be tried: without the
right to mount the disks are skipped, which the table says.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parts.fault_rig.chains import SHORT_STEPS, plan_chains
from parts.fault_rig.damage import damage_files, damage_newest
from parts.fault_rig.launches import Failure, end_all
from parts.fault_rig.outside import disk_trials, left_over_trial, not_finite_trial
from parts.fault_rig.processes import EVALUATION, PREPROCESSING, kill_evaluations, kill_preprocessing
from parts.fault_rig.strikes import LAUNCHER_KILLED, PHASES, RANDOM, KillLauncher, PauseRank, Strike, draw_random_kill
from parts.fault_rig.table import Trial, as_text, phase_counts
from parts.fault_rig.workplace import EVERY, Workplace
from parts.harness.results import check_can_write, made_by, revision_of
from tqdm import tqdm

from lm1b.errors import UserError, run_command
from lm1b.files import write_json

KILLS_A_PHASE = 3
ALL_PHASES = (*(phase.name for phase in PHASES), EVALUATION, PREPROCESSING, RANDOM)
GROUPS = ("kills", "corruptions", "signals", "disks", "numbers")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=40, help=f"processes killed: {KILLS_A_PHASE} in each phase, the rest at random moments"
    )
    parser.add_argument("--phases", nargs="+", choices=ALL_PHASES, default=ALL_PHASES, metavar="PHASE", help=", ".join(ALL_PHASES))
    parser.add_argument("--corruptions", type=int, default=100, help="files damaged; every tenth also as a training's newest checkpoint")
    parser.add_argument("--end-to-end", type=int, metavar="N", help="trainings started over damage (default: corruptions / 10)")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of a training")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="groups of faults (default: all)")
    parser.add_argument("--json", type=Path, help="write every trial to this file")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    found = parser.parse_args(arguments)
    for name, least in (("ranks", 1), ("kills", 0), ("corruptions", 0), ("end_to_end", 0)):
        if (value := getattr(found, name)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} (={value}) must be at least {least}")
    check_can_write("--json", found.json)
    if "kills" in found.only:
        share_out(found.kills, found.phases, found.ranks)  # raises what it has to before anything is started
    return found


def share_out(kills: int, phases: Sequence[str], ranks: int) -> dict[str, int]:
    """How many kills each phase gets: as many as there are for all alike, at most three where the rest can strike at random moments.

    Raises UserError where there is no phase to strike in.
    """
    names = [name for name in phases if name != RANDOM and (ranks > 1 or name != "all-to-all")]
    if not names and RANDOM not in phases:
        raise UserError(f"--phases {' '.join(phases)}: one rank alone sends nothing; give --ranks 2, or another phase")
    most = KILLS_A_PHASE if RANDOM in phases else kills
    shares = {name: min(most, kills // len(names) + (index < kills % len(names))) for index, name in enumerate(names)}
    return {name: shares.get(name, 0) for name in ALL_PHASES} | {RANDOM: kills - sum(shares.values())}


def draw_kills(shares: dict[str, int], generator: random.Random, ranks: int) -> list[Strike]:
    """The kills of ranks."""
    drawn: list[Strike] = [phase.draw(generator, ranks, number) for phase in PHASES for number in range(shares[phase.name])]
    drawn += [draw_random_kill(generator, ranks) for _ in range(shares[RANDOM])]
    return drawn


class Rig:
    """One call of the rig: what is tried, in which order, and what came of it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.place = Workplace(arguments.seed, arguments.ranks)
        self.trials: list[Trial] = []
        self.bar = tqdm(unit="fault", file=sys.stderr, dynamic_ncols=True)

    def draw(self, what: str) -> random.Random:
        """A generator of its own for each group, so that one may be left out without changing the others."""
        return random.Random(f"{self.arguments.seed}/{what}")

    def note(self, trial: Trial) -> None:
        self.bar.update()
        self.bar.set_postfix_str(f"{trial.fault}: {trial.detail}"[:80])

    def run(self) -> None:
        """Every group that was asked for, and the trials' problems as they come."""
        groups: dict[str, Callable[[], Sequence[Trial]]] = {
            "kills": self.kills,
            "corruptions": self.corruptions,
            "signals": self.signals,
            "disks": self.disks,
            "numbers": self.numbers,
        }
        for name in self.arguments.only:
            for trial in groups[name]():
                self.trials.append(trial)
                if not trial.survived and not trial.skipped:
                    problem = trial.problem or f"{trial.wrong_bytes} bytes wrong"
                    self.bar.write(f"LOST {trial.fault} ({trial.detail}): {problem}; log {trial.log}", file=sys.stderr)

    def kills(self) -> list[Trial]:
        shares = share_out(self.arguments.kills, self.arguments.phases, self.place.ranks)
        strikes = draw_kills(shares, self.draw("kills"), self.place.ranks)
        self.bar.total = (self.bar.total or 0) + self.arguments.kills
        trials = kill_preprocessing(self.place, self.draw("preprocessing"), shares[PREPROCESSING], self.note)
        for chain in plan_chains(self.place, strikes, self.draw("chains")):
            trials += chain.carry_out(self.note)
        return trials + kill_evaluations(self.place, self.draw("evaluations"), shares[EVALUATION], SHORT_STEPS, self.note)

    def corruptions(self) -> list[Trial]:
        number, started = self.arguments.corruptions, self.arguments.end_to_end
        started = number // 10 if started is None else started
        self.bar.total = (self.bar.total or 0) + number + started
        trials = damage_files(self.place, self.draw("damage"), number, SHORT_STEPS, self.note)
        return trials + damage_newest(self.place, self.draw("newest"), started, SHORT_STEPS, self.note)

    def signals(self) -> list[Trial]:
        draw = self.draw("signals")
        strikes: list[Strike] = [
            KillLauncher(draw.randint(2, EVERY), runner_only=True),
            KillLauncher(draw.randint(2, EVERY), runner_only=False),
        ]
        if self.place.ranks > 1:
            strikes.append(PauseRank(draw.randrange(self.place.ranks), draw.randint(2, EVERY)))
        self.bar.total = (self.bar.total or 0) + len(strikes)
        return [trial for chain in plan_chains(self.place, strikes, draw) for trial in chain.carry_out(self.note)]

    def disks(self) -> list[Trial]:
        self.bar.total = (self.bar.total or 0) + 5
        trials = disk_trials(self.place, SHORT_STEPS, self.note)
        trials.append(left_over_trial(self.place, SHORT_STEPS))
        self.note(trials[-1])
        return trials

    def numbers(self) -> list[Trial]:
        self.bar.total = (self.bar.total or 0) + 1
        trial = not_finite_trial(self.place, self.draw("numbers"), SHORT_STEPS)
        self.note(trial)
        return [trial]


def summary(trials: Sequence[Trial]) -> list[str]:
    """The lines below the table."""
    lines = []
    kills = [trial for trial in trials if "killed" in trial.fault and trial.fault != LAUNCHER_KILLED]
    if kills:
        phases = ", ".join(f"{name} {count}" for name, count in phase_counts(trials).items())
        lines.append(f"killed in: {phases}")
        lines.append(f"{sum(trial.survived for trial in kills)} of {len(kills)} resumed")
    damaged = [trial for trial in trials if trial.fault.endswith("file damaged")]
    if damaged:
        lines.append(f"{sum(trial.survived for trial in damaged)} of {len(damaged)} corruptions found")
    return lines


def as_json(rig: Rig, seconds: float) -> dict[str, Any]:
    """What --json writes."""
    return {
        **made_by(),
        "seed": rig.arguments.seed,
        "machine": {"cores": len(os.sched_getaffinity(0)), "system": platform.platform(), "python": platform.python_version()},
        "seconds": round(seconds, 1),
        "phases": phase_counts(rig.trials),
        "summary": summary(rig.trials),
        "trials": [{**vars(trial), "survived": trial.survived} for trial in rig.trials],
    }


def main() -> int:
    arguments = parse_arguments(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C
    started_at = time.monotonic()
    rig = Rig(arguments)
    keep_logs = True
    try:
        rig.run()
        keep_logs = any(not trial.survived and not trial.skipped for trial in rig.trials)
    except Failure as failure:
        print(f"an undisturbed run failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        keep_logs = False
        return 130
    finally:
        end_all()
        rig.bar.close()
        if not arguments.keep:
            rig.place.clear(keep_logs)
        if keep_logs or arguments.keep:
            print(f"logs: {rig.place.logs}", file=sys.stderr)
    seconds = time.monotonic() - started_at
    found = as_json(rig, seconds)
    print(as_text(rig.trials, markdown=arguments.markdown))
    print()
    print("\n".join([*summary(rig.trials), f"{seconds / 60:.1f} minutes, seed {arguments.seed}, commit {revision_of(found)}"]))
    if arguments.json:
        write_json(arguments.json, found)
    return 1 if keep_logs or not rig.trials else 0


if __name__ == "__main__":
    run_command(main)
