"""Vocabulary tables: input rows, output rows and output bias, cut by rows over the ranks, with sparse Adagrad.

Row r lives on rank r % N, at place r // N there, in float32 beside its accumulator. A training step:

1. `distinct_inputs` and `distinct_outputs` find the ids that this rank needs, and `request_rows` tells the owners.
2. `begin_rows` makes room for them, one float32 tensor rows_UD a table, and `bring_rows` brings them, sent in the compute precision.
3. Autograd leaves the gradient of those rows in rows_UD.grad, summed over micro-batches.
4. A `GradientExchange` sends it back; `table.update` adds one Adagrad step to just these rows and accumulators, a cache's worth
   at a time.

What travels, and how, is row_exchange.py's. U distinct ids of a rank's request, D width of a row, N ranks or positions (as said).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lm1b.config import Config
from lm1b.distributed import Ranks
from lm1b.model.huge_pages import lasting_zeros
from lm1b.model.kernels import triton_kernels
from lm1b.model.row_exchange import Bringing, GradientExchange, RowRequest, block_rows, take_rows
from lm1b.model.sampler import Samples
from lm1b.randomness import derive_key, uniform


class VocabularyTable:
    """One table, cut by rows. Not a module and no parameter of DeepSpeed's (see design: state per rank falls as 1/N).

    rows, accumulators: float32 [rows of this rank, width], contiguous; `local_ids()` says which ids they are. Rows start
    uniform in +-initial_scale * sqrt(3 / width), keyed (seed, name, id, column), so the cut does not change them.
    """

    def __init__(
        self,
        name: str,
        num_rows: int,
        width: int,
        *,
        seed: int,
        initial_scale: float,
        initial_accumulator: float,
        ranks: Ranks,
    ) -> None:
        """width 1 is a bias; initial_scale 0 starts with zeros."""
        self.name = name
        self.num_rows = num_rows
        self.width = width
        self.ranks = ranks
        # Told of (name, places) before they change: whoever is still copying the table keeps them (a checkpoint being saved).
        self.before_update: Callable[[str, Tensor], None] | None = None
        num_local = len(range(ranks.rank, num_rows, ranks.size))
        self.rows = lasting_zeros(num_local, width, ranks.device)
        self.accumulators = lasting_zeros(num_local, width, ranks.device).fill_(initial_accumulator)
        if initial_scale:
            self._initialize(derive_key(seed, "table", name), initial_scale * math.sqrt(3.0 / width))

    def _initialize(self, key: int, limit: float) -> None:
        """Fill the rows block by block, so that no second table ever exists."""
        columns = torch.arange(self.width, device=self.rows.device)
        ids = self.local_ids()
        block = block_rows(self.rows)
        for start in range(0, len(ids), block):
            counters = ids[start : start + block, None] * self.width + columns
            self.rows[start : start + block] = (uniform(key, counters) * 2.0 - 1.0) * limit

    def local_ids(self) -> Tensor:
        """Ids of this rank's rows in order, int64, on its device."""
        # A table of fewer rows than ranks leaves the last ranks without any.
        return torch.arange(min(self.ranks.rank, self.num_rows), self.num_rows, self.ranks.size, device=self.rows.device)

    def update(
        self, exchange: GradientExchange, index: int, *, learning_rate: float, epsilon: float = 1e-10, gradient_scale: float = 1.0
    ) -> None:
        """One Adagrad update (Duchi 2011) of the rows that any rank has sent a gradient of.

        index: of this table among the exchange's. The gradient is its sum over ranks times gradient_scale.
        """
        if self.before_update is not None:
            self.before_update(self.name, exchange.gradients[index].request.updated_places)
        for places, gradient in exchange.sums(index):
            if kernels := triton_kernels(self.rows.device):
                scales = {"scale": gradient_scale, "learning_rate": learning_rate, "epsilon": epsilon}
                kernels.adagrad_rows(self.rows, self.accumulators, places, gradient, **scales)
            else:
                self._update(places, gradient.mul_(gradient_scale), learning_rate, epsilon)

    def _update(self, places: Tensor, gradient: Tensor, learning_rate: float, epsilon: float) -> None:
        accumulators = self.accumulators.index_select(0, places).addcmul_(gradient, gradient)
        self.accumulators.index_copy_(0, places, accumulators)
        rows = self.rows.index_select(0, places).addcdiv_(gradient, accumulators.sqrt_().add_(epsilon), value=-learning_rate)
        self.rows.index_copy_(0, places, rows)


