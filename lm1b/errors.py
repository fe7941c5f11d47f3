"""What a user's mistake looks like: one line, exit status 2, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from lm1b.console import is_json, say_error

if TYPE_CHECKING:
    from lm1b.launchers import Place


class UserError(ValueError):
    """A mistake that the user can mend. Its text is one line: what is wrong, what was expected, what to do."""


class AgreedError(UserError):
    """A mistake that all ranks know of: the first says it for them."""


def describe_os_error(error: OSError) -> str:
    """A full disk, a missing right or file, in one line."""
    return f"{error.filename or 'file system'}: {error.strerror or error}"


def in_words(error: UserError | OSError) -> str:
    """What is told of a mistake or of the file system's no."""
    return describe_os_error(error) if isinstance(error, OSError) else str(error)


def listed(names: Sequence[str], most: int) -> str:
    """For a message: the first `most` names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def in_one_line(error: BaseException, longest: int = 500) -> str:
    """The kind of an error and what it says, cut at so many letters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]


def _place() -> Place:
    from lm1b.launchers import Place, here  # which raises UserError, so it imports this module

    try:
        return here()
    except UserError:
        return Place()


def exit_with(message: str, status: int) -> NoReturn:
    """Print `message` as one line on stderr and exit with `status`. Mistakes of the user are said by the first rank alone."""
    if _place().rank == 0 or status != 2:
        say_error(message, status)
    sys.exit(status)


def _exit_by_mistake(message: str) -> NoReturn:
    """A mistake that this rank may be the only one to see: the first says it, which hears of it where the ranks meet."""
    place = _place()
    if place.rank:
        from lm1b.peers import leave_to_the_first  # torch: for no other command's sake

        leave_to_the_first(place, message)
    exit_with(message, 2)


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry point: a UserError ends with status 2, a full disk or a missing right too, Ctrl-C with 130."""
    try:
        sys.exit(main() or 0)
    except AgreedError as error:
        exit_with(str(error), 2)
    except UserError as error:
        _exit_by_mistake(str(error))
    except KeyboardInterrupt:
        exit_with("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: not a fault of ours, nothing left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno is None:
            raise
        _exit_by_mistake(describe_os_error(error))
    except Exception as error:
        if is_json():
            say_error(f"{type(error).__name__}: {error}", 1)
        raise
