"""One table's part of a training step, for tests: ask for rows, fetch them, send a gradient back and update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lm1b.distributed import Ranks, single_process
from lm1b.model.row_exchange import GradientExchange, RowGradient, allocate_rows, fetch_rows
from lm1b.model.row_formats import Plain, RowFormat
from lm1b.model.row_requests import RowRequest, request_rows
from lm1b.model.tables import VocabularyTable

ALONE = single_process()


def made_table(num_rows: int = 50, width: int = 4, name: str = "a_table") -> VocabularyTable:
    """Random rows, on one rank."""
    return VocabularyTable(name, num_rows, width, seed=1, initial_scale=1.0, initial_accumulator=1.0, ranks=ALONE)


def asked(ids_U: Tensor, ranks: Ranks = ALONE, num_shared: int = 0) -> RowRequest:
    return request_rows([(ids_U, num_shared)], ranks)[0]


def fetched(table: VocabularyTable, request: RowRequest, dtype: torch.dtype = torch.float32) -> Tensor:
    fetches = allocate_rows([(table, request, dtype)], [0])
    fetch_rows(fetches, [request.route], table.ranks)
    return fetches[0].rows_UD


def apply(table: VocabularyTable, request: RowRequest, gradient_UD: Tensor, form: RowFormat | None = None, **settings: Any) -> None:
    """form: in which the gradient travels, float32 where not said. settings: of `VocabularyTable.update`."""
    exchange = GradientExchange([RowGradient(request, gradient_UD, form or Plain(torch.float32))], table.ranks)
    table.update(request.updated_places, exchange.sums(0), **settings)
