"""The full softmax, vocabulary-parallel: exact nats for evaluation, and an exact loss for training.

Every rank has rows of its own and never sees another's. Blocks over the vocabulary keep a running maximum and sum of exponentials, so that
any cut of it over blocks or ranks can be put together (`LogSumExpPart`). Evaluation scores the same
positions on every rank. Training (`OwnRows`) has other positions on each:

1. Every rank gets the hidden vectors and targets of all.
2. First pass over its rows: maximum, sum and the target's logit of every position, reduced over the ranks.
3. Second pass: the logits again, a block at a time, as probabilities; two products a block give the gradients of this rank's rows (no other
   rank has a part in them) and its part of the hidden vectors' gradient.
4. The parts of the hidden vectors' gradient go to the ranks whose they are, and are added up in rank order.

Logits are held a chunk at a time in both passes, whatever N and V are. What is sent does not depend on V.

N positions (M = N * ranks: all ranks' together), P hidden width, L rows of this rank, V vocabulary, n positions of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lm1b.distributed import Ranks, all_gather_rows, all_reduce_max, all_reduce_sum, all_to_all
from lm1b.model.blocks import TargetColumns, chunks_of_logits, exp_of_difference, float32_blocks
from lm1b.model.kernels import triton_kernels
from lm1b.model.products import product

VOCABULARY_BLOCK = 8192  # rows at a time


@dataclass
class LogSumExpPart:
    """What part of a vocabulary says about N positions.

    largest_N: float32, largest logit. total_N: float64, sum of exp(logit - largest). target_N: float32, the target's logit,
    -inf where the target is not in this part.
    """

    largest_N: Tensor
    total_N: Tensor
    target_N: Tensor

    def reduce(self, ranks: Ranks) -> LogSumExpPart:
        """All ranks' parts together, on every rank, where it computes. A collective."""
        if ranks.size == 1:
            return self
        here, total, target = (values_N.to(ranks.device) for values_N in (self.largest_N, self.total_N, self.target_N))
        largest, target = (all_reduce_max(values_N.clone(), ranks) for values_N in (here, target))
        return LogSumExpPart(largest, all_reduce_sum(total * torch.exp(here.double() - largest), ranks), target)

    def nats(self) -> Tensor:
        """-log p(target) of each position, float64 [N]; meaningful once the parts cover the vocabulary."""
        return torch.log(self.total_N) + self.largest_N.double() - self.target_N.double()


@torch.no_grad()
def full_softmax_part(
    hidden_NP: Tensor, rows_LP: Tensor, bias_L: Tensor, places_N: Tensor, vocabulary_block: int = VOCABULARY_BLOCK
) -> LogSumExpPart:
    """What the rows at hand say, worked through `vocabulary_block` rows at a time.

    hidden_NP: the computing dtype. rows_LP: float32 or that dtype (cast block by block). bias_L: float32. places_N: int64, the target's
    place among these rows, -1 where it is not among them (on rank r of R: `places_of_targets`).
    """
    num_positions = len(hidden_NP)
    if not len(rows_LP):  # fewer words than ranks
        nothing = torch.full((num_positions,), -torch.inf, device=hidden_NP.device)
        return LogSumExpPart(nothing, torch.zeros_like(nothing, dtype=torch.float64), nothing.clone())
    here = places_N >= 0
    places = places_N.clamp(min=0)
    target_rows = rows_LP.index_select(0, places).to(hidden_NP.dtype).to(torch.float32)
    target_N = (hidden_NP.to(torch.float32) * target_rows).sum(1) + bias_L[places]
    target_N = torch.where(here, target_N, -torch.inf)
    result = LogSumExpPart(
        torch.full((num_positions,), -torch.inf, device=hidden_NP.device),
        torch.zeros(num_positions, dtype=torch.float64, device=hidden_NP.device),
        target_N,
    )
    for first in range(0, len(rows_LP), vocabulary_block):
        block = slice(first, first + vocabulary_block)
        rows_WP, bias_W, columns_N = rows_LP[block].to(hidden_NP.dtype), bias_L[block], places_N - first
        targets = TargetColumns(columns_N, len(rows_WP))
        for chunk, logits_nW in chunks_of_logits(hidden_NP, rows_WP):
            if kernels := triton_kernels(hidden_NP.device):
                sums = (result.target_N[chunk], result.largest_N[chunk], result.total_N[chunk])
                kernels.accumulate(logits_nW, bias_W, columns_N[chunk], *sums)
                continue
            for part, _, values in float32_blocks(logits_nW, bias_W, chunk.start):
                _accumulate(result, part, values, targets)
    return result


def _accumulate(result: LogSumExpPart, part: slice, logits: Tensor, targets: TargetColumns) -> None:
    """Take a block of float32 logits, which is used up, into the running maximum and sum of the positions `part`."""
    # The target's logit is the one computed in float32, in the sum too.
    target = result.target_N[part]
    targets.put(part, logits, target.unsqueeze(1))
    old = result.largest_N[part]
    largest = torch.maximum(old, logits.amax(1))
    exp_of_difference(logits, largest)
    # In float64, one number a position: the nats of a nearly certain target would drown in 1.
    targets.put(part, logits, 0.0)
    sums = logits.sum(1).double()
    sums += torch.exp(target.double() - largest).where(targets.is_there_N1[part, 0], 0.0)
    # exp(-inf - largest) = 0 takes care of the first block.
    result.total_N[part] = result.total_N[part] * torch.exp(old.double() - largest) + sums
    result.largest_N[part] = largest


