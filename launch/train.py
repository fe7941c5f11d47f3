"""Train a recurrent language model: deepspeed launch/train.py --config configs/irnn_lm.json

The same command again goes on from the newest checkpoint. Ctrl-C saves first.
"""

from __future__ import annotations

from pathlib import Path

from lm1b.command_line import CommandParser, add_config_arguments
from lm1b.config import Config, load_config
from lm1b.errors import run_command


def main() -> None:
    """Train, or say what the training would be."""
    parser = CommandParser(description=__doc__)
    add_config_arguments(parser, Config)
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config, sizes, memory and time, and end")
    parser.add_log_format()
    parser.add_local_rank()
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.set)

    if arguments.dry_run:
        from lm1b.training.dry_run import dry_run

        dry_run(config)
        return
    from lm1b.training.loop import train  # after the config: a misspelt key is answered at once, before torch is loaded

    evaluate = str(Path(__file__).resolve().with_name("evaluate.py"))
    train(config, evaluator=[evaluate, "--run", config.run.directory, "--watch", "--log-format", arguments.log_format])


if __name__ == "__main__":
    run_command(main)
