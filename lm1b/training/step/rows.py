"""The table rows of a training step: fetched ahead of it, and their gradients sent back behind it.

On several ranks a thread (background.py) communicates while the step computes:

1. While step t computes, step t+1 is planned (plan.py), and those of its rows come that no rank's step t touches:
   `split_routes` asks their owners, who know what is wanted of them in step t.
2. The other rows of step t+1 come when step t has updated them: the step waits for these alone.
3. The gradient of the output rows leaves as soon as the softmax's backward is done, behind the recurrent layers' backward; that
   of the input rows behind the core's update. Owners apply them once the step is known to be finite.

With the full softmax only input rows travel: every step takes this rank's whole part of output table and bias as it lies, and
applies their gradients to it, without sending any. With the adaptive softmax there are no output rows. Tied tables are one table, one
request for the union of rows, one update.

So every row is as new as without overlap, the numbers are the same bit for bit, and the same rows travel; only the marks of
point 1 are more, a byte a row. `communication.overlap=false` does all of it in order, in the step's own thread.

Where a GPU computes, on one rank too, the thread only plans: NCCL wants one order over all process groups and threads, so rows and
gradients travel in the step's own. Every count is in the plan, so nothing of this waits for the device.

With `communication.tables_on_host` the tables of a GPU are in the host's memory, and all of the above goes on there as on a CPU, on
one rank too: the thread fetches the next step's rows into pinned memory while the GPU computes. A step's leaves are copies of them
on the GPU, and their gradients are copied back.

T steps, B lanes of this rank, U distinct rows, D and P widths.
"""

from __future__ import annotations

import functools
import weakref
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lm1b.config import Config
from lm1b.data.batches import Batches
from lm1b.devices import computes_apart, on_device, pinned
from lm1b.distributed import Ranks, single_process
from lm1b.model.full_softmax import OwnRows
from lm1b.model.row_exchange import GradientExchange, RowFetch, RowGradient, allocate_rows, fetch_rows
from lm1b.model.row_formats import Plain, RowFormat, StochasticInt8
from lm1b.model.row_requests import Route, RowRequest, request_rows, split_routes
from lm1b.model.sampled_softmax import SampledRows
from lm1b.model.sampler import Sampler
from lm1b.model.tables import Tables, VocabularyTable
from lm1b.profiling import part
from lm1b.randomness import derive_key
from lm1b.training.step.background import Background
from lm1b.training.step.plan import StepPlan, StepPlanner
from lm1b.training.timing import Waiting


@dataclass
class StepRows:
    """What a step reads of batch and tables.

    With the full softmax the output rows are all of this rank's; with the adaptive one there are none. requests, fetches: of each of
    `RowPipeline.leaf_tables`; late: what of them still has to come. leaves: the rows where they are computed with, float32 [U, width].
    sent: gradients on their way, by group.
    """

    plan: StepPlan
    requests: list[RowRequest]
    fetches: list[RowFetch] = field(default_factory=list)
    late: list[Route] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    sent: dict[str, Future[GradientExchange]] = field(default_factory=dict)

    @property
    def input_rows_UD(self) -> Tensor:
        """The leaf that the recurrent layers read."""
        return self.leaves[0]

    def output(self, ranks: Ranks) -> SampledRows | OwnRows | None:
        """What the softmax reads, the input rows themselves among it where tables are tied and sampled. ranks: of the full softmax."""
        if len(self.leaves) == 1:
            return None
        rows_UP, bias_U1 = self.leaves[-2:]
        if self.plan.log_expected_U is None:
            return OwnRows(rows_UP, bias_U1, ranks)
        return SampledRows(rows_UP, bias_U1, self.plan.log_expected_U, self.plan.num_samples)

    def gradients(self) -> list[Tensor]:
        """The leaves' gradients after backward; float32."""
        gradients = [leaf.grad for leaf in self.leaves]
        return [gradient for gradient in gradients if gradient is not None]


