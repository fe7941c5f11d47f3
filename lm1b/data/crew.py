"""The processes that preprocess one corpus together, on one machine or many: ranks that share a folder, each with workers of its own.

1. Text is dealt in turn: chunk number i belongs to rank i mod N. What a chunk becomes depends on the chunk and the vocabulary alone,
   so the files are the same whatever N is.
2. Ranks meet after every part of the work (`together`, `each`, `first`), for as long as the slowest takes; a mistake that
   one of them finds is everybody's.
3. What a rank finds travels as JSON, what it makes lies in the shared folder.

A process on its own is a crew of one: nothing is sent, and torch is not loaded.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lm1b.errors import UserError
from lm1b.processes import host_name
from lm1b.workers import usable_cores

if TYPE_CHECKING:
    from lm1b.distributed import Ranks

T = TypeVar("T")


class Crew:
    """This process's place among those that work on one tokens directory. ranks None: the only one.

    around: makes a context manager that wraps every action, to turn a full disk into a UserError.
    """

    def __init__(
        self,
        ranks: Ranks | None = None,
        around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self._ranks, self._around = ranks, around
        self.rank, self.size = (ranks.rank, ranks.size) if ranks else (0, 1)

    @property
    def is_first(self) -> bool:
        """Whether this rank writes and says what the crew does once."""
        return self.rank == 0

    def cores(self) -> int:
        """How many cores are for this rank's processes. A collective."""
        if self._ranks is None or self.size == 1:
            return usable_cores()
        from lm1b.distributed import share_of_cores  # loads torch, which a process on its own does without

        return share_of_cores(self._ranks)

    def has(self, number: int) -> bool:
        """Whether the chunk with this number, counted from 0 over all text, is for this rank."""
        return number % self.size == self.rank

    def together(self, action: Callable[[], T]) -> T:
        """Run `action` on every rank and wait for the last. Where it raises UserError or OSError on one, all raise UserError."""
        if self.size == 1:
            with self._around():
                return action()
        from lm1b.distributed import agree

        assert self._ranks is not None

        def explained() -> T:
            with self._around():
                return action()

        return agree(self._ranks, explained, may_take_long=True)

    def each(self, action: Callable[[], T]) -> list[T]:
        """`together`, and what it gave on every rank, in rank order. It must be JSON."""
        found = self.together(action)
        if self.size == 1:
            return [found]
        from lm1b.distributed import all_gather_objects

        assert self._ranks is not None
        gathered: list[Any] = all_gather_objects(found, self._ranks)
        return gathered

    def first(self, action: Callable[[], T]) -> T:
        """Run `action` on the first rank while the others wait; what it gave, on all. It must be JSON."""
        found: Any = self.each(lambda: action() if self.is_first else None)[0]
        return found

    def check_same(self, value: Any, what: str) -> None:
        """Raise UserError on all ranks, naming one, where `value` (JSON) is not the first rank's. what: in words, with what to do."""
        found = self.each(lambda: [value, host_name()])
        for rank, (other, host) in enumerate(found):
            if other != found[0][0]:
                raise UserError(f"rank {rank} (on {host}) and rank 0 (on {found[0][1]}) {what}")

    def check_shared(self, directory: Path) -> None:
        """Raise UserError on all ranks, naming one, where a rank does not see in `directory` what the first has just written there."""
        if self.size == 1:
            return
        name = self.first(
            lambda: f".seen-{uuid.uuid4().hex}"
        )  # looked for by nobody before: no file system has cached that it is not there
        self.first(lambda: (directory / name).write_text(name, encoding="utf-8"))
        found = self.each(lambda: [_reads(directory / name, name), host_name()])
        self.first(lambda: (directory / name).unlink(missing_ok=True))
        for rank, (sees, host) in enumerate(found):
            if not sees:
                raise UserError(
                    f"{directory}: rank {rank} (on {host}) does not see what rank 0 (on {found[0][1]}) writes there; to preprocess on many "
                    "machines tokens.directory must be on a folder that all of them share"
                )


def _reads(path: Path, text: str) -> bool:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8") == text
    return False
