"""What a command says: plain lines for people, or with `--log-format json` one JSON object a line on stdout, for clusters.

    {"time": "2026-01-02T03:04:05+00:00", "level": "info", "event": "metrics", "step": 10, "metrics": {"nats_per_word": 5.2, ...}}

`level` is info, warning or error. `event` is message (with `message`, and `step` where there is one), progress, metrics, evaluation, tokens
or error (with `message` and the process's `status`). Numbers that are not finite are null. Only what this program says is meant: launchers
and libraries print lines of their own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

LogFormat = Literal["text", "json"]
_format: LogFormat = "text"


def use_log_format(name: LogFormat) -> None:
    """From now on this process says everything so."""
    global _format
    _format = name


def is_json() -> bool:
    """Whether every line on stdout is to be a JSON object."""
    return _format == "json"


def now() -> str:
    """This instant, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class LastingOutput:
    """A text stream that may lose its reader (a closed terminal, `| head`, a launcher that was killed): the training goes on."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Characters taken: all of them, whether or not anybody reads."""
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """What is held back goes out, if anybody reads."""
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        """What is still to be written goes nowhere, at the interpreter's end too."""
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def json_line(event: str, level: str = "info", **more: Any) -> str:
    """One line of `--log-format json`."""
    return json.dumps(_finite({"time": now(), "level": level, "event": event, **more}), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value if value is None or isinstance(value, (str, int)) else str(value)


def say(text: str, *, event: str = "message", level: str = "info", lasting: bool = False, **more: Any) -> None:
    """Print `text`, or a JSON line with `more` in its place (a message has `text` too). lasting: a reader that has gone is no error."""
    if is_json():
        text = json_line(event, level, **({"message": text} if event == "message" else {}), **more)
    else:
        text += "\n"
    stream = LastingOutput(sys.stdout) if lasting else sys.stdout
    stream.write(text)
    stream.flush()


def remark(text: str, *, event: str = "message", level: str = "info", lasting: bool = False, **more: Any) -> None:
    """As `say`, for what is no result: told apart by `lm1b: ` from the lines of launchers and libraries that it stands between."""
    say(text if is_json() else f"lm1b: {text}", event=event, level=level, lasting=lasting, **more)


def say_error(message: str, status: int) -> None:
    """What ends this process, in one line: on stderr, as JSON on stdout. status: what it will end with."""
    one_line = " ".join(message.split())
    if is_json():
        print(json_line("error", "error", message=one_line, status=status), end="", flush=True)
    else:
        print(f"lm1b: error: {one_line}", file=sys.stderr, flush=True)
