"""A command with several uses, `tools/cluster.py demo`: the first word says which, and only that one's module is imported.

A use is a module with a docstring, which `--help` shows, `add_arguments(parser)` and `run(arguments)`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Use:
    """module: its name. help: one line for the list of uses."""

    module: str
    help: str


def first_word() -> str | None:
    """What the command line begins with. The deepspeed launcher's `--local_rank=N` is taken away: lm1b/launchers.py does without."""
    if sys.argv[1:2] and sys.argv[1].startswith("--local_rank="):
        del sys.argv[1]
    return sys.argv[1] if len(sys.argv) > 1 else None


def run_use(description: str | None, uses: dict[str, Use]) -> int | None:
    """Parse the command line and run the use that it names; its status."""
    chosen = first_word()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices = parser.add_subparsers(required=True, metavar="USE", title="uses (each has a --help of its own)")
    for name, use in uses.items():
        module = importlib.import_module(use.module) if name == chosen else None
        of_use = choices.add_parser(
            name, help=use.help, description=module and module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if module:
            module.add_arguments(of_use)
            of_use.set_defaults(run=module.run)
    arguments = parser.parse_args()
    return arguments.run(arguments)
