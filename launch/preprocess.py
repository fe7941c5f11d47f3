"""Corpus -> vocabulary -> token shards: `python launch/preprocess.py --config configs/irnn_lm.json`.

Does nothing where that is done already, and goes on where it was killed. On many machines that share tokens.directory:
`deepspeed --hostfile hostfile launch/preprocess.py --config configs/irnn_lm.json`; the files are the same.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from lm1b.command_line import CommandParser, add_config_arguments
from lm1b.config import SPLITS, Config, load_config
from lm1b.console import say
from lm1b.data.preprocess.preprocess import preprocess
from lm1b.data.tokens.directory import TokenDirectory
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


def as_json(tokens: TokenDirectory) -> dict[str, Any]:
    """The same for `--log-format json`."""
    counts = ("num_tokens", "num_words", "num_sentences", "num_unknown")
    splits = {name: {key: getattr(tokens.split(name), key) for key in counts} for name in SPLITS}
    vocabulary = {"size": tokens.manifest.vocabulary.size, "fingerprint": tokens.fingerprint}
    return {"directory": str(tokens.directory), "vocabulary": vocabulary, "official": tokens.corpus["official"], "splits": splits}


def describe(tokens: TokenDirectory) -> str:
    """A few lines on what is there."""
    vocabulary = tokens.manifest.vocabulary
    spelled = vocabulary.kind == "sentencepiece"
    what = f"pieces of words ({vocabulary.label})" if spelled else "words"
    lines = [f"{tokens.directory}: vocabulary of {vocabulary.size:,} {what}, fingerprint {tokens.fingerprint[:12]}"]
    for name in SPLITS:
        split = tokens.split(name)
        unknown = split.num_unknown / max(1, split.num_words)
        means = "spell" if spelled else "="
        counts = f"{split.num_tokens:>13,} tokens {means} {split.num_words:,} words + {split.num_sentences:,} sentences"
        lines.append(f"  {name:<10} {counts}, {unknown:.2%} of the words unknown")
    if tokens.corpus["official"]:
        lines.append("  the official 1 Billion Word benchmark: every MD5 and every published count is right")
    return "\n".join(lines)


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
        say(describe(tokens), event="tokens", **as_json(tokens))


if __name__ == "__main__":
    run_command(main)
