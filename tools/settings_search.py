"""Which settings learn fastest: exact perplexity after equal CPU time, on the real training step.

    python tools/settings_search.py --config configs/lstm_news.json --cpu-seconds 360 --json out.json \
        base --try table_lr_0.5 tables.learning_rate=0.5 --try lanes_32 batches.lanes=32

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
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from learning.scored import first_sentences, word_perplexity

from lm1b.config import Config, load_config
from lm1b.errors import run_command
from lm1b.evaluation.scoring.texts import text_of_split
from lm1b.files import read_json, write_json
from lm1b.training.engine.process_group import start_ranks, stop_ranks
from lm1b.training.run import Run, prepare_process

POINTS = (0.25, 0.5, 0.75, 1.0)
STEPS_TIMED = 40


def try_settings(
    config: Config, cpu_seconds: float, num_steps: int | None, num_sentences: int, shares: tuple[float, ...] = POINTS
) -> dict[str, Any]:
    """Train for `cpu_seconds`, or num_steps, and score after these shares of it.

    -> steps, words, seconds a step, and the curve [(CPU seconds, word perplexity)].
    """
    ranks = start_ranks()
    prepare_process(config, ranks)
    run = Run(config, ranks)
    text = first_sentences(text_of_split(run.tokens, "validation"), num_sentences)
    step, times, used, curve = run.training_step, [], 0.0, []
    step.total_updates = 10**6  # the first steps are in the warm-up, or at full rate
    total = STEPS_TIMED
    points = list(shares)
    while step.step < total:
        started_at = time.process_time()
        step.run()
        times.append(time.process_time() - started_at)
        used += times[-1]
        if step.step == STEPS_TIMED:
            total = step.total_updates = num_steps or max(STEPS_TIMED + 1, round(cpu_seconds / statistics.median(times)))
        if total > STEPS_TIMED and step.step >= points[0] * total:
            points.pop(0)
            curve.append((round(used, 1), round(word_perplexity(run, text, step.engine.dtype), 2)))
            print(f"  {used:7.1f} CPU s  step {step.step:6d} of {total}  word perplexity {curve[-1][1]}", flush=True)
    run.close()
    del run, step
    stop_ranks()
    return {
        "steps": total,
        "words": total * config.batches.lanes * config.batches.steps,
        "step_seconds": statistics.median(times),
        "curve": curve,
    }


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
