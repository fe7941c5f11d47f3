"""A run over several ranks, under DeepSpeed (ZeRO stage 1): each rank takes an equal share of every batch.

1. The loss is a mean over what is asked in the whole batch. A rank's share of it is its own sum over everybody's count; DeepSpeed
   takes the mean of the ranks' gradients, so that each share is multiplied by the number of ranks.
2. DeepSpeed's own guard skips, on all ranks together, what one process would: a gradient whose norm is not finite in float32.
3. The run's file is that of one process: what the ranks have cut up is put together by parameter, and cut anew where a run goes on.

Weights are float32 for DeepSpeed in any case; bfloat16 is the network's own business (see network.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lm1b.errors import UserError
from lm1b.sequence_tasks.data.task import Batch
from lm1b.sequence_tasks.experiment.network import Answers
from lm1b.sequence_tasks.experiment.trainer import SequenceRun, make_optimizer
from lm1b.training.engine.engine import Engine
from lm1b.training.engine.settings import EngineSettings


class EngineRun(SequenceRun):
    """See SequenceRun. Every rank makes it, and calls the same methods at the same time."""

    engine: Engine

    def prepare(self) -> None:
        """See SequenceRun. Raises UserError for a clipping that DeepSpeed does not know: by value."""
        optimizer = self.config.optimizer
        if optimizer.clip_value is not None:
            raise UserError(
                f"optimizer.clip_value={optimizer.clip_value:g}: {self.ranks.size} ranks clip by the norm alone; "
                "set optimizer.clip_norm instead, or train in one process"
            )
        settings = EngineSettings(
            make_optimizer=lambda parameters: make_optimizer(optimizer, parameters, self.learning_rate),
            clip_norm=optimizer.clip_norm,
            micro_batch_size=self.batch_size // self.ranks.size,
        )
        self.engine = Engine(self.network, settings, "fp32", self.ranks)
        self.engine.prime(self._zero_loss)

    def _zero_loss(self) -> Tensor:
        """Its gradient is zero, whatever the weights are; no pass through the network is needed for that."""
        return torch.stack([(parameter * 0.0).sum() for parameter in self.parameters]).sum()

    def forward(self, batch: Batch) -> Answers:
        """See SequenceRun."""
        return self.engine.forward(batch)

    def step(self, loss: Tensor) -> float | None:
        """See SequenceRun."""
        self.engine.backward(loss * self.ranks.size)
        applied = self.engine.step(finite=True, learning_rate=self.learning_rate)
        return float(self.engine.gradient_norm()) if applied else None

    def state(self) -> dict[str, Tensor]:
        """See SequenceRun: whole tensors, on every rank."""
        numbers = {name: number for number, name in enumerate(self.engine.names)}
        tensors = {}
        for name, tensor in self.engine.core_state().items():
            kind, _, rest = name.partition("/")
            if kind == "optimizer":
                key, _, parameter = rest.partition("/")
                name = f"optimizer/{numbers[parameter]}/{key}"
            tensors[name] = tensor
        if self.config.optimizer.kind != "sgd":  # torch counts the updates of each parameter
            applied = torch.tensor(float(self.updates - self.skipped))
            tensors |= {f"optimizer/{number}/step": applied.clone() for number in numbers.values()}
        return tensors

    def set_state(self, weights: dict[str, Tensor], optimizer: dict[int, dict[str, Tensor]]) -> None:
        """See SequenceRun."""
        by_key: dict[str, dict[str, Tensor]] = {}
        for number, tensors in optimizer.items():
            for key, tensor in tensors.items():
                if key != "step":
                    by_key.setdefault(key, {})[self.engine.names[number]] = tensor
        self.engine.prime(self._zero_loss, weights)
        self.engine.restore(weights, None, by_key, self.updates - self.skipped)

    def close(self) -> None:
        """See SequenceRun. Every run has an engine of its own."""
        self.engine.close()
