"""Mean activation and dead ReLUs of single steps: looked at where a line of metrics.jsonl follows, not otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lm1b.model.recurrent import RecurrentStack


class ActivationWatch:
    """Sees what the recurrent layers put out in the forward passes between `begin` and `take`; this rank's lanes alone.

    It only reads, and nothing waits for the device before `take`.
    """

    def __init__(self, stack: RecurrentStack) -> None:
        self._is_on, self._is_relu = False, stack.config.cell in ("irnn", "np_rnn", "relu_rnn")
        self._sums: list[Tensor] = []
        self._sizes = 0
        self._largest: dict[str, Tensor] = {}
        for name, layer in stack.layers.named_children():
            layer.register_forward_hook(self._seeing(name))

    def _seeing(self, name: str) -> Callable[..., None]:
        return lambda module, inputs, output: self._see(name, output[0])

    def begin(self) -> None:
        """The next step's outputs count."""
        self._is_on = True
        self._sums, self._sizes, self._largest = [], 0, {}

    @torch.no_grad()
    def _see(self, name: str, y_TBH: Tensor) -> None:
        if not self._is_on:
            return
        y_TBH = y_TBH.detach()
        self._sums.append((y_TBH if self._is_relu else y_TBH.abs()).sum(dtype=torch.float32))
        self._sizes += y_TBH.numel()
        if self._is_relu:
            largest_H = y_TBH.amax(dim=(0, 1))
            before_H = self._largest.get(name)
            self._largest[name] = largest_H if before_H is None else torch.maximum(before_H, largest_H)

    def take(self) -> dict[str, float | None]:
        """`mean_activation`, None where it is not finite, and for ReLU cells `dead_relus`; empty where nothing was seen since `begin`."""
        self._is_on = False
        if not self._sums:
            return {}
        mean = float(torch.stack(self._sums).sum()) / self._sizes
        found: dict[str, float | None] = {"mean_activation": mean if math.isfinite(mean) else None}
        if self._largest:
            found["dead_relus"] = float((torch.cat(list(self._largest.values())) == 0).float().mean())
        self._sums, self._largest = [], {}
        return found
