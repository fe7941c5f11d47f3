"""One run: one network, one seed, one learning rate, to a number of updates. The small trainer of all tasks.

1. The order of the training sequences is a function of (seed, epoch); an update takes the next `batch` of them.
2. An update whose gradient is not finite is skipped and counted; `max_skipped` of them in a row end the run as diverged.
3. Before the first and every `evaluate_every` updates the loss and the error on dev go into the curve, and everything into one file,
   from which a run that was stopped goes on bit for bit.
4. What counts is the point of the curve with the least error on dev: its weights are kept, and test is looked at with them, once, where
   that is asked for.

A run's folder:  run.safetensors (weights, those best on dev, optimizer state; the curve in its metadata)
                 result_<updates>.json, once it has come that far
"""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lm1b.errors import UserError
from lm1b.files import atomic_file, read_json, write_json
from lm1b.randomness import derive_key, permutation
from lm1b.sequence_tasks.config import OptimizerConfig, TaskExperiment
from lm1b.sequence_tasks.data import Batch, Split, Task
from lm1b.sequence_tasks.network import SequenceNetwork, loss_of, norm_stabilizer

EVALUATED_TOGETHER = 128
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DIVERGED_LOSS = 2.0  # times what a run has started from


def make_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """torch's own."""
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=config.momentum)
    if config.kind == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=learning_rate, momentum=config.momentum)
    return torch.optim.Adam(parameters, lr=learning_rate)


