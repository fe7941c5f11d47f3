"""What happens to a training on several hosts when one of them is harmed: who says what, how soon all is over, whether it goes on."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm1b.config import load_config
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.files import read_json_lines
from lm1b.training.run_folder import RunFolder
from lm1b.training.run_state import newest_step
from parts.cluster.cluster import Cluster
from parts.cluster.host import Host, are_idle
from parts.harness.corpora import write_corpus
from parts.harness.launching import REPOSITORY

START_SECONDS, RESUME_SECONDS = 120.0, 120.0
STEPS_BEFORE = 25  # a checkpoint lies 5 steps back
ENDLESS = 1_000_000


@dataclass(frozen=True)
class Fault:
    """A harm done to one host of a training, and what the others must say of its rank."""

    name: str
    strike: Callable[[Host], None]
    said: str


DIED = r"rank {rank} \(pid \d+ on {host}\) has died"
OUT_OF_REACH = r"rank {rank} \(pid \d+ on {host}\) has died or cannot be reached"
FAULTS = {
    "killed": Fault("all processes of a host killed", lambda host: host.send(signal.SIGKILL), DIED),
    "off": Fault("host switched off", lambda host: host.power_off(), OUT_OF_REACH),
    "cut": Fault("link cut", lambda host: host.cut(), OUT_OF_REACH),
    "frozen": Fault("host frozen (SIGSTOP)", lambda host: host.send(signal.SIGSTOP), OUT_OF_REACH),
    "slow": Fault("link at a trickle (1 kbit/s)", lambda host: host.slow("1kbit"), OUT_OF_REACH),
}


@dataclass
class Outcome:
    """What became of a fault. said: each host's error lines. seconds: until only the harmed host was at work. launcher: its status."""

    fault: str
    host: str
    said: dict[str, list[str]] = field(default_factory=dict)
    seconds: float | None = None
    launcher: int | None = None
    resumed_at: int | None = None
    problem: str | None = None


def make_run(folder: Path, name: str, **sections: dict[str, Any]) -> Path:
    """A config of a tiny endless training in `folder`, with its corpus and tokens where they are not there yet. -> the file."""
    settings: dict[str, dict[str, Any]] = {
        "run": {"directory": str(folder / name), "seed": 3},
        "corpus": {"kind": "lm1b", "path": str(folder / "corpus")},
        "tokens": {"directory": str(folder / "tokens"), "processes": 1},
        "batches": {"lanes": 12, "steps": 10, "block_tokens": 500},
        "model": {"cell": "lstm", "embedding": 12, "hidden": 24, "projection": 16},
        "softmax": {"samples": 60},
        "training": {"total_steps": ENDLESS, "precision": "fp32", "threads": 1, "log_every": 1, "gap_every": None},
        "checkpoints": {"every": 10, "keep_last": 3},
    }
    for section, values in sections.items():
        settings[section] = {**settings.get(section, {}), **values}
    config = folder / f"{name}.json"
    config.write_text(json.dumps(settings))
    if not (folder / "tokens" / "manifest.json").exists():
        write_corpus(folder / "corpus", seed=1)
        preprocess(load_config(str(config), []), progress=False)
    return config


def train_command(cluster: Cluster, config: Path, *more: str, hosts: list[Host] | None = None) -> list[str]:
    """The launcher's command line. hosts: only these."""
    only = ["--include", "@".join(host.name for host in hosts)] if hosts else []
    return ["deepspeed", "--hostfile", cluster.hostfile, *only, "launch/train.py", "--config", str(config), *more]


