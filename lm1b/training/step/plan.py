"""What a step reads, as far as no weight decides it: tokens, samples, distinct ids, and which rank wants which rows.

1. A plan is a pure function of (config, seed, step), made on the host, where the text is. On several ranks they tell each other
   what they want (`request_rows`), over a group that sends what is on the host.
2. So a plan can be made while the step before computes, and a device that computes is told everything in advance: every count is
   known on the host, and nobody ever asks the device for one.
3. `StepPlan.moved` has it on that device. There is room there for as many rows as a step can want at most (`room`), so that
   forward and backward see the same shapes at every step.

T steps, B lanes of this rank, N = T * B positions, S samples, U distinct rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from lm1b.config import Config
from lm1b.data.batches import Batches
from lm1b.distributed import Ranks
from lm1b.model.row_requests import RowRequest, distinct_inputs, distinct_outputs, distinct_shared, request_rows
from lm1b.model.sampler import Sampler, Samples
from lm1b.profiling import part


@dataclass(frozen=True)
class StepPlan:
    """A step's tokens and requests. The first num_samples output rows are the samples.

    inputs_TB, targets_TB: int64 ids. *_positions_TB: int64, their positions among the rows. log_expected_U: float32, of the output rows,
    zeros where there is room for more of them. With the full and the adaptive softmax no output rows are asked for:
    target_positions_TB are the ids, and log_expected_U is None.

    requests: of the input rows, and of the output rows where there are any; one for both where the tables are tied and sampled.
    room: for how many rows of each.
    """

    step: int
    starts_epoch: bool
    inputs_TB: Tensor
    targets_TB: Tensor
    input_positions_TB: Tensor
    target_positions_TB: Tensor
    log_expected_U: Tensor | None
    num_samples: int
    requests: list[RowRequest]
    room: list[int]

    def moved(self, move: Callable[[Tensor], Tensor], *, with_requests: bool) -> StepPlan:
        """The same, every tensor as `move` gives it; inputs_TB stay on the host, where sentence ends are looked for.

        with_requests: these too, for tables that are in the device's memory.
        """
        names = ("targets_TB", "input_positions_TB", "target_positions_TB")
        tensors = {name: move(getattr(self, name)) for name in names}
        log_expected_U = None if self.log_expected_U is None else move(self.log_expected_U)
        requests = [request.moved(move) for request in self.requests] if with_requests else self.requests
        return dataclasses.replace(self, **tensors, log_expected_U=log_expected_U, requests=requests)


def own_lanes(config: Config, ranks: Ranks) -> range:
    """This rank's lanes of the global batch."""
    lanes = config.batches.lanes // ranks.size
    return range(lanes * ranks.rank, lanes * (ranks.rank + 1))


class StepPlanner:
    """Makes the plan of any step. On several ranks each makes the same ones in the same order."""

    def __init__(
        self,
        config: Config,
        sampler: Sampler | None,
        batches: Batches,
        ranks: Ranks,
        *,
        ties_rows: bool,
        keeps_shapes: bool,
    ) -> None:
        """sampler: None for the exact softmaxes. ties_rows: one request for input and output rows.

        keeps_shapes: make room for as many rows as any step can want.
        """
        self.sampler, self.batches = sampler, batches
        self.ranks = ranks.on_host
        self._lanes = own_lanes(config, ranks)
        self._ties_rows, self._keeps_shapes = ties_rows, keeps_shapes

    def plan(self, step: int, group: ProcessGroup | None = None) -> StepPlan:
        """The plan of a step. A collective on several ranks. group: see `request_rows`."""
        with part("batch"):
            batch = self.batches.at(step, self._lanes.start, len(self._lanes))
            inputs_TB, targets_TB = torch.from_numpy(batch.inputs_TB), torch.from_numpy(batch.targets_TB)
        with part("sampler"):
            samples = self.sampler.draw(step) if self.sampler else None
        with part("row fetch"):
            wants, input_positions_N, target_positions_N = self._wants(inputs_TB.flatten(), targets_TB.flatten(), samples)
            requests = request_rows(wants, self.ranks, group)
        room = [self._room(len(ids_U), num_shared, inputs_TB.numel()) for ids_U, num_shared in wants]
        with part("sampler"):
            log_expected_U = self._log_expected(requests[-1].ids_U, samples, room[-1])
        return StepPlan(
            step,
            batch.starts_epoch,
            inputs_TB,
            targets_TB,
            input_positions_N.view_as(inputs_TB),
            target_positions_N.view_as(targets_TB),
            log_expected_U,
            len(samples.ids_S) if samples else 0,
            requests,
            room,
        )

    def _wants(self, inputs_N: Tensor, targets_N: Tensor, samples: Samples | None) -> tuple[list[tuple[Tensor, int]], Tensor, Tensor]:
        """What `request_rows` takes, and where each input and each target is among its rows."""
        if samples is not None and self._ties_rows:
            ids_U, input_positions_N, target_positions_N = distinct_shared(samples, inputs_N, targets_N, self.ranks)
            return [(ids_U, len(samples.ids_S))], input_positions_N, target_positions_N
        input_ids, input_positions_N = distinct_inputs(inputs_N, self.ranks)
        if samples is None:
            return [(input_ids, 0)], input_positions_N, targets_N
        output_ids, target_positions_N = distinct_outputs(samples, targets_N, self.ranks)
        return [(input_ids, 0), (output_ids, len(samples.ids_S))], input_positions_N, target_positions_N

    def _room(self, num_wanted: int, num_samples: int, num_positions: int) -> int:
        """For how many rows: those wanted, or all that could be: a row each position beside the samples, two where they are tied."""
        return num_samples + num_positions * (1 + self._ties_rows) if self._keeps_shapes else num_wanted

    def _log_expected(self, ids_U: Tensor, samples: Samples | None, room: int) -> Tensor | None:
        if self.sampler is None or samples is None:
            return None
        log_expected_U = self.sampler.log_expected(ids_U, samples.num_draws)
        return F.pad(log_expected_U, (0, room - len(ids_U))) if self._keeps_shapes else log_expected_U