@dataclass(frozen=True)
class Tables:
    """The vocabulary tables of a model, this rank's rows of each.

    Tied: output is the input table itself. With the adaptive softmax: output and bias are None.
    """

    input: VocabularyTable
    output: VocabularyTable | None
    bias: VocabularyTable | None

    @staticmethod
    def create(config: Config, vocabulary_size: int, output_width: int, ranks: Ranks, *, initialize: bool = True) -> Tables:
        """Initial tables: rows uniform, bias zero. initialize False: rows zero too, for a checkpoint's to take their place.

        In the memory of what computes, or of the host: `communication.tables_on_host`.
        """
        if config.communication.tables_on_host:
            ranks = ranks.on_host
        scale = config.tables.initial_scale if initialize else 0.0
        accumulator = config.tables.initial_accumulator

        def table(name: str, width: int, initial_scale: float) -> VocabularyTable:
            return VocabularyTable(
                name,
                vocabulary_size,
                width,
                seed=config.run.seed,
                initial_scale=initial_scale,
                initial_accumulator=accumulator,
                ranks=ranks,
            )

        inputs = table("input_table", config.model.embedding, scale)
        if config.softmax.kind == "adaptive":
            return Tables(inputs, None, None)
        outputs = inputs if config.model.tie_tables else table("output_table", output_width, scale)
        return Tables(inputs, outputs, table("output_bias", 1, 0.0))

    @property
    def are_tied(self) -> bool:
        return self.output is self.input

    def all(self) -> list[VocabularyTable]:
        """Each once: input table, output table, output bias, as far as they are there."""
        return list(dict.fromkeys(table for table in (self.input, self.output, self.bias) if table is not None))


def distinct_inputs(inputs_N: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The distinct ids among `inputs_N` (int64, any shape), grouped by owner, and each input's place among them."""
    keys_U, positions = torch.unique(_keys(inputs_N, ranks), return_inverse=True)
    return _ids(keys_U, ranks), positions


def distinct_outputs(samples: Samples, targets_N: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """The samples, grouped by owner and rising, and after them the targets that are none of them, likewise; each target's place there.

    targets_N: int64, any shape. A place is < S if and only if the target was sampled.
    """
    num_samples = len(samples.ids_S)
    keys_S, target_keys_N = _keys(samples.ids_S, ranks), _keys(targets_N, ranks)
    if ranks.size > 1:
        keys_S = keys_S.sort().values
    places = torch.searchsorted(keys_S, target_keys_N).clamp_(max=num_samples - 1)
    is_sampled = keys_S[places] == target_keys_N
    others, places_of_others = torch.unique(target_keys_N[~is_sampled], return_inverse=True)
    places[~is_sampled] = places_of_others + num_samples
    return _ids(torch.cat([keys_S, others]), ranks), places


def distinct_shared(samples: Samples, inputs_N: Tensor, targets_N: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """For tied tables: as `distinct_outputs`, the inputs taken for targets too. -> ids, each input's place, each target's place."""
    ids_U, places = distinct_outputs(samples, torch.cat([inputs_N.flatten(), targets_N.flatten()]), ranks)
    return ids_U, places[: inputs_N.numel()], places[inputs_N.numel() :]


def begin_rows(
    wanted: Sequence[tuple[VocabularyTable, RowRequest, torch.dtype]],
    room: Sequence[int] | None = None,
    *,
    copied_to: torch.device | None = None,
    takes_own: bool = True,
) -> list[Bringing]:
    """Room for the requested rows of each table; alone on one rank the rows are there at once, unless takes_own is False.

    room: of each table, for how many rows; what is not asked for stays 0. None: for just those asked for. copied_to: the device that
    they will be copied to, where the tables are in the host's memory and it computes.
    """
    brought = []
    is_pinned = copied_to is not None and copied_to.type == "cuda"
    for i, (table, request, dtype) in enumerate(wanted):
        num_rows = len(request.ids_U)
        rows_UD = torch.empty(max(num_rows, room[i] if room else 0), table.width, device=table.rows.device, pin_memory=is_pinned)
        if len(rows_UD) > num_rows:
            rows_UD[num_rows:] = 0.0
        if request.ranks.size == 1 and takes_own:
            take_rows(table.rows, request.ids_U, rows_UD, dtype)
        brought.append(Bringing(table.rows, dtype, rows_UD))
    return brought


def _keys(ids: Tensor, ranks: Ranks) -> Tensor:
    """Integers that sort by owner first and by id then: owner * 2^32 + place there."""
    return ids if ranks.size == 1 else (ids % ranks.size << 32) + torch.div(ids, ranks.size, rounding_mode="floor")


def _ids(keys: Tensor, ranks: Ranks) -> Tensor:
    """The ids that `_keys` made these keys of."""
    return keys if ranks.size == 1 else (keys & (1 << 32) - 1) * ranks.size + (keys >> 32)
