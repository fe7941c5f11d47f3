"""A cluster in a box: several hosts on this machine, with a network between them, on which trainings run as on any cluster. Needs root.

    python tools/cluster.py run --hosts 2 --rate 1gbit -- deepspeed launch/train.py --config configs/irnn_news.json
    python tools/cluster.py demo                    # preprocess, train, evaluate on two hosts; three minutes
    python tools/cluster.py faults --hosts 3        # harms hosts of real trainings; ten minutes
    python tools/cluster.py traffic                 # bytes beside the formula, and what overlap hides; ten minutes

Each host has a network interface, processes, /tmp, /dev/shm and HOME of its own and an ssh server; they share one folder. On Debian:
apt-get install iproute2 openssh-server pdsh.
"""

from __future__ import annotations

import os
import sys

from parts.harness.uses import Use, run_use

from lm1b.errors import run_command

USES = {
    "run": Use("parts.cluster.command", "run a command on the first of the hosts"),
    "demo": Use("parts.cluster.demo", "preprocess, train and evaluate, and count what goes over the links"),
    "faults": Use("parts.cluster.faults", "harm hosts of real trainings: do the others say so, and does it go on without them?"),
    "traffic": Use("parts.cluster.step_traffic", "what ranks send in a step beside the formula, and how much of it is hidden"),
}


def main() -> int | None:
    return run_use(__doc__, USES)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_command(main)