class RowPipeline:
    """Brings every step's rows and takes their gradients back. Every rank makes the same calls.

    leaf_tables: of each leaf of a step: input rows, output rows and bias, as far as the softmax has them; rows and bias where they are tied
    and sampled. names: theirs.
    """

    def __init__(
        self,
        config: Config,
        tables: Tables,
        sampler: Sampler | None,
        batches: Batches,
        ranks: Ranks,
        dtype: torch.dtype,
    ) -> None:
        """sampler: None for the exact softmaxes. dtype: in which rows travel, the computing precision."""
        self._device, self.dtype, self._is_sampled = ranks.device, dtype, sampler is not None
        self._is_apart = computes_apart(ranks.device)
        self._only_plans = self._is_apart and not config.communication.tables_on_host
        self._copies_rows = self._is_apart and config.communication.tables_on_host
        self.ranks = ranks.on_host if self._copies_rows else ranks  # where the tables are
        self._is_shared = tables.are_tied and sampler is not None  # one leaf for input and output rows
        leaves = (tables.input, None if self._is_shared else tables.output, tables.bias)
        self.leaf_tables = [table for table in leaves if table is not None]
        self.names = [table.name for table in self.leaf_tables]
        self._seed, self._micro_batches = config.run.seed, config.training.micro_batches
        self._gradient_format = config.communication.row_gradients
        self._background = Background(ranks, is_on=config.communication.overlap)
        self._travels_behind = self._background.is_on and not self._only_plans
        self._rows_group = None if self._only_plans else self._background.group
        self._planner = StepPlanner(config, sampler, batches, ranks, ties_rows=self._is_shared, keeps_shapes=self._is_apart)
        self._ahead: tuple[int, Future[StepRows]] | None = None
        # What is sent together (indices of leaves), in the order in which it is waited for.
        if self._is_shared or (sampler is not None and not self._travels_behind):
            self._groups = {"all": list(range(len(self.leaf_tables)))}
        else:
            self._groups = {"output": [1, 2], "input": [0]} if tables.output is not None else {"input": [0]}
        # Tied under the full softmax: one table, but a gradient of some rows that travels, and one of all rows that does not.
        self._input_joins_output = tables.are_tied and sampler is None
        # The output rows' part in what is sent: none with the full softmax, as if there were no other ranks.
        self._output_ranks = self.ranks if sampler else single_process(ranks.device)
        # All of this rank's output rows, by their places, wanted by nobody else: what every step of the full softmax takes.
        self._everything: list[RowRequest] = []
        if sampler is None and len(self.leaf_tables) > 1:
            places = torch.arange(len(self.leaf_tables[1].rows), device=ranks.device)
            self._everything = request_rows([(places, 0)], self._output_ranks) * 2
        # Of each row here, whether the present step touches it. The bias goes the output rows' way.
        self._touched = {table: torch.zeros(len(table.rows), dtype=torch.bool, device=table.rows.device) for table in self.leaf_tables}

    def take(self, step: int, *, is_last: bool) -> StepRows:
        """The rows of a step, as leaves. Unless it is the last, those of the next one are then begun."""
        ahead, self._ahead = self._ahead, None
        with part("communication"):  # and whatever else the thread has still to do
            rows = ahead[1].result() if ahead else None
        if rows is None or rows.plan.step != step:  # the first step, or the step was set anew
            rows = self._background.submit(lambda: self._prepare(step, None)).result()
        elif rows.late:
            with part("row fetch"):
                late = functools.partial(fetch_rows, rows.fetches, rows.late, self.ranks, self._rows_group)
                self._background.submit(late).result()
        move = functools.partial(on_device, device=self._device)
        if self._only_plans:
            rows = self._with_rows(rows.plan.moved(move, with_requests=True), None)
        elif self._copies_rows:
            rows.plan = rows.plan.moved(move, with_requests=False)
        if not self._is_sampled:
            # The tables themselves, which nobody changes until the step has its gradients.
            rows.fetches += [RowFetch(table.rows, self.dtype, table.rows.detach()) for table in self.leaf_tables[1:]]
        rows.leaves = [move(each.rows_UD) if self._copies_rows else each.rows_UD for each in rows.fetches]
        for leaf in rows.leaves:
            leaf.requires_grad_()
        if self._travels_behind:
            for name, indices in self._groups.items():
                self._send_when_ready(rows, name, indices)
        if self._background.is_on and not is_last:
            self._ahead = step + 1, self._background.submit(lambda: self._prepare(step + 1, rows))
        return rows

    def apply(self, rows: StepRows, waiting: Waiting, *, learning_rate: float, gradient_scale: float) -> None:
        """Send the gradients, as far as they are not on their way, and update the tables. See `VocabularyTable.update`."""
        update = functools.partial(VocabularyTable.update, learning_rate=learning_rate, gradient_scale=gradient_scale)
        groups = dict(self._groups)
        if self._input_joins_output:
            of_all_rows = rows.leaves[1].grad
            assert of_all_rows is not None
            for places, gradient in self._sent(rows, "input", groups.pop("input"), waiting).sums(0):
                of_all_rows.index_add_(0, places, gradient)
        for name, indices in groups.items():
            exchange = self._sent(rows, name, indices, waiting)
            for place, index in enumerate(indices):
                update(self.leaf_tables[index], rows.requests[index].updated_places, exchange.sums(place))

    def _sent(self, rows: StepRows, name: str, indices: list[int], waiting: Waiting) -> GradientExchange:
        """The gradients of a group once they are here; sent now where they are not on their way."""
        with waiting.on("row gradients"):
            if name not in rows.sent:
                self._send(rows, name, indices)
            return rows.sent[name].result()

    def drop(self, rows: StepRows) -> None:
        """Forget the gradients of a step that is skipped."""
        for future in rows.sent.values():
            future.result()

    def close(self) -> None:
        """End the thread, if there is one. Every rank calls it."""
        self._background.close()
        self._ahead = None

    def _prepare(self, step: int, during: StepRows | None) -> StepRows:
        """The plan of a step, and its rows where they come with it: while the step `during` computes, those that it does not touch."""
        plan = self._planner.plan(step, self._background.group)
        pin = functools.partial(pinned, device=self._device)
        if self._only_plans:
            return StepRows(plan.moved(pin, with_requests=True), [])
        if self._copies_rows:
            plan = plan.moved(pin, with_requests=False)
        return self._with_rows(plan, during)

    def _with_rows(self, plan: StepPlan, during: StepRows | None) -> StepRows:
        """Bring the rows of a plan. See `_prepare`."""
        # Of each leaf: rows and bias of a request, or of the whole table.
        leaves = [*range(len(plan.requests)), *range(len(plan.requests))[-1:]] if self._is_sampled else [0]
        requests = [plan.requests[i] for i in leaves]
        with part("row fetch"):
            dtypes = [torch.float32 if table.width == 1 else self.dtype for table in self.leaf_tables]
            wanted = list(zip(self.leaf_tables, requests, dtypes, strict=False))
            fetches = allocate_rows(wanted, [plan.room[i] for i in leaves], copied_to=self._device if self._copies_rows else None)
            late = self._fetch(fetches, requests, during)
        return StepRows(plan, [*requests, *self._everything], fetches, late)

    def _fetch(self, fetches: list[RowFetch], requests: list[RowRequest], during: StepRows | None) -> list[Route]:
        """Bring all rows, or those that the step `during` does not touch. -> the routes of the rest, one a leaf."""
        group, late = self._rows_group, []
        distinct = list(dict.fromkeys(requests))
        routes = [request.route for request in distinct]
        if during is not None:
            touched = [self._touched[self.leaf_tables[requests.index(request)]] for request in distinct]
            self._mark(during, True)
            routes, late = split_routes(routes, touched, self.ranks, group)
            self._mark(during, False)
        places = [distinct.index(request) for request in requests]
        fetch_rows(fetches, [routes[place] for place in places], self.ranks, group)
        return [late[place] for place in places] if late else []

    def _mark(self, rows: StepRows, is_touched: bool) -> None:
        """Note what a step touches, or forget it."""
        for table, request in zip(self.leaf_tables, rows.requests, strict=True):
            if table.width > 1:
                self._touched[table][request.updated_places] = is_touched

    def _send_when_ready(self, rows: StepRows, name: str, indices: list[int]) -> None:
        """Have the gradients of some of the tables sent as soon as the last micro-batch's backward has left them."""
        missing = len(indices) * self._micro_batches
        # A hook that holds its own leaf is never freed, not even by the garbage collector.
        held = weakref.ref(rows)

        def one_more(_: Tensor) -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                rows = held()
                assert rows is not None, "the step holds its rows until they are updated"
                self._send(rows, name, indices)

        for index in indices:
            rows.leaves[index].register_post_accumulate_grad_hook(one_more)

    def _send(self, rows: StepRows, name: str, indices: list[int]) -> None:
        rows.sent[name] = self._background.submit(lambda: self._exchange(rows, indices))

    def _exchange(self, rows: StepRows, indices: list[int]) -> GradientExchange:
        sent = []
        for i in indices:
            gradient = rows.leaves[i].grad  # not by `gradients()`: that of another table may not be there yet
            assert gradient is not None
            gradient_UD = gradient[: len(rows.requests[i].ids_U)].to(self.ranks.device)  # from a GPU to the host's tables: waits for it
            sent.append(RowGradient(rows.requests[i], gradient_UD, self._format(rows.plan.step, self.leaf_tables[i])))
        return GradientExchange(sent, self.ranks if 0 in indices else self._output_ranks, self._rows_group)

    def _format(self, step: int, table: VocabularyTable) -> RowFormat:
        """How a table's gradient travels. The bias, one number a row, always as float32."""
        if table.width == 1:
            return Plain(torch.float32)
        if self._gradient_format == "int8":
            return StochasticInt8(derive_key(self._seed, "row gradient", step, table.name, self.ranks.rank))
        dtype = {"compute": self.dtype, "fp32": torch.float32, "bf16": torch.bfloat16}[self._gradient_format]
        # A sum over all tokens of a step can be beyond float16's 65,504, while bfloat16 has float32's range.
        return Plain(torch.float32 if dtype == torch.float16 else dtype)
