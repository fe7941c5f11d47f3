"""The baseline of training: the same model the way a user of PyTorch would write it. A worker, see harness/turns.py.

float32 `nn.LSTM`, `nn.Embedding(sparse=True)` for input rows, output rows and bias, the target's and the samples' logits side by
side, `cross_entropy`, Adagrad on all, the recurrent weights' gradient clipped. No DeepSpeed, no ranks: all threads of one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where it finds `parts`

from parts.harness.batches import UnigramBatches
from parts.harness.counts import read_counts
from parts.harness.shapes import shape_config
from parts.harness.turns import serve

WARM_STEPS = 2


class PlainModel(nn.Module):
    """Embedding, LSTM and a sampled softmax over concatenated logits."""

    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Embedding(vocabulary, width, sparse=True)
        self.lstm = nn.LSTM(width, hidden)
        self.output = nn.Embedding(vocabulary, hidden, sparse=True)
        self.bias = nn.Embedding(vocabulary, 1, sparse=True)

    def forward(
        self, inputs_TB: Tensor, targets_TB: Tensor, samples_S: Tensor, log_expected_V: Tensor, state: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y_TBH, state = self.lstm(self.input(inputs_TB), state)
        hidden_NH, targets_N = y_TBH.flatten(0, 1), targets_TB.flatten()
        true_N1 = (hidden_NH * self.output(targets_N)).sum(1, keepdim=True) + self.bias(targets_N) - log_expected_V[targets_N, None]
        sampled_NS = hidden_NH @ self.output(samples_S).T + self.bias(samples_S).T - log_expected_V[samples_S]
        sampled_NS = sampled_NS.masked_fill(samples_S == targets_N[:, None], -torch.inf)
        logits = torch.cat([true_N1, sampled_NS], dim=1)
        zeros = torch.zeros(len(targets_N), dtype=torch.int64)
        return nn.functional.cross_entropy(logits, zeros, reduction="sum"), state


class Plain:
    """The worker's state."""

    def __init__(self, counts: str | None) -> None:
        self.counts = counts

    def build(self, shape: str, vocabulary: int) -> dict[str, Any]:
        """Make the model and its optimizers, and warm up. -> nothing."""
        self.config = config = shape_config(shape, "fp32")
        self.vocabulary = vocabulary
        self.model = model = PlainModel(vocabulary, config.model.embedding, config.model.hidden)
        tables = [parameter for name, parameter in model.named_parameters() if not name.startswith("lstm")]
        self.optimizers = [
            torch.optim.Adagrad(parameters, lr=0.2, initial_accumulator_value=1.0) for parameters in (tables, list(model.lstm.parameters()))
        ]
        self.batches = UnigramBatches(np.cumsum(read_counts(self.counts, vocabulary)), config.batches.lanes, config.batches.steps)
        self.log_probability_V = np.log(np.log1p(1.0 / (np.arange(vocabulary) + 1.0)) / np.log(vocabulary + 1))
        self.state: Any = None
        self.number, self.wall = 0, []
        for _ in range(WARM_STEPS):
            self._step()
        return {}

    def _step(self) -> None:
        config, model = self.config, self.model
        batch = self.batches.at(self.number, 0, config.batches.lanes)
        samples, num_draws = self._draw(self.number)
        log_expected_V = torch.from_numpy(self.log_probability_V + np.log(num_draws)).float()
        nats, state = model(torch.from_numpy(batch.inputs_TB), torch.from_numpy(batch.targets_TB), samples, log_expected_V, self.state)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        (nats / config.batches.lanes).backward()
        nn.utils.clip_grad_norm_(model.lstm.parameters(), 10.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.state = tuple(value.detach() for value in state)
        self.number += 1

    def _draw(self, step: int) -> tuple[Tensor, int]:
        generator, count = np.random.default_rng(step), self.config.softmax.samples
        draws = np.exp(generator.random(4 * count) * np.log(self.vocabulary + 1)).astype(np.int64) - 1
        _, first = np.unique(draws, return_index=True)
        first = np.sort(first)[:count]
        return torch.from_numpy(draws[first]), int(first[-1]) + 1

    def steps(self, count: int) -> dict[str, Any]:
        """Take some steps. -> nothing; see `result`."""
        for _ in range(count):
            started_at = time.perf_counter()
            self._step()
            self.wall.append(time.perf_counter() - started_at)
        return {}

    def result(self) -> dict[str, Any]:
        """precision, vocabulary, threads, the median `step_seconds` (wall) and `words_per_second`."""
        wall = statistics.median(self.wall)
        words = self.config.batches.lanes * self.config.batches.steps
        return {
            "precision": "fp32",
            "vocabulary": self.vocabulary,
            "threads": torch.get_num_threads(),
            "step_seconds": round(wall, 4),
            "words_per_second": round(words / wall),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--counts")
    arguments = parser.parse_args()
    worker = Plain(arguments.counts)
    serve(arguments.socket, 0, {"build": worker.build, "steps": worker.steps, "result": worker.result})


if __name__ == "__main__":
    main()
