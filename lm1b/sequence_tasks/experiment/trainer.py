"""One run: one network, one seed, one learning rate, to a number of updates. The small trainer of all tasks.

1. The order of the training sequences is a function of (seed, epoch); an update takes the next `batch` of them.
2. An update whose gradient's norm is not finite is skipped and counted; `max_skipped` of them in a row end the run as diverged. Clipping
   by value comes before that, and makes an infinite element finite.
3. Before the first and every `evaluate_every` updates the loss and the error on dev go into the curve, and everything into one file,
   from which a run that was stopped goes on bit for bit.
4. What counts is the point of the curve with the least error on dev: its weights are kept, and test is looked at with them, once, where
   that is asked for.
5. One process trains with torch alone, on a GPU where there is one. Over several ranks (engine_run.py) each takes its share of every
   batch and of what is evaluated; sums are added up over the ranks, and what lies in the first one's folder decides.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from lm1b.distributed import Ranks, all_reduce_sum
from lm1b.errors import UserError
from lm1b.precision import DTYPES
from lm1b.randomness import derive_key, permutation
from lm1b.sequence_tasks.config import DIVERGED_LOSS, OptimizerConfig, TaskExperiment
from lm1b.sequence_tasks.data.task import Batch, Split, Task
from lm1b.sequence_tasks.experiment.network import Answers, SequenceNetwork, loss_of, norm_stabilizer

EVALUATED_TOGETHER = 128

PROGRESS = ("updates", "skipped", "skipped_in_a_row", "curve", "cpu_seconds")  # kept in the run's file beside the tensors


def make_optimizer(config: OptimizerConfig, parameters: list[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """torch's SGD with momentum, RMSprop with momentum, or Adam with its default betas. learning_rate: the config's does not count."""
    if config.kind == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=config.momentum)
    if config.kind == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=learning_rate, momentum=config.momentum)
    return torch.optim.Adam(parameters, lr=learning_rate)


class SequenceRun:
    """A network in training, at some update. Every number it keeps is over all ranks together; the weights are float32."""

    optimizer: torch.optim.Optimizer

    def __init__(self, config: TaskExperiment, task: Task, seed: int, learning_rate: float, ranks: Ranks) -> None:
        """Raises UserError where the ranks do not divide a batch."""
        self.config, self.task, self.seed = config, task, seed
        self.learning_rate, self.ranks = learning_rate, ranks
        self.batch_size = min(config.training.batch, len(task.train))
        if self.batch_size % self.ranks.size:
            raise UserError(
                f"a batch of {self.batch_size} sequences must be divisible by the number of ranks (={self.ranks.size}); "
                "use another --num_gpus or --set training.batch="
            )
        dtype = DTYPES[config.training.precision]
        self.network = SequenceNetwork(config.model, task.input_width, task.asked, task.outputs, seed, dtype)
        self.parameters = list(self.network.parameters())
        self.updates = 0
        self.skipped, self.skipped_in_a_row = 0, 0
        self.curve: list[dict[str, Any]] = []
        self.best_weights: dict[str, Tensor] = {}
        self.cpu_seconds = 0.0
        self._epoch, self._order_N = -1, torch.empty(0, dtype=torch.int64)
        # Of each update since the last look at dev: this rank's share of the loss, and the gradient's norm.
        self._interval: list[tuple[float, float]] = []
        self.prepare()

    # What differs over ranks: see EngineRun -----------------------------------------------------------------------

    def prepare(self) -> None:
        """Bring the network to its device, and make what steps it."""
        self.network.to(self.ranks.device)
        self.optimizer = make_optimizer(self.config.optimizer, self.parameters, self.learning_rate)

    def forward(self, batch: Batch) -> Answers:
        """What the network says of this rank's share of a batch, with gradients."""
        return self.network(batch)

    def step(self, loss: Tensor) -> float | None:
        """Follow the gradient of a loss of which this is the rank's share -> the gradient's norm before it is clipped; None: skipped."""
        settings = self.config.optimizer
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.clip_value is not None:
            nn.utils.clip_grad_value_(self.parameters, settings.clip_value)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm or math.inf))
        if not math.isfinite(norm):
            return None
        self.optimizer.step()
        return norm

    def state(self) -> dict[str, Tensor]:
        """`weights/<name>`, and `optimizer/<number of the parameter>/<key>` as torch calls it. Collective."""
        tensors = {f"weights/{name}": parameter.detach() for name, parameter in self.network.named_parameters()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        return tensors

    def set_state(self, weights: dict[str, Tensor], optimizer: dict[int, dict[str, Tensor]]) -> None:
        """What `state` has given: weights by name, the optimizer's tensors by number of the parameter, then by torch's key. Collective."""
        self.network.load_state_dict(weights)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})

    def close(self) -> None:
        """The run is not needed any more: let go of what it holds beside memory. Collective."""

    # The run --------------------------------------------------------------------------------------------------------

    @property
    def has_diverged(self) -> bool:
        """Whether it has given up, or its loss on dev is far above a constant answer's, however much farther it has come from."""
        if self.has_given_up or not self.curve:
            return self.has_given_up
        last = self.curve[-1]["dev_loss"]
        return last is None or last > DIVERGED_LOSS * self.task.baseline_loss

    @property
    def has_given_up(self) -> bool:
        """Whether too many updates in a row had a gradient that is not finite."""
        return self.skipped_in_a_row >= self.config.training.max_skipped

    def next_batch(self) -> Batch:
        """This rank's share of the present update's batch. What is left over at an epoch's end is left out of it."""
        per_epoch = len(self.task.train) // self.batch_size
        epoch, place = divmod(self.updates, per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order_N = epoch, permutation(derive_key(self.seed, "order", epoch), len(self.task.train))
        share = self.batch_size // self.ranks.size
        first = place * self.batch_size + self.ranks.rank * share
        return self.task.train.batch(self._order_N[first : first + share]).to(self.ranks.device)

    def update(self) -> None:
        """One update, or a skipped one: forward, loss and penalty as means over what is asked of the whole batch, step. Collective."""
        weight, batch = self.config.training.norm_stabilizer, self.next_batch()
        answers = self.forward(batch)
        total, _, num_asked = loss_of(answers, batch, self.task.asked)
        squares, num_pairs = norm_stabilizer(answers.y_TBW, batch.lengths_B) if weight else (0.0, 0)
        asked, pairs = self.add_up(num_asked, num_pairs)
        loss = total / asked
        norm = self.step(loss + weight * (squares / max(pairs, 1.0)))
        self.updates += 1
        if norm is not None:
            self.skipped_in_a_row = 0
            self._interval.append((float(loss.detach()), norm))
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1

    def add_up(self, *values: float) -> list[float]:
        """Each summed over the ranks, in float64. Collective."""
        return all_reduce_sum(torch.tensor(values, dtype=torch.float64, device=self.ranks.device), self.ranks).tolist()

    def evaluate(self, split: Split) -> tuple[float, float]:
        """Loss and error of an answer, over a whole split; sums in float64, divided once. Collective."""
        loss_sum, error_sum, count = 0.0, 0.0, 0
        with torch.no_grad():
            for indices_B in torch.arange(len(split)).split(EVALUATED_TOGETHER)[self.ranks.rank :: self.ranks.size]:
                batch = split.batch(indices_B).to(self.ranks.device)
                loss, error, asked = loss_of(self.network(batch), batch, self.task.asked)
                loss_sum, error_sum, count = loss_sum + float(loss.double()), error_sum + float(error), count + asked
        losses, errors, answers = self.add_up(loss_sum, error_sum, count)
        return losses / answers, errors / answers

    def look_at_dev(self) -> None:
        """Put a point on the curve, and keep the weights where it is the best one so far. Collective.

        train_loss: mean over the updates since the last point; gradient_norm: their median, before clipping by norm. None: not finite.
        """
        dev_loss, dev_error = self.evaluate(self.task.dev)
        losses, norms = zip(*self._interval, strict=True) if self._interval else ((math.nan,), (math.nan,))  # nan: all were skipped
        (train_loss,) = self.add_up(math.fsum(losses) / len(losses))
        self._interval = []
        self.curve.append(
            {
                "updates": self.updates,
                "train_loss": _finite(train_loss),
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

    # What goes into files -----------------------------------------------------------------------------------------

    def kept(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and how far it has come, as JSON holds it: everything that going on needs. Collective."""
        assert not self._interval, "kept where dev has just been looked at: no update since then would be in it"
        tensors = self.state() | {f"best/{name}": weight for name, weight in self.best_weights.items()}
        return tensors, {name: getattr(self, name) for name in PROGRESS}

    def go_on(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """From what `kept` has given, whatever the number of ranks then and now. Collective."""
        for name in PROGRESS:
            setattr(self, name, progress[name])
        kinds: dict[str, dict[str, Tensor]] = {"weights": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            kinds[kind][rest] = value
        self.best_weights = kinds["best"]
        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, value in kinds["optimizer"].items():
            index, key = name.split("/")
            optimizer.setdefault(int(index), {})[key] = value
        self.set_state(kinds["weights"], optimizer)

    def result(self) -> dict[str, Any]:
        """What is kept of the run, as JSON holds it. dev_error: of the best point, at best_updates.

        cpu_seconds: of all ranks together, without the looks at dev before the first update and at test.
        """
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

    def look_at_test(self) -> dict[str, float | None]:
        """Loss and error on test, with the weights that were best on dev; the present ones are put back. None: not finite. Collective."""
        present = {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}
        self.network.load_state_dict(self.best_weights)
        loss, error = self.evaluate(self.task.test)
        self.network.load_state_dict(present)
        return {"test_loss": _finite(loss), "test_error": _finite(error)}


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