class Trial:
    """One training on a cluster that is up, harmed after a few steps."""

    def __init__(self, cluster: Cluster, name: str, limit_seconds: float):
        self.cluster, self.name, self.limit = cluster, name, limit_seconds
        self.config = make_run(cluster.workplace, name)
        self.run = cluster.workplace / name
        self.logs = cluster.workplace / f"{name}_logs"
        self.output = cluster.workplace / f"{name}.output"

    def strike(self, fault: Fault, number: int) -> Outcome:
        """Train on all hosts, harm host `number`, and wait for the others' end."""
        harmed = self.cluster.host(number)
        outcome = Outcome(fault.name, harmed.name)
        others = [host for host in self.cluster.hosts if host is not harmed]
        with self._training() as launched:
            fault.strike(harmed)
            struck_at = time.monotonic()
            ended = are_idle(others, self.limit)
            outcome.seconds = time.monotonic() - struck_at
            outcome.launcher = launched.poll() if harmed.number != 1 else None
        outcome.said = self.errors()
        outcome.problem = self._judge(fault, harmed, others, outcome, ended)
        return outcome

    @contextlib.contextmanager
    def _training(self) -> Generator[subprocess.Popen[str]]:
        """The launcher of a training on all hosts that has made a few steps. Raises RuntimeError where it does not come so far."""
        command = train_command(self.cluster, self.config)
        # Each rank's words in a file: those of a host that is cut off do not come through ssh.
        command[1:1] = ["--enable_each_rank_log", str(self.logs)]
        with open(self.output, "w") as file:
            launched = self.cluster.host(1).start(command, REPOSITORY, stdout=file, stderr=file, start_new_session=True)
            try:
                self._wait(lambda: len(read_json_lines(RunFolder(self.run).metrics)) >= STEPS_BEFORE, launched)
                yield launched
            finally:
                launched.kill()
                launched.wait()

    def go_on(self, outcome: Outcome, hosts: list[Host]) -> None:
        """Train a few steps more on some hosts, launched from the first of them, and note where they began."""
        saved = newest_step(self.run)
        arguments = train_command(self.cluster, self.config, "--set", f"training.total_steps={saved + 5}", hosts=hosts)
        try:
            done = hosts[0].run(arguments, RESUME_SECONDS, REPOSITORY)
        except subprocess.TimeoutExpired as error:
            said = error.output.decode(errors="replace") if isinstance(error.output, bytes) else error.output or ""
            outcome.problem = outcome.problem or f"still at work {RESUME_SECONDS:.0f} s after it was started again: {said[-1500:]}"
            return
        match = re.search(r"going on at step (\d+)", done.stdout)
        outcome.resumed_at = int(match[1]) if match else None
        if done.returncode or not match or int(match[1]) != saved:
            outcome.problem = outcome.problem or f"did not go on at step {saved}, status {done.returncode}: {done.stdout[-1500:]}"

    def errors(self) -> dict[str, list[str]]:
        """The error lines of each rank, by host."""
        found: dict[str, list[str]] = {}
        for number, host in enumerate(self.cluster.hosts):
            files = sorted(self.logs.glob(f"*_rank{number}.log"))
            lines = files[-1].read_text(errors="replace").splitlines() if files else []
            found[host.name] = [line for line in lines if line.startswith("lm1b: error:")]
        return found

    def _wait(self, condition: Callable[[], bool], launched: subprocess.Popen[str]) -> None:
        give_up_at = time.monotonic() + START_SECONDS
        while not condition():
            if time.monotonic() > give_up_at or launched.poll() is not None:
                raise RuntimeError(f"the training did not start: {self.output.read_text()[-3000:]}")
            time.sleep(0.1)

    def _judge(self, fault: Fault, harmed: Host, others: list[Host], outcome: Outcome, ended: bool) -> str | None:
        if not ended:
            left = [f"{host}: {' '.join(process.cmdline())[:120]}" for host in others for process in host.processes()]
            return f"still at work after {self.limit:.0f} s: {'; '.join(left)}"
        pattern = fault.said.format(rank=harmed.number - 1, host=harmed.name)
        for host in others:
            lines = outcome.said[host.name]
            if len(lines) != 1 or not re.search(pattern, lines[0]):
                return f"{host} said {lines}, expected /{pattern}/"
        if outcome.launcher == 0:
            return "the launcher's status is 0"
        return None
