"""The parser that all commands share: `--log-format` where they take it, and completion in the shell (tools/completion.sh).

Completion runs the command up to `parse_args` with `_ARGCOMPLETE` set (argcomplete's protocol), so a command must import nothing slow
before that.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lm1b.console import is_json, say_error, use_log_format
from lm1b.explain import explain, field_paths, values_of
from lm1b.strict import Section

Completer = Callable[..., Iterable[str]]


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The description as it was written, and every default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False, "", []) else super()._get_help_string(action)


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that completes, and whose own errors come in the form that `--log-format` asks for."""

    def __init__(self, description: str | None) -> None:
        """description: the command's docstring."""
        super().__init__(description=description, formatter_class=_Help)

    def add_log_format(self) -> None:
        """`--log-format text|json`: see console.py."""
        self.add_argument(
            "--log-format",
            choices=["text", "json"],
            default="text",
            help="json: every line on stdout is an object with time, level, event, step, metrics or message",
        )

    def add_run(self, help: str) -> None:
        """`--run FOLDER`, completed."""
        completes(self.add_argument("--run", type=Path, required=True, metavar="FOLDER", help=help), folders)

    def add_checkpoint(self) -> None:
        """`--checkpoint` and `--weights`: which of a run's models."""
        self.add_argument("--checkpoint", default="latest", help="latest, best (by validation so far) or a step")
        self.add_argument("--weights", choices=["ema", "raw"], default="ema", help="averaged weights, or those as trained")

    def add_device(self) -> None:
        """`--device`: where to compute."""
        self.add_argument("--device", choices=["cpu", "cuda"], help="a GPU if there is one where not given")

    def add_local_rank(self) -> None:
        """What the deepspeed launcher passes; launchers.py finds the ranks without it."""
        self.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does; from here on the process says everything in the form asked for."""
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self, always_complete_options="long")
        words = sys.argv[1:] if args is None else list(args)
        if "--log-format" in self._option_string_actions and _asks_for_json(words):
            use_log_format("json")  # before anything is found wrong
        found = super().parse_args(args, namespace)
        if hasattr(found, "log_format"):
            use_log_format(found.log_format)
        return found

    def error(self, message: str) -> NoReturn:
        """A command line that is wrong: usage and one line, status 2."""
        if is_json():
            say_error(message, 2)
            sys.exit(2)
        super().error(message)


def _asks_for_json(words: Sequence[str]) -> bool:
    return "--log-format=json" in words or any(word == "--log-format" and after == "json" for word, after in itertools.pairwise(words))


def completes(action: argparse.Action, completer: Completer) -> None:
    """completer: called by argcomplete with `prefix`, what has been typed of this word, and more keywords; gives whole words."""
    action.completer = completer  # type: ignore[attr-defined]


def folders(prefix: str, **others: Any) -> Iterable[str]:
    """Completer: folders."""
    from argcomplete.completers import DirectoriesCompleter

    return DirectoriesCompleter()(prefix, **others)


def json_files(prefix: str, **others: Any) -> Iterable[str]:
    """Completer: JSON files and the folders on the way there."""
    from argcomplete.completers import FilesCompleter

    return FilesCompleter(("json",))(prefix, **others)


def overrides_of(model: type[Section], sections: Sequence[str] = ()) -> Completer:
    """Completer of `--set`: sections first, then their fields, then values where there are only some.

    sections: those that may be set; all where empty.
    """

    def complete(prefix: str, **_: Any) -> Iterable[str]:
        path, equals, _value = prefix.partition("=")
        if equals:
            return [f"{path}={value}" for value in values_of(model, path)]
        paths = [found for found in field_paths(model) if not sections or found.split(".")[0] in sections]
        return _next_step(paths, prefix, end="=")

    return complete


def fields_of(model: type[Section]) -> Completer:
    """Completer of `--explain`: sections, then their fields."""

    def complete(prefix: str, **_: Any) -> Iterable[str]:
        return _next_step(field_paths(model), prefix, end="")

    return complete


def _next_step(paths: Sequence[str], prefix: str, end: str) -> list[str]:
    """Of the paths that begin so, each up to its next dot, or whole with `end`. (tools/completion.sh adds no space behind a dot.)"""
    found = []
    for path in paths:
        if path.startswith(prefix):
            step, dot, _ = path[len(prefix) :].partition(".")
            found.append(f"{prefix}{step}{dot or end}")
    return list(dict.fromkeys(found))


class Explain(argparse.Action):
    """`--explain [FIELD]`: print the page and end."""

    def __init__(self, *arguments: Any, model: type[Section], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._model = model

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """Raises UserError for a field that is not there."""
        print(explain(self._model, values or ""))
        parser.exit()


def add_config_arguments(parser: CommandParser, model: type[Section], *, several: bool = False) -> None:
    """`--config`, `--set` and `--explain`, alike for every command that takes a config of this kind. several: one or more files."""
    files = "+" if several else None
    config = parser.add_argument("--config", required=True, nargs=files, metavar="FILE", help="JSON, one experiment a file")
    override = parser.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="override one field; may be repeated")
    action: Any = functools.partial(Explain, model=model)
    meaning = "print what a field or a section means, and end"
    explaining = parser.add_argument("--explain", action=action, nargs="?", metavar="FIELD", help=meaning)
    for argument, completer in ((config, json_files), (override, overrides_of(model)), (explaining, fields_of(model))):
        completes(argument, completer)
