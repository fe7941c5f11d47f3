"""How far something is: one line that stays in place on a terminal, a line now and then elsewhere, a JSON object in `--log-format json`."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from lm1b.console import LastingOutput, is_json, remark

LINE_SECONDS = 30.0  # between two lines where there is no terminal


def duration(seconds: float) -> str:
    """For people: 42 s, 3 min 20 s, 5 h 10 min, 3 days 4 h."""
    seconds = round(seconds)
    for unit, size, smaller, part in (("days", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {smaller}"
    return f"{seconds} s"


def on_terminal() -> bool:
    """Whether a line on stderr can be drawn again and again."""
    return sys.stderr.isatty() and not is_json()


class Progress(tqdm):  # pyright: ignore[reportMissingTypeArgument] (its stub alone has some)
    """tqdm, which off a terminal says a plain line every half a minute and nothing for what is shorter."""

    def __init__(self, what: str, total: int, unit: str, *, shown: bool = True) -> None:
        self._stays_in_place = on_terminal()
        super().__init__(
            total=total,
            desc=what,
            unit=unit,
            unit_scale=True,
            file=LastingOutput(sys.stderr),
            disable=not shown,
            mininterval=0.5 if self._stays_in_place else LINE_SECONDS,
            leave=self._stays_in_place,
            dynamic_ncols=True,
        )

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """What tqdm calls when it is time to draw."""
        if self._stays_in_place:
            return super().display(msg, pos)
        if msg is None and 0 < self.n < (self.total or 0):  # not at the start and not at the end, where nothing is to be waited for
            left = (self.total - self.n) * self.format_dict["elapsed"] / self.n
            text = f"{self.desc}: {self.n / self.total:.0%}, about {duration(left)} left"
            remark(text, event="progress", what=self.desc, done=self.n, total=self.total, unit=self.unit, seconds_left=round(left))
        return True
