"""Where a fault can strike inside a process of the program: the one table of patch points, and the order that picks one.

The program knows nothing of this. victim.py reads an `Order` from the environment, replaces the function of its point
by one that counts its calls, and at the n-th call does what the order says. A mark file tells the rig that it happened.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ORDER_VARIABLE = "LM1B_FAULT_ORDER"

Moment = Literal["before", "half", "after"]


@dataclass(frozen=True)
class Point:
    """A function of the program, `module:name` or `module:Class.name`, and which of its calls count.

    path: the argument that holds the path of the file it works on (`self`: the object's own `path`); file: what the file's
    name must match; half: how to do half of the call before the process is killed.
    """

    target: str
    file: str | None = None
    path: int | Literal["self"] = 0
    half: Callable[..., object] | None = None


def _write_half(original: Callable[..., object], file: Any, data: Any) -> object:
    """Half of a block of bytes or of a tensor."""
    return original(file, data[: len(data) // 2])


def _append_half(original: Callable[..., object], path: Path, value: Any) -> None:
    """Half of a line of JSON, without its end."""
    line = json.dumps(value).encode()
    with open(path, "ab") as file:
        file.write(line[: len(line) // 2])


MANIFEST = r"manifest\.json"
CORE = r"core\..*"
TABLE = r"(input_table|output_table|output_bias)\..*"
CHECKPOINT = r"step_\d{8}"
DELETED = r"step_\d{8}\.deleted\.partial"

POINTS: dict[str, Point] = {
    "backward": Point("lm1b.training.engine.engine:Engine.backward"),
    "all-to-all": Point("torch.distributed:all_to_all_single"),
    "core file": Point("lm1b.training.checkpoints.tensor_file:TensorFile.write", CORE, "self", _write_half),
    "table file": Point("lm1b.training.checkpoints.tensor_file:TensorFile.write", TABLE, "self", _write_half),
    "manifest": Point("lm1b.training.checkpoints.saving:write_sealed_json", MANIFEST),
    "rename": Point("os:replace", CHECKPOINT, path=1),
    "retention": Point("os:replace", DELETED, path=1),  # a complete checkpoint loses its name
    "evaluation line": Point("lm1b.evaluation.scoring.evaluator:append_json_line", r"evaluations\.jsonl", half=_append_half),
    "preprocessing: numbers": Point("lm1b.data.preprocess.passes:write_array"),
    "preprocessing: shard": Point("lm1b.data.tokens.directory:write_array"),
    "preprocessing: record": Point("lm1b.data.receipts:write_sealed_json", r".*\.(count|shard)\.json"),
    "preprocessing: manifest": Point("lm1b.data.tokens.manifest:write_sealed_json", MANIFEST),
    "preprocessing: publishing": Point("os:replace", r".*\.npy", path=0),  # a finished shard takes its place
}


@dataclass(frozen=True)
class Order:
    """One fault: in which process, at which call of which of POINTS, and what.

    program: the entry point that is run. victim: `rank 0`, `parent`, `worker` or `any`. every: at each call, not only at the n-th.
    seconds: how long `sleep` takes. mark: the file that says it has happened.
    """

    program: str
    point: str
    mark: str
    victim: str = "any"
    occurrence: int = 1
    moment: Moment = "before"
    action: Literal["kill", "nan", "sleep"] = "kill"
    every: bool = False
    seconds: float = 0.0

    def environment(self) -> dict[str, str]:
        return {ORDER_VARIABLE: json.dumps(asdict(self))}


def read_order() -> Order | None:
    """The order that this process was started with."""
    text = os.environ.get(ORDER_VARIABLE)
    return Order(**json.loads(text)) if text else None


def moments_of(point: str) -> list[Moment]:
    """When a point's calls can be cut: before, after, and in the middle where it is known how."""
    return ["before", "half", "after"] if POINTS[point].half else ["before", "after"]


def install(order: Order, *, is_worker: bool) -> None:
    """Replace the function of the order's point, if this process is its victim. Raises LookupError where the program has none of that name.

    is_worker: this process was started by another one of the program's, to preprocess.
    """
    point = POINTS[order.point]
    owner, name = find(point)
    if _is_victim(order.victim, is_worker):
        setattr(owner, name, _replaced(getattr(owner, name), point, _Trigger(order)))


def _is_victim(victim: str, is_worker: bool) -> bool:
    if victim in ("parent", "worker"):
        return is_worker == (victim == "worker")
    return victim == "any" or victim == f"rank {os.environ.get('RANK', '0')}"


def find(point: Point) -> tuple[Any, str]:
    """The object that holds a point's function, and the function's name in it. Raises LookupError where it is not there."""
    module, _, path = point.target.partition(":")
    *classes, name = path.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for part in classes:
            owner = getattr(owner, part)
        assert callable(getattr(owner, name))
    except (ImportError, AttributeError) as error:
        raise LookupError(f"fault rig: the program has no {point.target}: {error}") from None
    return owner, name


class _Trigger:
    """Counts the calls of an order's point, and does what it says."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._calls = 0
        self._lock = threading.Lock()  # files are written in a thread of their own

    def is_due(self) -> bool:
        with self._lock:
            self._calls += 1
            due = self._calls >= self.order.occurrence if self.order.every else self._calls == self.order.occurrence
            return due and self._mark()

    def _mark(self) -> bool:
        """Leave the mark; a kill strikes once, whoever is first."""
        own = Path(f"{self.order.mark}.{os.getpid()}")
        own.write_text(json.dumps({"pid": os.getpid(), "at": time.time()}))
        try:
            os.link(own, self.order.mark)  # whole at once, unlike a file that is being written
        except FileExistsError:
            return self.order.action != "kill"
        finally:
            own.unlink()
        return True

    def act(self, original: Callable[..., Any], point: Point, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        order = self.order
        if order.action == "nan":
            first, value, *rest = arguments
            return original(first, value * float("nan"), *rest, **keywords)
        if order.action == "sleep":
            time.sleep(order.seconds)
            return original(*arguments, **keywords)
        if order.moment == "half":
            assert point.half is not None
            point.half(original, *arguments, **keywords)
        try:
            if order.moment == "after":
                original(*arguments, **keywords)
        finally:  # whatever became of the call: the rig has been told
            os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")


def _replaced(original: Callable[..., Any], point: Point, trigger: _Trigger) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        if point.file is not None:
            path = arguments[0].path if point.path == "self" else arguments[point.path]
            if not re.fullmatch(point.file, Path(path).name):
                return original(*arguments, **keywords)
        return trigger.act(original, point, arguments, keywords) if trigger.is_due() else original(*arguments, **keywords)

    return call
