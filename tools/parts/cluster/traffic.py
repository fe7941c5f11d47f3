"""What goes over the hosts' links, from their interfaces' own counters: in all, and a step of a training."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from lm1b.files import read_json_lines
from parts.cluster.cluster import Cluster
from parts.cluster.host import Traffic

POLL_SECONDS = 0.05


def traffic_table(cluster: Cluster) -> list[str]:
    """A line for each host: what its link has carried so far."""
    lines = [f"{'host':<8}{'sent MB':>12}{'received MB':>14}"]
    for host, traffic in zip(cluster.hosts, cluster.traffic(), strict=True):
        lines.append(f"{host.name:<8}{traffic.sent / 1e6:>12.3f}{traffic.received / 1e6:>14.3f}")
    return lines


@dataclass(frozen=True)
class StepTraffic:
    """Bytes that each host's link carried between two steps of a training, and how many steps and seconds that were."""

    first_step: int
    last_step: int
    seconds: float
    hosts: list[Traffic]

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step

    def rows(self, names: list[str], expected_bytes: list[float]) -> list[str]:
        """A table's lines. expected_bytes: what each host should send a step, by a formula."""
        header = f"{'host':<8}{'sent bytes/step':>18}{'received bytes/step':>22}{'sent Mbit/s':>14}{'by the formula':>18}{'off by':>9}"
        lines = [f"between steps {self.first_step} and {self.last_step}, {self.seconds / max(1, self.steps) * 1000:.1f} ms a step", header]
        for name, traffic, expected in zip(names, self.hosts, expected_bytes, strict=True):
            sent, received = traffic.sent / self.steps, traffic.received / self.steps
            measured = f"{name:<8}{sent:>18,.0f}{received:>22,.0f}{traffic.sent * 8 / 1e6 / self.seconds:>14.1f}"
            lines.append(f"{measured}{expected:>18,.0f}{sent / expected - 1:>+9.1%}")
        return lines


class StepMeter:
    """Measures beside a training: reads the counters when `metrics.jsonl` of its run comes to one step, and to another.

    As exact as a step is short against the distance of the two: the line of a step is written at its end.

        with StepMeter(cluster, RunFolder(run).metrics, 20, 180) as meter:
            cluster.run([...])
        print(meter.result)

    The run must log every step (`training.log_every` 1).
    """

    def __init__(self, cluster: Cluster, metrics: Path, first_step: int, last_step: int):
        self._cluster, self._metrics, self._wanted = cluster, metrics, (first_step, last_step)
        self._seen: list[tuple[int, float, list[Traffic]]] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> StepMeter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    @property
    def result(self) -> StepTraffic | None:
        """None where the training did not come so far."""
        if len(self._seen) < 2:
            return None
        (first, began, before), (last, ended, after) = self._seen
        return StepTraffic(first, last, ended - began, [late - early for early, late in zip(before, after, strict=True)])

    def _watch(self) -> None:
        while len(self._seen) < 2 and not self._enough.wait(POLL_SECONDS):
            step = self._newest_step()
            if step >= self._wanted[len(self._seen)]:
                self._seen.append((step, time.monotonic(), self._cluster.traffic()))

    def _newest_step(self) -> int:
        lines = read_json_lines(self._metrics) if self._metrics.exists() else []
        return int(lines[-1].get("step", -1)) if lines else -1