def places_of_targets(targets_N: Tensor, ranks: Ranks) -> Tensor:
    """Where each target's row is among this rank's rows (row r lives on rank r % R at r // R), -1 where it is not here."""
    return torch.where(targets_N % ranks.size == ranks.rank, targets_N // ranks.size, -1)


class OwnRows(NamedTuple):
    """All of this rank's rows of the output table, float32 (row r on rank r % R), and the ranks that hold the table between them."""

    rows_LP: Tensor
    bias_L1: Tensor
    ranks: Ranks
    vocabulary_block: int = VOCABULARY_BLOCK

    def nats(self, hidden_NP: Tensor, targets_N: Tensor) -> Tensor:
        """Sum over this rank's positions of -log p(target) under the full softmax: float64, no dimensions, in nats. A collective.

        hidden_NP: the computing dtype, as many positions on every rank. targets_N: int64 ids. Differentiable once with respect to hidden_NP
        (gradient in its dtype), rows and bias (float32). The rows' gradient is that of the nats of *all* ranks' positions, times the factor
        that backward brings here: it must be the same on all ranks. A second backward raises RuntimeError.
        """
        bias_L = self.bias_L1.flatten()  # here: see `SampledRows.nats`
        result: Any = _FullSoftmaxLoss.apply(hidden_NP, self.rows_LP, bias_L, targets_N, self.ranks, self.vocabulary_block)
        return result


class _FullSoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NP: Tensor, rows_LP: Tensor, bias_L: Tensor, targets_N: Tensor, ranks: Ranks, vocabulary_block: int
    ) -> Tensor:
        hidden_MP, places_M = all_gather_rows(hidden_NP, ranks), places_of_targets(all_gather_rows(targets_N, ranks), ranks)
        whole = full_softmax_part(hidden_MP, rows_LP, bias_L, places_M, vocabulary_block).reduce(ranks)
        nats_M = whole.nats()
        ctx.gradients = None
        if any(ctx.needs_input_grad[:3]):
            hidden_gradient_MP, rows_gradient, bias_gradient = _gradients(
                hidden_MP, rows_LP, bias_L, places_M, whole, nats_M, vocabulary_block
            )
            ctx.gradients = (_own_part(hidden_gradient_MP, ranks).to(hidden_NP.dtype), rows_gradient, bias_gradient)
        return nats_M[ranks.rank * len(hidden_NP) :][: len(hidden_NP)].sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the name of ctx)
        if ctx.gradients is None:
            raise RuntimeError("full softmax: its gradient was taken already (retain_graph is not supported)")
        taken, ctx.gradients = ctx.gradients, None
        for gradient in taken:
            gradient.mul_(gradients[0])  # see `_SampledSoftmax.backward`
        return *taken, None, None, None


def _own_part(values_MP: Tensor, ranks: Ranks) -> Tensor:
    """The sum over ranks, in rank order, of what each has for this rank's positions. A collective."""
    if ranks.size == 1:
        return values_MP
    parts = all_to_all(torch.empty_like(values_MP), values_MP).chunk(ranks.size)
    total = parts[0]
    for other in parts[1:]:
        total += other
    return total


def _gradients(
    hidden_MP: Tensor, rows_LP: Tensor, bias_L: Tensor, places_M: Tensor, whole: LogSumExpPart, nats_M: Tensor, vocabulary_block: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients, float32, of the sum of nats by hidden_MP (through the rows at hand alone), by these rows and by their bias."""
    hidden_gradient_MP = torch.zeros(hidden_MP.shape, device=hidden_MP.device)
    rows_gradient_LP, bias_gradient_L = torch.zeros_like(rows_LP), torch.zeros_like(bias_L)
    for first in range(0, len(rows_LP), vocabulary_block):
        block = slice(first, first + vocabulary_block)
        rows_WP, bias_W = rows_LP[block].to(hidden_MP.dtype), bias_L[block]
        targets = TargetColumns(places_M - first, len(rows_WP))
        for chunk, logits_nW in chunks_of_logits(hidden_MP, rows_WP):
            for part, logits, values in float32_blocks(logits_nW, bias_W, chunk.start):
                # Logits become the nats' gradient: probabilities, less 1 at the targets (p - 1 = expm1(-nats), exact where p is near 1).
                exp_of_difference(values, whole.largest_N[part]).mul_((1.0 / whole.total_N[part]).to(torch.float32).unsqueeze(1))
                targets.put(part, values, torch.expm1(-nats_M[part]).to(torch.float32).unsqueeze(1))
                bias_gradient_L[block] += values.sum(0)
                if values is not logits:
                    logits.copy_(values)
            hidden_gradient_MP[chunk] += product(logits_nW, rows_WP.T)
            rows_gradient_LP[block] += product(logits_nW.T, hidden_MP[chunk].T)
    return hidden_gradient_MP, rows_gradient_LP, bias_gradient_L
