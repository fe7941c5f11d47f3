"""Train until it is done, whatever happens: starts the training command again where it has died, with back-off.

    python tools/supervise.py -- deepspeed --num_gpus 2 launch/train.py --config configs/irnn_lm.json
    python tools/supervise.py --run runs/irnn_lm --stop     # SIGTERM to the run's ranks on this host; waits until they have saved
    python tools/supervise.py --run runs/irnn_lm --state    # finished, running, stopped, dead or none

When the command ends, the run directory is asked what became of it, not the status: a launcher's status says little.
Exit status: 0 finished, 1 given up, 2 a mistake that the user must mend, 3 stopped on request. Ctrl-C and SIGTERM stop the run.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from lm1b.config import Config, load_config
from lm1b.errors import UserError, run_command
from lm1b.training.run_state import endings, newest_step, run_state, send_to_ranks, training_ranks

POLL_SECONDS = 0.5
SAME_SIGNAL_SECONDS = 5.0
FINISHED, GAVE_UP, MISTAKE, STOPPED = 0, 1, 2, 3


def say(text: str) -> None:
    print(f"supervisor: {text}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="the run directory; without it, that of the command's --config and --set")
    parser.add_argument("--first-wait", type=float, default=5.0, metavar="SECONDS", help="before the first new start; doubled each time")
    parser.add_argument("--longest-wait", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--tries", type=int, default=10, help="starts in a row without a newer checkpoint before it gives up")
    parser.add_argument("--patience", type=float, default=300.0, metavar="SECONDS", help="for ranks that outlive the command; then killed")
    parser.add_argument("--state", action="store_true", help="print the run's state and end")
    parser.add_argument("--stop", action="store_true", help="stop the run in order and wait for its end")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the training command")
    arguments = parser.parse_args()
    arguments.command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    return arguments


def config_of(command: list[str]) -> Config | None:
    """The config that a training command names by --config and --set; None where it names none. Raises UserError."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    options.add_argument("--config")
    options.add_argument("--set", action="append", default=[])
    found, _ = options.parse_known_args(command)
    return load_config(found.config, found.set) if found.config else None


class Supervisor:
    """Starts `command` again and again until the run in `directory` has finished or must not go on."""

    def __init__(self, command: list[str], directory: Path, config: Config | None, arguments: argparse.Namespace):
        self.command, self.directory, self.config, self.arguments = command, directory, config, arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.asked_at: float | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stop())

    def stop(self) -> None:
        """Ask the ranks to save and end; asked again after a few seconds: to end at once."""
        if self.asked_at is not None and time.monotonic() - self.asked_at < SAME_SIGNAL_SECONDS:
            return
        self.asked_at = time.monotonic()
        if self.process is None:
            return
        reached = send_to_ranks(self.directory, signal.SIGTERM)
        if reached:
            say(f"asked {len(reached)} ranks to save and end")
        elif self.process.poll() is None:  # ranks on other hosts, or none yet: the launcher reaches them
            self.process.terminate()

    def run(self) -> int:
        """The supervisor's exit status."""
        failures, best = 0, newest_step(self.directory)
        while True:
            ended_before = len(endings(self.directory))
            status = self._attempt()
            state = run_state(self.directory, self.config)
            if state == "finished":
                say("the training has finished")
                return FINISHED
            if status == MISTAKE:
                return MISTAKE
            if self.asked_at is not None or endings(self.directory)[ended_before:] == ["stopped"]:
                say("the training has been stopped on request; the same command goes on")
                return STOPPED
            newest = newest_step(self.directory)
            failures = 1 if newest > best else failures + 1
            best = max(best, newest)
            if failures >= self.arguments.tries:
                say(f"{failures} starts in a row have come to no newer checkpoint than step {best}: given up")
                return GAVE_UP
            wait = min(self.arguments.first_wait * 2 ** (failures - 1), self.arguments.longest_wait)
            say(f"the training has ended before its end (state {state}, status {status}); starting it again in {wait:.0f} s")
            self._sleep(wait)
            if self.asked_at is not None:
                return STOPPED

    def _attempt(self) -> int:
        """Run the command once, to the end of its last process here. Its status."""
        # A process group of its own: Ctrl-C is for the supervisor, which passes it on to the ranks alone.
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, process_group=0)
        while self.process.poll() is None:
            self._sleep(POLL_SECONDS)
        give_up_at = time.monotonic() + self.arguments.patience
        while left := self._left_over():
            if time.monotonic() > give_up_at:
                say(f"{len(left)} processes have outlived the command by {self.arguments.patience:.0f} s: killed")
                for process in left:
                    process.kill()
            self._sleep(POLL_SECONDS)
        status, self.process = self.process.returncode, None
        return status

    def _left_over(self) -> list[psutil.Process]:
        """Living processes of the command's group, and ranks that the run directory names."""
        assert self.process is not None
        pids = {member.pid for member in training_ranks(self.directory) if member.condition() in ("alive", "stopped")}
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid in pids or (os.getpgid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE):
                    found.append(process)
            except (psutil.Error, ProcessLookupError, PermissionError):
                continue
        return found

    def _sleep(self, seconds: float) -> None:
        """Wait; a signal that asks for a stop ends the waiting between two starts."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not (self.process is None and self.asked_at is not None):
            time.sleep(min(left, POLL_SECONDS))


def stop_run(directory: Path) -> int:
    """Stop a run that somebody else has started, and wait until its ranks here have ended. Ranks that are still starting are waited for."""
    while run_state(directory) == "running" and all(member.condition() == "gone" for member in training_ranks(directory)):
        time.sleep(POLL_SECONDS)
    reached = send_to_ranks(directory, signal.SIGTERM)
    if not reached and run_state(directory) == "running":
        hosts = ", ".join(sorted({member.host for member in training_ranks(directory)}))
        raise UserError(f"{directory}: its ranks cannot be reached from this host; run this on one of: {hosts}")
    while any(member.condition() in ("alive", "stopped") for member in reached):
        time.sleep(POLL_SECONDS)
    print(run_state(directory))
    return 0


def main() -> int:
    arguments = parse_arguments()
    config = config_of(arguments.command)
    if arguments.run is None and config is None:
        raise UserError("which run? give --run DIRECTORY, or a command with --config")
    directory = Path(arguments.run or (config.run.directory if config else ""))
    if arguments.state:
        print(run_state(directory, config))
        return 0
    if arguments.stop:
        return stop_run(directory)
    if not arguments.command:
        raise UserError("nothing to supervise: put -- and the training command at the end")
    if run_state(directory, config) == "running":
        raise UserError(f"{directory}: a training is at work here already; stop it first: python {sys.argv[0]} --run {directory} --stop")
    return Supervisor(arguments.command, directory, config, arguments).run()


if __name__ == "__main__":
    run_command(main)
