"""Corpus -> vocabulary -> token shards: `python launch/preprocess.py --config configs/irnn_lm.json`.

Does nothing where that is done already, and goes on where it was killed. On many machines that share tokens.directory:
`deepspeed --hostfile hostfile launch/preprocess.py --config configs/irnn_lm.json`; the files are the same.
"""

from __future__ import annotations

import argparse
import sys

from lm1b.command_line import CommandParser, add_config_arguments
from lm1b.config import Config, load_config
from lm1b.console import say
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.data.tokens.directory import TokenDirectory
from lm1b.data.tokens.summary import summary_as_json, summary_in_words
from lm1b.errors import run_command
from lm1b.launchers import here


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line: which corpus, and whether to verify what is there."""
    parser = CommandParser(description=__doc__)
    add_config_arguments(parser, Config)
    parser.add_argument(
        "--verify", action="store_true", help="also check the SHA-256 of the vocabulary and of every shard, whatever was verified before"
    )
    parser.add_log_format()
    parser.add_local_rank()
    return parser.parse_args(arguments)


def run(config: Config) -> TokenDirectory | None:
    """Preprocess, alone or as one of the ranks that a launcher has started. None on all ranks but the first."""
    if here().size == 1:
        return preprocess(config)
    from lm1b.training.engine.process_group import plain_ranks  # loads torch, which a process on its own does without
    from lm1b.training.same_everywhere import check_program

    with plain_ranks() as ranks:
        check_program(ranks, config)
        tokens = preprocess(config, ranks=ranks)
        return tokens if ranks.is_first else None


def main() -> None:
    """Make the token directory where it is not there yet, and describe it."""
    arguments = parse_arguments(sys.argv[1:])
    tokens = run(load_config(arguments.config, arguments.set))
    if tokens is not None:
        if arguments.verify:
            tokens.verify()
        say(summary_in_words(tokens), event="tokens", **summary_as_json(tokens))


if __name__ == "__main__":
    run_command(main)
