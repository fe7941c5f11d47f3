"""A profiler's trace of some steps as seconds of each part: of the step's own thread, and apart from it of the row thread behind it."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile

from lm1b.profiling import PREFIX

# Events of the trace that are a part by themselves, wherever they happen.
EVENTS = {
    "_LSTM": "recurrent",
    "_RNN": "recurrent",
    "aten::mkldnn_rnn_layer": "recurrent",
    "aten::lstm": "recurrent",
    "_LSTMBackward": "recurrent",
    "_RNNBackward": "recurrent",
    "MkldnnRnnLayerBackward0": "recurrent",
    "_SampledSoftmax": "softmax",
    "_SampledSoftmaxBackward": "softmax",
}
PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear_pointwise")
# What a part of several ranks spends in no operator of its own is waiting: for DeepSpeed's collectives, or for the row thread.
WAITS = tuple(PREFIX + name for name in ("backward", "core update", "row fetch", "table update"))


@dataclass(frozen=True)
class Parts:
    """Of one step. seconds: of the step's own thread by part. behind: the same of the row thread (lm1b/training/background.py), which
    hides behind the step; its `communication` is waiting. products: seconds in products and recurrent layers. num_operators: of both."""

    seconds: dict[str, float]
    behind: dict[str, float]
    products: float
    num_operators: int

    @property
    def busy_behind(self) -> float:
        """Seconds that the row thread works in a step, its waiting left out."""
        return sum(seconds for name, seconds in self.behind.items() if name != "communication")


def profile_steps(run: Callable[[], object], num_steps: int, is_alone: bool) -> Parts:
    """Take some steps under the profiler."""
    settings = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=settings) as profiler:
        for _ in range(num_steps):
            run()
    return parts_of(profiler.events(), num_steps, is_alone)


def parts_of(events: Any, num_steps: int, is_alone: bool) -> Parts:
    """events: of all threads. is_alone: whether there is one rank."""
    own = next(event.thread for event in events if event.name == PREFIX + "status")
    # The row thread names its parts as the step does; the other threads are gloo's.
    rows = {event.thread for event in events if event.name.startswith(PREFIX)} - {own}
    seconds: dict[str, float] = collections.defaultdict(float)
    behind: dict[str, float] = collections.defaultdict(float)
    products, num_operators = 0.0, 0
    for event in events:
        if event.thread != own and event.thread not in rows:
            continue
        name = _part(event)
        spent = event.self_cpu_time_total / 1e6 / num_steps
        num_operators += event.name.startswith(("aten::", "mkldnn::"))
        if event.thread != own:
            behind[name] += spent
            continue
        if not is_alone and event.name in WAITS:
            name = "communication"
        seconds[name] += spent
        if name == "recurrent" or event.name in PRODUCTS:
            products += spent
    return Parts(_rounded(seconds), _rounded(behind), products, num_operators // num_steps)


def _part(event: Any) -> str:
    while event is not None:
        if event.name.startswith(PREFIX):
            return event.name.removeprefix(PREFIX)
        if event.name in EVENTS:
            return EVENTS[event.name]
        if event.name.startswith("c10d::"):
            return "communication"
        event = event.cpu_parent
    return "other"


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in sorted(seconds.items())}
