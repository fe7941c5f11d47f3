"""Vocabulary tables: input rows, output rows and output bias, cut by rows over the ranks, with sparse Adagrad.

Row r lives on rank r % N, at place r // N there, in float32 beside its accumulator. A training step:

1. finds the distinct ids that each rank needs, and tells their owners (row_requests.py);
2. fetches those rows, float32 tensors rows_UD, sent in the compute precision (row_exchange.py);
3. has autograd leave their gradient in rows_UD.grad, summed over micro-batches, and sends it back to the owners (row_exchange.py);
4. `table.update`s: one Adagrad step to just these rows and accumulators, a cache's worth at a time.

Example: of 10 words and N = 2 ranks, rank 1 holds the rows of ids 1, 3, 5, 7, 9 at its places 0 to 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lm1b.config import Config
from lm1b.distributed import Ranks
from lm1b.model.huge_pages import lasting_zeros
from lm1b.model.kernels import triton_kernels
from lm1b.randomness import derive_key, uniform

# Elements worked on at a time: with a handful of float32 temporaries this stays within a core's second-level cache.
_BLOCK_ELEMENTS = 1 << 16
# On a GPU small blocks would only cost launches.
_BLOCK_ELEMENTS_GPU = 1 << 24
_EPSILON = 1e-10  # Adagrad's, in the denominator


def block_rows(table: Tensor) -> int:
    """How many rows of `table` are worked on at a time."""
    return max(1, (_BLOCK_ELEMENTS if table.device.type == "cpu" else _BLOCK_ELEMENTS_GPU) // table.shape[1])


class VocabularyTable:
    """One table, cut by rows. Not a module and no parameter of DeepSpeed's, which would keep all rows on every rank.

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
        self, updated_places: Tensor, gradients: Iterable[tuple[Tensor, Tensor]], *, learning_rate: float, gradient_scale: float = 1.0
    ) -> None:
        """One Adagrad update (Duchi 2011) of the rows that any rank has sent a gradient of.

        updated_places: int64, which these are. gradients: (places, float32 gradient of those rows), together of them all; each counts times
        gradient_scale, and may be overwritten. See `GradientExchange.sums`.
        """
        keep = self.before_update  # once: the thread that saves a checkpoint takes it away when it has all
        if keep is not None:
            keep(self.name, updated_places)
        for places, gradient in gradients:
            if kernels := triton_kernels(self.rows.device):
                scales = {"scale": gradient_scale, "learning_rate": learning_rate, "epsilon": _EPSILON}
                kernels.adagrad_rows(self.rows, self.accumulators, places, gradient, **scales)
            else:
                self._update(places, gradient.mul_(gradient_scale), learning_rate)

    def _update(self, places: Tensor, gradient: Tensor, learning_rate: float) -> None:
        accumulators = self.accumulators.index_select(0, places).addcmul_(gradient, gradient)
        self.accumulators.index_copy_(0, places, accumulators)
        rows = self.rows.index_select(0, places).addcdiv_(gradient, accumulators.sqrt_().add_(_EPSILON), value=-learning_rate)
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
    def create(config: Config, vocabulary_size: int, ranks: Ranks, *, initialize: bool = True) -> Tables:
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
        outputs = inputs if config.model.tie_tables else table("output_table", config.model.output_width, scale)
        return Tables(inputs, outputs, table("output_bias", 1, 0.0))

    @property
    def are_tied(self) -> bool:
        """Whether input and output rows are one table."""
        return self.output is self.input

    def all(self) -> list[VocabularyTable]:
        """Each once: input table, output table, output bias, as far as they are there."""
        return list(dict.fromkeys(table for table in (self.input, self.output, self.bias) if table is not None))
