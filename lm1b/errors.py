"""What a user's mistake looks like: one line, exit status 2, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from lm1b.console import is_json, say_error


class UserError(ValueError):
    """A mistake that the user can mend. Its text is one line: what is wrong, what was expected, what to do."""


def describe_os_error(error: OSError) -> str:
    """A full disk, a missing right or file, in one line."""
    return f"{error.filename or 'file system'}: {error.strerror or error}"


def in_one_line(error: BaseException, longest: int = 500) -> str:
    """The kind of an error and what it says, cut at so many letters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]


def exit_with(message: str, status: int) -> NoReturn:
    """Print `message` as one line on stderr and exit with `status`. Mistakes that all ranks share are said by the first alone."""
    from lm1b.launchers import here  # which raises UserError, so it imports this module

    try:
        is_first = here().rank == 0
    except UserError:
        is_first = True
    if is_first or status != 2:
        say_error(message, status)
    sys.exit(status)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point: a UserError ends with status 2, a full disk or a missing right too, Ctrl-C with 130."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        exit_with(str(error), 2)
    except KeyboardInterrupt:
        exit_with("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: not a fault of ours, nothing left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno is None:
            raise
        exit_with(describe_os_error(error), 2)
    except Exception as error:
        if is_json():
            say_error(f"{type(error).__name__}: {error}", 1)
        raise
