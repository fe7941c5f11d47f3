"""One cell on one of the papers' tasks: python launch/sequence_task.py --config configs/tasks/adding_irnn.json

Searches the learning rate where the config says so, trains every seed with the best one, and looks at test once a run, at its end. The
same command again goes on where it was, and trains nothing twice. Several configs are done one after another.

So started, runs go side by side, each in a process of its own. Under a launcher of several ranks every run is trained by all of them
together, under DeepSpeed, each rank with an equal share of every batch:

    deepspeed --num_gpus 2 launch/sequence_task.py --config configs/tasks/adding_irnn.json

The results are the same but for float32's rounding, and what one way has begun the other goes on with.
"""

from __future__ import annotations

from lm1b.command_line import CommandParser, add_config_arguments
from lm1b.errors import UserError, run_command
from lm1b.launchers import here
from lm1b.sequence_tasks.config import TaskExperiment, load_task_experiment
from lm1b.workers import Workers, usable_cores


def main() -> None:
    """Search and train, one config after another, and print what came out."""
    parser = CommandParser(description=__doc__)
    add_config_arguments(parser, TaskExperiment, several=True)
    parser.add_argument("--processes", type=int, help="runs side by side; one a core where not given")
    parser.add_local_rank()
    arguments = parser.parse_args()
    configs = [load_task_experiment(path, arguments.set) for path in arguments.config]
    if arguments.processes and here().size > 1:
        raise UserError("--processes: several ranks train one run together; leave it out, or start without a launcher")
    if arguments.processes is not None and arguments.processes < 1:
        raise UserError(f"--processes must be 1 or more, found {arguments.processes}")
    processes = 1 if here().size > 1 else arguments.processes or usable_cores()

    # After the configs: a misspelt key is answered at once, before torch is loaded.
    from lm1b.sequence_tasks.experiment.cell_runs import CellRuns
    from lm1b.sequence_tasks.experiment.provenance import neutral_command
    from lm1b.sequence_tasks.experiment.ranks import ranks_of

    def say(line: str) -> None:
        print(line, flush=True)

    with ranks_of(configs) as ranks, Workers(processes, if_killed="the same command goes on from there") as workers:
        commands = [neutral_command(path, arguments.set) for path in arguments.config]
        # All of them before the first one trains: a folder that holds something else is refused at once.
        cells = [CellRuns(config, workers, say, ranks, command) for config, command in zip(configs, commands, strict=True)]
        for cell in cells:
            result = cell.run()
            if ranks.is_first:
                say(f"{cell.folder}: learning rate {result['learning_rate']:g}, error on test {result['summary']}")


if __name__ == "__main__":
    run_command(main)
