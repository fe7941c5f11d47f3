"""Exact perplexity of a run's checkpoints: `python launch/evaluate.py --run runs/irnn_lm [--watch]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm1b.command_line import CommandParser, completes, overrides_of
from lm1b.config import Config
from lm1b.console import say
from lm1b.errors import UserError, run_command
from lm1b.evaluation.scoring.overrides import CHANGEABLE, with_overrides


def parse_arguments() -> argparse.Namespace:
    """The command line: which run, which checkpoint, which text, and how."""
    parser = CommandParser(description=__doc__)
    parser.add_run("the run's directory")
    parser.add_argument("--checkpoint", default="latest", help="latest, best (by validation so far) or a step")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", choices=["validation", "test", "train"], default="validation", help="looks at test are counted")
    what.add_argument("--files", nargs="+", type=Path, help="tokenized text files, one sentence a line, instead of a split")
    parser.add_argument(
        "--state", choices=["carry", "reset"], help="carry: kept over sentence ends; reset: sentences alone (default: the run's config)"
    )
    parser.add_argument("--weights", choices=["ema", "raw", "both"], help="averaged, as trained, or both (default: the run's config)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="to compute in (default: the run's config)")
    parser.add_argument("--lanes", type=int, help="pieces of the text, each from zero state, for --state carry (default: the run's config)")
    parser.add_device()
    parser.add_log_format()
    parser.add_local_rank()
    parser.add_argument("--watch", action="store_true", help="score every new checkpoint beside the training, until it has ended")
    override = parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override evaluation.* or tokens.*")
    completes(override, overrides_of(Config, CHANGEABLE))
    return parser.parse_args()


def main() -> None:
    """Score one checkpoint, or every new one beside the training."""
    arguments = parse_arguments()
    if arguments.watch and (arguments.files or arguments.split != "validation" or arguments.checkpoint != "latest"):
        raise UserError("--watch scores every new checkpoint on validation; leave out --checkpoint, --split and --files")

    from lm1b.distributed import agree  # after the arguments: torch takes seconds to load
    from lm1b.evaluation.scoring.evaluator import Evaluator, score_and_say
    from lm1b.evaluation.scoring.ranks import evaluating_ranks
    from lm1b.evaluation.scoring.watch import watch
    from lm1b.evaluation.trained.open import choose_checkpoint
    from lm1b.training.run_folder import RunFolder

    settings = {name: getattr(arguments, name) for name in ("state", "weights", "precision", "lanes")}
    with evaluating_ranks(arguments.device) as ranks:
        config = agree(ranks, lambda: with_overrides(RunFolder(arguments.run).read_config(), arguments.set, **settings))
        if arguments.watch:
            say(f"watching ended: {watch(Evaluator(arguments.run, config, ranks=ranks))}")
        else:
            checkpoint = choose_checkpoint(arguments.run, arguments.checkpoint, ranks)
            split = None if arguments.files else arguments.split
            score_and_say(Evaluator(arguments.run, config, split, arguments.files, ranks=ranks), checkpoint)


if __name__ == "__main__":
    run_command(main)
