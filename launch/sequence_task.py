"""One cell on one of the papers' tasks: python launch/sequence_task.py --config configs/tasks/adding_150_irnn.json

Searches the learning rate where the config says so, trains every seed with the best one, and looks at test once a run, at its end. The same
command again goes on where it was, and trains nothing twice. Several configs are done one after another.
"""

from __future__ import annotations

import argparse

from lm1b.errors import run_command
from lm1b.sequence_tasks.config import load_task_experiment
from lm1b.workers import Workers, usable_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, help="JSON files, one a cell and task")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="override one field of all; may be repeated")
    parser.add_argument("--processes", type=int, help="runs side by side; one a core where not given")
    arguments = parser.parse_args()
    configs = [load_task_experiment(path, arguments.set) for path in arguments.config]

    # After the configs: a misspelt key is answered at once, before torch is loaded.
    from lm1b.sequence_tasks.provenance import neutral_command
    from lm1b.sequence_tasks.search import Experiment

    with Workers(arguments.processes or usable_cores(), if_killed="the same command goes on from there") as workers:
        for path, config in zip(arguments.config, configs, strict=True):
            command = neutral_command("launch/sequence_task.py", path, arguments.set)
            result = Experiment(config, workers, lambda line: print(line, flush=True), command).run()
            print(f"{config.run.directory}: learning rate {result['learning_rate']:g}, error on test {result['summary']}", flush=True)


if __name__ == "__main__":
    run_command(main)
