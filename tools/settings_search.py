r"""Which settings learn fastest: exact perplexity after equal CPU time, on the real training step.

    python tools/settings_search.py --config configs/lstm_news.json --cpu-seconds 360 --json out.json \
        --try table_lr_0.5 tables.learning_rate=0.5 --try lanes_32 batches.lanes=32

1. Each trial measures its own step (median CPU time of the first steps) and gets the number of steps that fits the budget, so that
   the schedule ends with it: a setting that makes steps dearer gets fewer of them.
2. At four points of the budget the exact evaluator's scorer gives the validation text's word perplexity, averaged weights, not
   counted in the budget.
3. The clock is this process's CPU time: a machine's other users slow a trial down but do not change its result much.

Resumable: a trial whose line is in the JSON already is not repeated. Tokens must have been preprocessed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from parts.harness.trial import try_settings

from lm1b.config import load_config
from lm1b.errors import run_command
from lm1b.files import read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="for every trial")
    parser.add_argument("--try", dest="trials", action="append", nargs="+", default=[], metavar=("NAME", "a.b=value"))
    parser.add_argument("--cpu-seconds", type=float, default=360.0)
    parser.add_argument("--steps", type=int, help="of each trial instead: where all cost the same, and the machine's speed varies")
    parser.add_argument("--sentences", type=int, default=1500, help="of validation, scored at each point")
    parser.add_argument("--json", required=True, help="results, one a trial; those that it holds are not repeated")
    arguments = parser.parse_args()
    path = Path(arguments.json)
    results = read_json(path) if path.exists() else {}
    for name, *overrides in arguments.trials:
        if name in results:
            continue
        print(f"{name}: {' '.join(overrides)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            settings = [*arguments.set, *overrides, f"run.directory={json.dumps(folder)}", "training.threads=1"]
            result = try_settings(load_config(arguments.config, settings), arguments.cpu_seconds, arguments.steps, arguments.sentences)
        results[name] = {"config": arguments.config, "set": [*arguments.set, *overrides], "cpu_seconds": arguments.cpu_seconds, **result}
        write_json(path, results)


if __name__ == "__main__":
    run_command(main)
