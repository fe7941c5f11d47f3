"""A profiler's trace of some steps as seconds of each part: of the step's own thread, and apart from it of the row thread behind it.

On a GPU also how long it was busy, and with what: a kernel counts for the part in which it was launched, whoever launched it.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch._C._profiler import _ExperimentalConfig  # pyright: ignore[reportPrivateUsage]
from torch.profiler import ProfilerActivity, profile

from lm1b.devices import synchronize
from lm1b.profiling import PREFIX
from parts.benchmark.machine import CPU

# Events of the trace that are a part by themselves, wherever they happen.
EVENTS = {
    "_LSTM": "recurrent",
    "_RNN": "recurrent",
    "aten::mkldnn_rnn_layer": "recurrent",
    "aten::lstm": "recurrent",
    "aten::rnn_relu": "recurrent",
    "aten::rnn_tanh": "recurrent",
    "aten::_cudnn_rnn": "recurrent",
    "aten::_cudnn_rnn_backward": "recurrent",
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
    """Of one step. seconds: of the step's own thread by part. behind: the same of the row thread (lm1b/training/step/background.py), which
    hides behind the step; its `communication` is waiting. products: seconds in products and recurrent layers. num_operators: of both.

    gpu: seconds of kernels by part, gpu_products: of those in products and recurrent layers; gpu_busy: in which any kernel ran. 0 on a CPU.
    """

    seconds: dict[str, float]
    behind: dict[str, float]
    products: float
    num_operators: int
    gpu: dict[str, float] = field(default_factory=dict)
    gpu_products: float = 0.0
    gpu_busy: float = 0.0

    @property
    def busy_behind(self) -> float:
        """Seconds that the row thread works in a step, its waiting left out."""
        return sum(seconds for name, seconds in self.behind.items() if name != "communication")


def profile_steps(run: Callable[[], object], num_steps: int, is_alone: bool, device: torch.device = CPU) -> Parts:
    """Take some steps under the profiler."""
    settings = _ExperimentalConfig(profile_all_threads=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities, experimental_config=settings) as profiler:
        for _ in range(num_steps):
            run()
        synchronize(device)
    return parts_of(profiler.events(), num_steps, is_alone)


def parts_of(events: Any, num_steps: int, is_alone: bool) -> Parts:
    """events: of all threads, and of the GPU. is_alone: whether there is one rank."""
    on_gpu = [event for event in events if event.device_type == DeviceType.CUDA]
    events = [event for event in events if event.device_type == DeviceType.CPU]
    own = next(event.thread for event in events if event.name == PREFIX + "status")
    # The row thread names its parts as the step does; the other threads are gloo's.
    rows = {event.thread for event in events if event.name.startswith(PREFIX)} - {own}
    seconds: dict[str, float] = collections.defaultdict(float)
    behind: dict[str, float] = collections.defaultdict(float)
    gpu: dict[str, float] = collections.defaultdict(float)
    products, gpu_products, num_operators = 0.0, 0.0, 0
    for event in events:
        if event.self_device_time_total and not event.is_user_annotation:
            name, spent = _part(event), event.self_device_time_total / 1e6 / num_steps
            gpu["backward" if name == "other" and event.thread != own and event.thread not in rows else name] += spent
            if name == "recurrent" or event.name in PRODUCTS:
                gpu_products += spent
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
    busy = covered(kernel_intervals(on_gpu)) / 1e6 / num_steps
    return Parts(_rounded(seconds), _rounded(behind), products, num_operators // num_steps, _rounded(gpu), gpu_products, busy)


def kernel_intervals(on_gpu: Iterable[Any]) -> list[tuple[float, float]]:
    """When kernels ran, microseconds: not copies, not memory set, and not the program's named parts, which the trace shows there too."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in on_gpu
        if not event.is_user_annotation and not event.name.startswith((PREFIX, "Memcpy", "Memset"))
    ]


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals, in their unit."""
    total, end = 0.0, -math.inf
    for start, stop in sorted(intervals):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


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
