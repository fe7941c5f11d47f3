"""One training step, from the batch to the updated weights.

    fetch rows -> forward and loss -> backward (every micro-batch) -> one all-reduce of "all finite?", "stop?" and the loss
    -> the engine updates the core, or skips -> if and only if it did: tables, moving average, schedule

`step` counts data (batches, sampler, dropout) and always advances; `updates` counts applied updates (schedule, average).
The loss that is differentiated is nats summed over the T steps, averaged over the lanes of the global batch; a table's
gradient is that of the sum of nats over all tokens of the step.

Where a GPU computes, the host waits for it once before the update, to read that all-reduce; DeepSpeed then waits twice more, for its own
look at the gradient. Nothing else does: what a step reads is planned ahead on the host, and norms stay on the device until they are logged.
(`training.gap_every` and the adaptive softmax ask the device too.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lm1b.config import Config
from lm1b.data.batches import Batches
from lm1b.devices import on_device
from lm1b.distributed import Ranks, all_reduce_sum
from lm1b.model.full_softmax import full_softmax_part, places_of_targets
from lm1b.model.language_model import LanguageModel
from lm1b.model.sampled_softmax import SampledRows
from lm1b.model.sampler import Sampler
from lm1b.model.tables import Tables
from lm1b.profiling import part
from lm1b.training.engine.engine import Engine
from lm1b.training.step.plan import own_lanes
from lm1b.training.step.rows import RowPipeline, StepRows
from lm1b.training.step.schedule import learning_rate_factor
from lm1b.training.timing import WAITED_FOR, StepParts

# Of one tensor on one rank. Squares of what is below it, summed in an accumulator, stay far from float32's end (3e38): a larger
# one would leave the accumulator infinite, and its weights frozen for good.
LARGEST_NORM = 1e18


@dataclass(frozen=True)
class StepResult:
    """What one step did, the same on every rank."""

    nats: float  # the loss (sampled, or full), summed over the step's tokens of all ranks; finite parts only where the step was skipped
    applied: bool
    stop: bool  # some rank was asked to stop
    gradient_norm: Tensor | float  # of the core, before clipping; a float() of it waits for the device
    largest_activation: float
    learning_rate_factor: float
    not_finite: list[str]  # "rank 1: loss", ...; empty if and only if applied
    lanes_restarted: int  # lanes of all ranks whose state was not finite, after a skipped step
    gap: tuple[float, float] | None  # sampled and true nats a word on the same few positions
    # Seconds that each rank waited, by part (timing.WAITED_FOR): status and row gradients are of the step before.
    waiting_RP: list[list[float]]


class TrainingStep:
    """Holds what a step reads and changes; `run()` does one step."""

    def __init__(
        self,
        config: Config,
        engine: Engine,
        tables: Tables,
        sampler: Sampler | None,
        batches: Batches,
        ranks: Ranks,
        total_steps: int,
    ) -> None:
        """sampler: None for the exact softmaxes. total_steps: of the training, which the schedule is laid over."""
        self.config, self.engine, self.tables, self.sampler, self.batches, self.ranks = config, engine, tables, sampler, batches, ranks
        self.total_steps = total_steps
        self.lanes = own_lanes(config, ranks)
        self.waiting = engine.waiting
        self.parts = StepParts(ranks.device)
        self._rows = RowPipeline(config, tables, sampler, batches, ranks, engine.dtype)
        # What is looked at on every rank, in the order in which trouble spreads.
        self._checked = ["recurrent state", "loss", *(f"gradient of {name}" for name in [*self._rows.names, *engine.names])]
        self.step = 0
        self.updates = 0
        self.model: LanguageModel = engine.module  # type: ignore[assignment]
        self.carry = self.zero_carry()

    def restore(self, step: int, updates: int, carry: dict[str, Tensor]) -> None:
        """Go on after so many steps. carry: the state of all lanes of the global batch."""
        self.step, self.updates = step, updates
        lanes = slice(self.lanes.start, self.lanes.stop)
        self.carry = {name: state[lanes].to(self.ranks.device, self.engine.dtype, copy=True) for name, state in carry.items()}

    def close(self) -> None:
        """End the thread that fetches rows ahead. Every rank calls it."""
        self._rows.close()

    def zero_carry(self) -> dict[str, Tensor]:
        """State of this rank's lanes at an epoch's start."""
        return self.model.zero_state(len(self.lanes), self.ranks.device)

    def zero_loss(self) -> Tensor:
        """A forward pass over one made-up token in every lane, its loss times 0: what `Engine.prime` needs."""
        device, settings = self.ranks.device, self.config.model
        input_rows = torch.zeros(1, settings.embedding, device=device, requires_grad=True)
        rows_UP, bias_U1 = (torch.zeros(2, width, device=device, requires_grad=True) for width in (self.model.output_width, 1))
        output = None if self.model.adaptive else SampledRows(rows_UP, bias_U1, torch.zeros(2, device=device), 1)
        lanes = len(self.lanes) // self.engine.micro_batches
        state = self.model.zero_state(lanes, device)
        positions = torch.zeros(1, lanes, dtype=torch.int64, device=device)
        targets = torch.ones(lanes, dtype=torch.int64, device=device)
        parts = self.engine.forward(input_rows, positions, output, targets, state, step=0)
        return parts.nats.float() * 0.0

    def run(self, *, stop_requested: bool = False, check_gap: bool = False) -> StepResult:
        """One step. Every rank calls it at the same time."""
        engine = self.engine
        with self.waiting.on("rows"), self.parts.on("rows"):
            rows = self._rows.take(self.step, is_last=self.step + 1 >= self.total_steps)
        if rows.plan.starts_epoch:
            self.carry = self.zero_carry()
        nats, new_carry, largest_activation, hidden_NP = self._forward_and_backward(rows)
        gap = self._check_gap(hidden_NP, rows) if check_gap and self.sampler else None
        finite_B = torch.stack([torch.isfinite(tensor).all(dim=1) for tensor in new_carry.values()]).all(dim=0)

        # A leaf's gradient carries the loss scale and is not averaged over ranks, while the core's is both unscaled and averaged.
        row_scale = self.config.tables.gradient_scale * self.config.batches.lanes / (self.ranks.size * engine.loss_scale)
        with part("status"), self.parts.on("checks"):
            row_norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in rows.gradients()]) * row_scale
            norms = torch.cat([row_norms, engine.own_gradient_norms()])
            status = self._reduce_status(nats, finite_B, norms, largest_activation, stop_requested)
        factor = learning_rate_factor(self.config.schedule, self.updates, self.total_steps)
        with part("core update"), self.parts.on("update"):
            applied = engine.step(finite=not status.not_finite, learning_rate=self.config.optimizer.learning_rate * factor)
            if applied and self.config.training.ema_decay is not None:
                # A full-length average would hold the initial weights for a thousand updates: it grows with the run.
                engine.update_ema(min(self.config.training.ema_decay, (1 + self.updates) / (10 + self.updates)))
        if applied:
            with part("table update"), self.parts.on("update"):
                self._rows.apply(rows, self.waiting, learning_rate=self.config.tables.learning_rate * factor, gradient_scale=row_scale)
            self.updates += 1
        else:
            self._rows.drop(rows)
            # Lanes whose state is not finite restart from zero.
            new_carry = {name: torch.where(finite_B.unsqueeze(1), tensor, 0.0) for name, tensor in new_carry.items()}
        self.carry = new_carry
        self.step += 1
        norm = engine.gradient_norm() if applied else math.nan
        return StepResult(
            status.nats,
            applied,
            status.stop,
            norm,
            status.largest_activation,
            factor,
            # DeepSpeed's own guard sees the sum over ranks and its norm: which rank is to blame cannot be told any more.
            status.not_finite or ([] if applied else ["all ranks: the core's gradient once summed"]),
            0 if applied else status.lanes_not_finite,
            gap if gap is not None and math.isfinite(sum(gap)) else None,
            status.waiting_RP,
        )

    def _forward_and_backward(self, rows: StepRows) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Every micro-batch in turn. Returns nats summed (float64), the new state of all lanes, the largest activation, hidden_NP."""
        micro_lanes = len(self.lanes) // self.engine.micro_batches
        nats = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        states, activations, hiddens_TBP = [], [], []
        plan, output = rows.plan, rows.output(self.ranks)
        for first in range(0, len(self.lanes), micro_lanes):
            lanes = slice(first, first + micro_lanes)
            with self.parts.on("forward"):
                parts = self.engine.forward(
                    rows.input_rows_UD,
                    plan.input_positions_TB[:, lanes],
                    output,
                    plan.target_positions_TB[:, lanes],
                    {name: tensor[lanes] for name, tensor in self.carry.items()},
                    step=self.step,
                    first_lane=self.lanes.start + first,
                    resets_TB=self._resets(plan.inputs_TB[:, lanes]),
                )
            with part("backward"), self.parts.on("backward"):
                self.engine.backward((parts.nats / micro_lanes).float())
            nats += parts.nats.detach()
            states.append(parts.state)
            activations.append(parts.largest_activation.float())
            hiddens_TBP.append(parts.hidden_NP.unflatten(0, (-1, micro_lanes)))
        carry = {name: torch.cat([state[name] for state in states]) for name in self.carry}
        return nats, carry, torch.stack(activations).max(), torch.cat(hiddens_TBP, dim=1).flatten(0, 1)

    def _resets(self, inputs_TB: Tensor) -> Tensor | None:
        """On the host, as the inputs are there: when a state is reset decides which stretches of time are computed together."""
        return inputs_TB == self.batches.end_id if self.config.batches.state == "reset" else None

    def _reduce_status(self, nats: Tensor, finite_B: Tensor, norms: Tensor, largest_activation: Tensor, stop: bool) -> _Status:
        """One all-reduce: the loss, the stop signal, and from every rank what was not finite, its largest activation, its waiting.

        norms: of this rank's gradients, the tables' and then the core's parameters'.
        """
        ranks = self.ranks
        names = self._checked
        width = len(names) + 1 + len(WAITED_FOR)
        # A norm is finite only where every element is. (NaN is not below anything.)
        bad = 1.0 - torch.cat([torch.stack([finite_B.all(), torch.isfinite(nats)]), norms < LARGEST_NORM]).double()
        activation = largest_activation.double().nan_to_num(nan=math.inf, posinf=math.inf)
        vector = torch.zeros(3 + ranks.size * width, dtype=torch.float64, device=ranks.device)
        vector[0] = nats.nan_to_num(0.0, 0.0, 0.0)
        vector[1] = float(stop)
        vector[2] = (~finite_B).sum()
        start = 3 + ranks.rank * width
        waited = on_device(torch.tensor(self.waiting.take(), dtype=torch.float64), ranks.device)
        vector[start : start + width] = torch.cat([bad, activation.reshape(1), waited])
        with self.waiting.on("status"):
            values = all_reduce_sum(vector, ranks).tolist()  # here the host waits for the device
        not_finite, activations, waiting_RP = [], [], []
        for rank in range(ranks.size):
            there = values[3 + rank * width : 3 + (rank + 1) * width]
            flags = there[: len(names)]
            activations.append(there[len(names)])
            waiting_RP.append(there[len(names) + 1 :])
            not_finite += [f"rank {rank}: {name}" for name, flag in zip(names, flags, strict=True) if flag]
        return _Status(values[0], values[1] > 0, int(values[2]), not_finite, max(activations), waiting_RP)

    @torch.no_grad()
    def _check_gap(self, hidden_NP: Tensor, rows: StepRows) -> tuple[float, float]:
        """Sampled and true nats a word on a few of the first rank's positions, evenly spread."""
        targets_N = rows.plan.targets_TB.flatten()
        count = min(self.config.training.gap_positions, len(targets_N))
        chosen = torch.linspace(0, len(targets_N) - 1, count, device=targets_N.device).long()
        hidden_KP, targets_K = hidden_NP[chosen], targets_N[chosen]
        positions_K = rows.plan.target_positions_TB.flatten()[chosen]
        fetched = rows.output(self.ranks)
        assert isinstance(fetched, SampledRows)
        sampled = fetched._replace(rows_UP=fetched.rows_UP.detach(), bias_U1=fetched.bias_U1.detach()).nats(hidden_KP, positions_K)
        if self.ranks.size > 1:
            dist.broadcast(hidden_KP, 0)
            dist.broadcast(targets_K, 0)
            dist.broadcast(sampled, 0)
        output, bias = self.tables.output, self.tables.bias
        assert output is not None
        assert bias is not None
        places_K = places_of_targets(targets_K, self.ranks)
        there = output.rows.device  # the host, perhaps
        block = self.config.evaluation.vocabulary_block
        if there != hidden_KP.device:  # a CPU may take very long over half precision
            hidden_KP = hidden_KP.to(there, torch.float32)
        own_part = full_softmax_part(hidden_KP, output.rows, bias.rows.squeeze(1), places_K.to(there), block)
        return float(sampled) / count, float(own_part.reduce(self.ranks).nats().sum()) / count


@dataclass(frozen=True)
class _Status:
    nats: float
    stop: bool
    lanes_not_finite: int
    not_finite: list[str]
    largest_activation: float
    waiting_RP: list[list[float]]