class SequenceRun:
    """A network in training, at some update."""

    def __init__(self, config: TaskExperiment, task: Task, seed: int, learning_rate: float) -> None:
        self.config, self.task, self.seed = config, task, seed
        self.learning_rate = learning_rate
        self.network = SequenceNetwork(config.model, task.input_width, task.asked, task.outputs, seed)
        self.network.dtype = DTYPES[config.training.precision]
        self.parameters = list(self.network.parameters())
        self.optimizer = make_optimizer(config.optimizer, self.parameters, learning_rate)
        self.updates = 0
        self.skipped, self.skipped_in_a_row = 0, 0
        self.curve: list[dict[str, Any]] = []
        self.best_weights: dict[str, Tensor] = {}
        self.cpu_seconds = 0.0
        self._epoch, self._order_N = -1, torch.empty(0, dtype=torch.int64)
        self._interval: list[tuple[float, float]] = []  # loss and gradient norm of each update since the last look at dev

    @property
    def has_diverged(self) -> bool:
        """Whether it has given up, or stands far worse than both a constant answer and itself before its first update."""
        if self.has_given_up or not self.curve:
            return self.has_given_up
        first, last = self.curve[0]["dev_loss"], self.curve[-1]["dev_loss"]
        return last is None or first is None or last > DIVERGED_LOSS * max(first, self.task.baseline_loss)

    @property
    def has_given_up(self) -> bool:
        """Whether too many updates in a row had a gradient that is not finite."""
        return self.skipped_in_a_row >= self.config.training.max_skipped

    def next_batch(self) -> Batch:
        """The batch of the present update. What is left over at an epoch's end is left out of it."""
        size = min(self.config.training.batch, len(self.task.train))
        per_epoch = len(self.task.train) // size
        epoch, place = divmod(self.updates, per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order_N = epoch, permutation(derive_key(self.seed, "order", epoch), len(self.task.train))
        return self.task.train.batch(self._order_N[place * size : (place + 1) * size])

    def update(self) -> None:
        """One update, or a skipped one."""
        training, settings, batch = self.config.training, self.config.optimizer, self.next_batch()
        answers = self.network(batch)
        total, _, asked = loss_of(answers, batch, self.task.asked)
        loss = total / asked
        penalty = training.norm_stabilizer * norm_stabilizer(answers.y_TBW, batch.lengths_B) if training.norm_stabilizer else 0.0
        self.optimizer.zero_grad(set_to_none=True)
        (loss + penalty).backward()
        if settings.clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters, settings.clip_value)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm or math.inf))
        self.updates += 1
        if math.isfinite(norm):
            self.optimizer.step()
            self.skipped_in_a_row = 0
            self._interval.append((float(loss.detach()), norm))
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1

    def evaluate(self, split: Split) -> tuple[float, float]:
        """Loss and error of an answer, over a whole split; sums in float64, divided once."""
        loss_sum, error_sum, count = 0.0, 0.0, 0
        with torch.no_grad():
            for indices_B in torch.arange(len(split)).split(EVALUATED_TOGETHER):
                batch = split.batch(indices_B)
                loss, error, asked = loss_of(self.network(batch), batch, self.task.asked)
                loss_sum, error_sum, count = loss_sum + float(loss.double()), error_sum + float(error), count + asked
        return loss_sum / count, error_sum / count

    def look_at_dev(self) -> None:
        """Put a point on the curve."""
        dev_loss, dev_error = self.evaluate(self.task.dev)
        losses, norms = zip(*self._interval, strict=True) if self._interval else ((math.nan,), (math.nan,))  # nan: all were skipped
        self._interval = []
        self.curve.append(
            {
                "updates": self.updates,
                "train_loss": _finite(math.fsum(losses) / len(losses)),
                "gradient_norm": _finite(statistics.median(norms)),
                "skipped": self.skipped,
                "dev_loss": _finite(dev_loss),
                "dev_error": _finite(dev_error),
            }
        )
        if self.curve[-1] is self.best:
            self.best_weights = {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}

    @property
    def best(self) -> dict[str, Any] | None:
        """The point of the curve with the least error on dev, the earliest of equals; None where none is finite."""
        return min((point for point in self.curve if point["dev_error"] is not None), key=lambda point: point["dev_error"], default=None)

    # The run's file -----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Everything that going on needs, atomically. An update later than the last look at dev is not kept."""
        assert not self._interval, "saved where dev has just been looked at"
        tensors = {f"weights/{name}": parameter.detach() for name, parameter in self.network.named_parameters()}
        tensors |= {f"best/{name}": weight for name, weight in self.best_weights.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        progress = {
            "updates": self.updates,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "curve": self.curve,
            "cpu_seconds": self.cpu_seconds,
        }
        with atomic_file(path, outlives_power=False) as file:
            file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"progress": json.dumps(progress)}))

    def load(self, path: Path) -> None:
        """Go on from a file of `save`. Raises UserError for one that is not whole."""
        try:
            with safe_open(path, "pt") as file:
                progress = json.loads(file.metadata()["progress"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a run that can be gone on with ({error}); delete it to train that run anew") from None
        kinds: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            kinds[kind][rest] = value
        self.network.load_state_dict(kinds["weights"])
        self.best_weights = kinds["best"]
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in kinds["optimizer"].items():
            index, key = name.split("/")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        for name, value in progress.items():
            setattr(self, name, value)

    def result(self) -> dict[str, Any]:
        """What is kept of the run."""
        return {
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "updates": self.updates,
            "diverged": self.has_diverged,
            "skipped": self.skipped,
            "cpu_seconds": round(self.cpu_seconds, 1),
            "best_updates": self.best["updates"] if self.best else None,
            "dev_error": self.best["dev_error"] if self.best else None,
            "curve": self.curve,
        }

    def look_at_test(self) -> dict[str, float]:
        """Loss and error on test, with the weights that were best on dev."""
        present = {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}
        self.network.load_state_dict(self.best_weights)
        loss, error = self.evaluate(self.task.test)
        self.network.load_state_dict(present)
        return {"test_loss": loss, "test_error": error}


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def train_run(
    config: TaskExperiment, task: Task, seed: int, learning_rate: float, updates: int, folder: Path, *, look_at_test: bool
) -> dict[str, Any]:
    """Train to `updates`, or read what has come of it already: SequenceRun.result, with `test_loss` and `test_error` where asked."""
    done = Path(folder) / f"result_{updates}.json"
    if done.exists():
        return read_json(done)
    run, kept = SequenceRun(config, task, seed, learning_rate), Path(folder) / "run.safetensors"
    if kept.exists():
        run.load(kept)
    else:
        run.look_at_dev()
    while run.updates < updates and not run.has_given_up:
        started_at = time.process_time()
        until = min(updates, run.updates + config.training.evaluate_every)
        while run.updates < until and not run.has_given_up:
            run.update()
        run.look_at_dev()
        run.cpu_seconds += time.process_time() - started_at
        run.save(kept)
    result = run.result()
    if look_at_test and not run.has_diverged:
        result |= run.look_at_test()
    write_json(done, result, outlives_power=False)
    return result
