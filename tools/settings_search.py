r"""Which settings learn fastest: exact perplexity after equal CPU time, on the real training step.

    python tools/settings_search.py --config configs/lstm_news.json --cpu-seconds 360 --json out.json \
        --try table_lr_0.5 tables.learning_rate=0.5 --try lanes_32 batches.lanes=32

1. Each trial measures its own step (median CPU time of the first steps) and gets the number of steps that fits the budget, so that
   the schedule ends with it: a setting that makes steps dearer gets fewer of them.
2. At four points of the budget the exact evaluator's scorer gives the validation text's word perplexity, averaged weights, not
   counted in the budget. A budget of seconds must have 160 steps, or the first point would come while they are still timed.
3. The clock is this process's CPU time: a machine's other users slow a trial down but do not change its result much.

Resumable: a trial that the JSON holds is not repeated; one of its name with other settings or another budget is refused. Tokens must have
been preprocessed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from parts.harness.results import check_can_write, made_by
from parts.harness.scored_training import try_settings

from lm1b.config import load_config
from lm1b.errors import UserError, run_command
from lm1b.files import read_json, write_json


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises UserError."""
    for name in ("steps", "sentences"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} (={value}) must be at least 1")
    names = [name for name, *_ in arguments.trials]
    if len(set(names)) < len(names):
        raise UserError(f"--try {' '.join(names)}: two have the same name; give each its own")
    check_can_write("--json", arguments.json)


def check_same(name: str, kept: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise UserError where a trial that the JSON holds was another one. What an older file does not say is not compared."""
    different = [key for key, value in asked.items() if kept.get(key, value) != value]
    if different:
        raise UserError(f"--try {name}: the JSON holds one of this name, but with other {', '.join(different)}; give it another name")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="for every trial; training.threads is 1 unless set")
    parser.add_argument("--try", dest="trials", action="append", nargs="+", required=True, metavar=("NAME", "a.b=value"))
    parser.add_argument("--cpu-seconds", type=float, default=360.0)
    parser.add_argument("--steps", type=int, help="of each trial instead: where all cost the same, and the machine's speed varies")
    parser.add_argument("--sentences", type=int, default=1500, help="of validation, scored at each point")
    parser.add_argument("--json", type=Path, required=True, help="results, one a trial; those that it holds are not repeated")
    arguments = parser.parse_args()
    check_arguments(arguments)
    results = read_json(arguments.json) if arguments.json.exists() else {}
    budget = {"steps": arguments.steps} if arguments.steps else {"cpu_seconds": arguments.cpu_seconds}
    for name, *overrides in arguments.trials:
        asked = {"config": arguments.config, "set": [*arguments.set, *overrides], "sentences": arguments.sentences, **budget}
        if name in results:
            check_same(name, results[name], asked)
            continue
        print(f"{name}: {' '.join(overrides)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            settings = ["training.threads=1", *asked["set"], f"run.directory={json.dumps(folder)}"]
            config = load_config(arguments.config, settings)
            found = try_settings(config, arguments.sentences, cpu_seconds=arguments.cpu_seconds, num_steps=arguments.steps)
        results[name] = {**made_by(), **asked, **found}
        write_json(arguments.json, results)


if __name__ == "__main__":
    run_command(main)
