"""Harms hosts of real trainings on a cluster in a box: what the others say, how soon all is over, and that it goes on without the host.

    python tools/cluster.py faults --hosts 3        # about ten minutes; needs root

Exit status 0 only where every host that was left has named the harmed one in time, and the run went on from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from lm1b.errors import UserError
from lm1b.files import write_json
from lm1b.markdown import markdown_table
from lm1b.peers import ANSWER_SECONDS
from parts.cluster.cluster import Cluster
from parts.cluster.harm import FAULTS, Outcome, Trial
from parts.harness.results import check_can_write, made_by

SPARE_SECONDS = 15.0  # the launcher's own polling, and a machine with more hosts than cores
HEADERS = ["fault", "host", "the others have named it and ended", "within (s)", "status of the launcher", "gone on without it"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--hosts", type=int, default=3, help="how many (3)")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--on", nargs="+", type=int, default=[2, 1], metavar="N", help="hosts to harm (2, then 1, the launcher's)")
    parser.add_argument("--time-limit", type=float, default=10.0, help="LM1B_TIMEOUT_SECONDS of the trainings (10)")
    parser.add_argument("--json", type=Path, help="write every trial to this file")


def run(arguments: argparse.Namespace) -> int:
    """1 where anything was not as it should be. Raises UserError for arguments that cannot be."""
    if arguments.hosts < 2:
        raise UserError(f"--hosts {arguments.hosts}: expected at least 2, or nobody is left when one is harmed")
    if strangers := [number for number in arguments.on if not 1 <= number <= arguments.hosts]:
        raise UserError(f"--on {' '.join(map(str, strangers))}: expected hosts from 1 to {arguments.hosts} (--hosts)")
    check_can_write("--json", arguments.json)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that its folder is removed
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="lm1b-cluster-") as folder:
        for number in arguments.on:
            for name in arguments.only:
                began_at = time.monotonic()
                outcomes.append(_try(Path(folder), name, number, arguments))
                what = outcomes[-1].problem or "as it should be"
                print(f"{FAULTS[name].name}, node{number}: {what} ({time.monotonic() - began_at:.0f} s)", file=sys.stderr, flush=True)
                if arguments.json:
                    write_json(arguments.json, {**made_by(), "trials": [asdict(outcome) for outcome in outcomes]})
    print(table(outcomes))
    return 1 if any(outcome.problem for outcome in outcomes) else 0


def _try(folder: Path, name: str, number: int, arguments: argparse.Namespace) -> Outcome:
    """One fault to one host of a new cluster."""
    fault = FAULTS[name]
    limit = arguments.time_limit + ANSWER_SECONDS + SPARE_SECONDS
    with Cluster(arguments.hosts, workplace=folder, variables={"LM1B_TIMEOUT_SECONDS": str(arguments.time_limit)}) as cluster:
        trial = Trial(cluster, f"{name}_{number}", limit)
        try:
            outcome = trial.strike(fault, number)
            with contextlib.suppress(ProcessLookupError):
                cluster.host(number).power_off()  # its frozen processes would hold the run directory's lock
            trial.go_on(outcome, [host for host in cluster.hosts if host.number != number])
        except RuntimeError as error:
            outcome = Outcome(fault.name, f"node{number}", problem=str(error))
    return outcome


def table(outcomes: list[Outcome]) -> str:
    """In Markdown."""
    rows = []
    for outcome in outcomes:
        others = [said for host, said in outcome.said.items() if host != outcome.host]
        named = f"{sum(outcome.host in ' '.join(said) for said in others)} of {len(others)}"
        seconds = "" if outcome.seconds is None else f"{outcome.seconds:.1f}"
        launcher = "" if outcome.launcher is None else str(outcome.launcher)
        gone_on = "no" if outcome.resumed_at is None else f"from step {outcome.resumed_at}"
        rows.append([outcome.fault, outcome.host, named, seconds, launcher, gone_on])
    return markdown_table(HEADERS, rows)
