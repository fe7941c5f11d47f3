"""Train a recurrent language model: deepspeed launch/train.py --config configs/irnn_lm.json

The same command again goes on from the newest checkpoint. Ctrl-C saves first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lm1b.config import Config, load_config
from lm1b.errors import run_command
from lm1b.explain import add_config_arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser, Config)
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher passes it
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)

    from lm1b.training.loop import train  # after the config: a misspelt key is answered at once, before torch is loaded

    evaluate = str(Path(__file__).resolve().with_name("evaluate.py"))
    train(config, evaluator=[evaluate, "--run", config.run.directory, "--watch"])


if __name__ == "__main__":
    run_command(main)
