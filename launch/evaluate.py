"""Exact perplexity of a run's checkpoints: `python launch/evaluate.py --run runs/irnn_lm [--watch]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm1b.command_line import CommandParser, completes, folders, overrides_of
from lm1b.config import Config, override_config
from lm1b.console import say
from lm1b.errors import UserError, run_command

CHANGEABLE = ("evaluation", "tokens")  # sections that --set changes


def parse_arguments() -> argparse.Namespace:
    """The command line: which run, which checkpoint, which text, and how."""
    parser = CommandParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    completes(parser.add_argument("--run", type=Path, required=True, help="the run's directory"), folders)
    parser.add_argument("--checkpoint", default="latest", help="latest, best (by validation so far) or a step")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=["validation", "test", "train"], default="validation", help="looks at test are counted")
    what.add_argument("--files", nargs="+", type=Path, help="tokenized text files, one sentence a line, instead of a split")
    parser.add_argument("--state", choices=["carry", "reset"], help="of the run's config where not given, like the next three")
    parser.add_argument("--weights", choices=["ema", "raw", "both"])
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--lanes", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], help="a GPU if there is one where not given")
    parser.add_log_format()
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    parser.add_argument("--watch", action="store_true", help="score every new checkpoint beside the training, until it has ended")
    override = parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override evaluation.* or tokens.*")
    completes(override, overrides_of(Config, CHANGEABLE))
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.watch and (arguments.files or arguments.split != "validation" or arguments.checkpoint != "latest"):
        raise UserError("--watch scores every new checkpoint on validation; leave out --checkpoint, --split and --files")
    from lm1b.evaluation.trained import choose_checkpoint
    from lm1b.evaluation.watcher import Evaluator, evaluating_ranks, watch
    from lm1b.training.evaluations import Evaluation, count_test_looks
    from lm1b.training.run_folder import RunFolder

    def tell(evaluation: Evaluation) -> None:
        say(evaluation.in_words(), event="evaluation", step=evaluation.step, metrics=evaluation.as_line())

    config = _with_overrides(RunFolder(arguments.run).read_config(), arguments)
    with evaluating_ranks(arguments.device) as ranks:
        if arguments.watch:
            if ranks.size > 1:
                raise UserError("--watch runs as one process; start it with python, not with a launcher of ranks")
            evaluator = Evaluator(arguments.run, config, ranks=ranks)
            say(f"watching ended: {watch(arguments.run, evaluator, tell)}")
            return 0
        checkpoint = choose_checkpoint(arguments.run, arguments.checkpoint, ranks)
        evaluator = Evaluator(arguments.run, config, None if arguments.files else arguments.split, arguments.files, ranks=ranks)
        found = evaluator.score(checkpoint)
        if ranks.is_first:
            for evaluation in found:
                tell(evaluation)
            if evaluator.text.is_test:
                looks = count_test_looks(evaluator.folder.read_evaluations())
                say(f"looks at test by this run so far: {looks}; choose nothing by them")
    return 0


def _with_overrides(config: Config, arguments: argparse.Namespace) -> Config:
    """The run's config with what the command line asks for. Raises UserError for what a checkpoint has fixed."""
    for override in arguments.set:
        if override.split(".")[0] not in CHANGEABLE:
            raise UserError(f"--set {override}: evaluation changes evaluation.* and tokens.* alone; the rest is as the run was trained")
    names = ("state", "weights", "precision", "lanes")
    asked = [f"evaluation.{name}={getattr(arguments, name)}" for name in names if getattr(arguments, name) is not None]
    return override_config(config, [*arguments.set, *asked])


if __name__ == "__main__":
    run_command(main)
