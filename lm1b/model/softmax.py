"""From hidden vectors to nats: the sampled softmax of training, the full softmax of evaluation.

Sampled, for a position with hidden vector h and target t, samples s (Jean 2015, arXiv 1412.2007):

    c_k = h . w_k + b_k - log E(k)                      corrected logit, float32
    nats = log(exp(c_t) + sum over s != t of exp(c_s)) - c_t

1. One product gives a chunk's logits in the computing dtype; small blocks of positions go through float32, where the
   correction, the mask and the softmax happen, and leave as the gradient of the logits, in place.
2. Two more products turn that into the gradients of hidden vectors and of sampled rows: all is ready when the forward pass
   ends, and backward only multiplies by the gradient of the sum.
3. The target's own logit is computed apart in float32, its gradient too, for sampled targets and others alike.

Full: blocks over the vocabulary with a running maximum and sum of exponentials, so that any cut of the vocabulary over
blocks or ranks can be put together (`FullSoftmax.merge`, `FullSoftmax.reduce`).

N positions, P hidden width, S samples, U rows at hand (samples first), L rows of this rank, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lm1b.distributed import Ranks
from lm1b.model.products import product

# Bytes of logits (in the computing dtype) held at a time, and elements of a block that goes through float32: the
# first is large enough for the products to run at full speed, the second stays in a core's second-level cache.
_CHUNK_BYTES = 48 << 20
_BLOCK_ELEMENTS = 1 << 17
# On a GPU small blocks would only cost launches: these keep a usual step's logits in three blocks.
_BLOCK_ELEMENTS_GPU = 1 << 23
_LOG2_E = math.log2(math.e)


def sampled_softmax(
    hidden_NP: Tensor, rows_UP: Tensor, bias_U: Tensor, target_positions_N: Tensor, log_expected_U: Tensor, num_samples: int
) -> Tensor:
    """Sum over positions of -log p(target) under the sampled softmax: float64, no dimensions, in nats.

    hidden_NP: the computing dtype. rows_UP, bias_U, log_expected_U: float32, of which the first num_samples are the samples.
    target_positions_N: int64, the target's place among the U; below num_samples if and only if it was sampled.
    Differentiable once with respect to hidden_NP (gradient in its dtype), rows_UP and bias_U (gradients in float32).
    """
    result: Any = _SampledSoftmax.apply(hidden_NP, rows_UP, bias_U, target_positions_N, log_expected_U, num_samples)
    return result


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NP: Tensor, rows_UP: Tensor, bias_U: Tensor, targets_N: Tensor, log_expected_U: Tensor, num_samples: int
    ) -> Tensor:
        needs_gradient = any(ctx.needs_input_grad[:3])
        nats, ctx.gradients = _nats_and_gradients(hidden_NP, rows_UP, bias_U - log_expected_U, targets_N, num_samples, needs_gradient)
        return nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("sampled_softmax: its gradient was taken already (retain_graph is not supported)")
        # Handed over, not kept: autograd may then use these tensors as the leaves' gradients without a copy.
        hidden_gradient, rows_gradient, bias_gradient = ctx.gradients
        ctx.gradients = None
        for gradient in (hidden_gradient, rows_gradient, bias_gradient):
            gradient.mul_(gradients[0].to(gradient.dtype))
        return hidden_gradient, rows_gradient, bias_gradient, None, None, None


def _nats_and_gradients(
    hidden_NP: Tensor, rows_UP: Tensor, offset_U: Tensor, targets_N: Tensor, num_samples: int, needs_gradient: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Nats summed (float64) and the gradients of that sum by hidden vectors, rows and bias."""
    dtype, device = hidden_NP.dtype, hidden_NP.device
    rows_SP = rows_UP[:num_samples].to(dtype)
    chunk = min(len(hidden_NP), max(1, _chunk_bytes(dtype) // (num_samples * hidden_NP.element_size())))
    nats = torch.zeros((), dtype=torch.float64, device=device)
    gradients = _Gradients(hidden_NP, rows_UP, num_samples) if needs_gradient else None
    buffer = _scratch("logits", (chunk, num_samples), dtype, device)
    for start in range(0, len(hidden_NP), chunk):
        hidden, targets = hidden_NP[start : start + chunk], targets_N[start : start + chunk]
        target_rows = rows_UP.index_select(0, targets).to(dtype).to(torch.float32)
        target_logits = (hidden.to(torch.float32) * target_rows).sum(1) + offset_U[targets]
        logits = product(hidden, rows_SP, out=buffer[: len(hidden)])
        nats_chunk, column_sums = _softmax_in_place(logits, offset_U[:num_samples], targets, target_logits)
        nats += nats_chunk.sum()
        if gradients is not None:
            gradients.add_samples(start, hidden, logits, rows_SP, column_sums)
            # d nats / d target logit = p - 1 = expm1(-nats), exact where p is near 1.
            gradients.add_targets(start, hidden, targets, target_rows, torch.expm1(-nats_chunk).to(torch.float32))
    return nats, (gradients.hidden_NP, gradients.rows_UP, gradients.bias_U) if gradients is not None else None


class _Gradients:
    """The gradients of the sum of nats, gathered chunk by chunk: hidden_NP in the computing dtype, rows_UP and bias_U in float32."""

    def __init__(self, hidden_NP: Tensor, rows_UP: Tensor, num_samples: int) -> None:
        self.num_samples = num_samples
        self.hidden_NP = torch.empty_like(hidden_NP)
        self.rows_UP = torch.empty_like(rows_UP)
        self.rows_UP[num_samples:] = 0.0
        self.bias_U = torch.zeros(len(rows_UP), device=rows_UP.device)

    def add_samples(self, start: int, hidden: Tensor, probabilities: Tensor, rows_SP: Tensor, column_sums: Tensor) -> None:
        """A chunk's part through the samples' logits; the first chunk (start 0) sets what later ones add to."""
        self.hidden_NP[start : start + len(hidden)] = product(probabilities, rows_SP.T)
        rows = self.rows_UP[: self.num_samples]
        if start:
            rows += product(probabilities.T, hidden.T)
        else:
            rows.copy_(product(probabilities.T, hidden.T))
        self.bias_U[: self.num_samples] += column_sums

    def add_targets(self, start: int, hidden: Tensor, targets: Tensor, target_rows: Tensor, target_gradient: Tensor) -> None:
        """A chunk's part through the targets' logits, in float32. Comes after `add_samples`."""
        here = self.hidden_NP[start : start + len(hidden)]
        here.copy_(torch.addcmul(here, target_gradient.unsqueeze(1), target_rows))
        self.rows_UP.index_add_(0, targets, target_gradient.unsqueeze(1) * hidden)
        self.bias_U.index_add_(0, targets, target_gradient)


def _chunk_bytes(dtype: torch.dtype) -> int:
    """Bytes of logits held at a time: all of a usual step's in half precision, a fifth of them in float32."""
    return _CHUNK_BYTES if dtype.itemsize < 4 else _CHUNK_BYTES // 3


_scratch_space: dict[tuple[str, torch.dtype], Tensor] = {}


def _scratch(name: str, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor for use within one call. On the CPU its memory is kept: fresh pages for the logits of every
    step cost a tenth of the whole sampled softmax there, while CUDA's allocator keeps memory by itself."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    size = shape[0] * shape[1]
    space = _scratch_space.get((name, dtype))
    if space is None or space.numel() < size:
        space = _scratch_space[name, dtype] = torch.empty(size, dtype=dtype)
    return space[:size].view(shape)


def _block_positions(width: int, device: torch.device) -> int:
    """How many positions, with `width` logits each, go through float32 together."""
    return max(1, (_BLOCK_ELEMENTS if device.type == "cpu" else _BLOCK_ELEMENTS_GPU) // width)


def _in_float32(block: Tensor) -> Tensor:
    """A block of logits as float32 to work on: itself where it is that, else a copy in scratch space."""
    if block.dtype == torch.float32:
        return block
    return _scratch("block", (block.shape[0], block.shape[1]), torch.float32, block.device).copy_(block)


def _exp_of_difference(values_nS: Tensor, largest_n: Tensor) -> Tensor:
    """exp(values - largest), in place, as a power of 2: torch's exp takes four times as long as its exp2 on a CPU."""
    # The difference first: scaled one by one, two large numbers would leave their rounding.
    return values_nS.sub_(largest_n.unsqueeze(1)).mul_(_LOG2_E).exp2_()


def _softmax_in_place(logits_nS: Tensor, offset_S: Tensor, targets_n: Tensor, target_logits_n: Tensor) -> tuple[Tensor, Tensor]:
    """Replace raw logits by the samples' probabilities, block by block in float32.

    The probability of a sample that is the position's target becomes 0. Returns nats_n, float64, and the probabilities' column
    sums, float32.
    """
    num_positions, num_samples = logits_nS.shape
    block = _block_positions(num_samples, logits_nS.device)
    nats_n = torch.empty_like(target_logits_n, dtype=torch.float64)
    column_sums = torch.zeros_like(offset_S)
    is_sampled = targets_n < num_samples
    # A target outside the samples masks nothing: it points at column 0 and puts back what is there.
    columns_n1 = torch.where(is_sampled, targets_n, 0).unsqueeze(1)
    for start in range(0, num_positions, block):
        logits = logits_nS[start : start + block]
        here = slice(start, start + len(logits))
        values = _in_float32(logits)
        values += offset_S
        masked = torch.where(is_sampled[here].unsqueeze(1), -torch.inf, values.gather(1, columns_n1[here]))
        values.scatter_(1, columns_n1[here], masked)
        target = target_logits_n[here]
        largest = torch.maximum(values.amax(1), target)
        _exp_of_difference(values, largest)
        # In float64, a handful of numbers: the nats of a nearly certain target would drown in 1.
        total = values.sum(1).double() + torch.exp(target - largest).double()
        nats_n[here] = torch.log(total) + (largest - target)
        values *= (1.0 / total).to(torch.float32).unsqueeze(1)
        column_sums += values.sum(0)
        if values is not logits:
            logits.copy_(values)
    return nats_n, column_sums


@dataclass
class FullSoftmax:
    """What part of a vocabulary says about N positions. Parts over disjoint words merge into the whole.

    largest_N: float32, largest logit. total_N: float64, sum of exp(logit - largest). target_N: float32, the target's logit,
    -inf where the target is not in this part.
    """

    largest_N: Tensor
    total_N: Tensor
    target_N: Tensor

    def merge(self, other: FullSoftmax) -> FullSoftmax:
        """Both parts together."""
        largest = torch.maximum(self.largest_N, other.largest_N)
        total = self.total_N * torch.exp(self.largest_N.double() - largest) + other.total_N * torch.exp(other.largest_N.double() - largest)
        return FullSoftmax(largest, total, torch.maximum(self.target_N, other.target_N))

    def reduce(self, ranks: Ranks) -> FullSoftmax:
        """All ranks' parts together, on every rank. A collective."""
        if ranks.size == 1:
            return self
        largest, target = self.largest_N.clone(), self.target_N.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        dist.all_reduce(target, dist.ReduceOp.MAX)
        total = self.total_N * torch.exp(self.largest_N.double() - largest)
        dist.all_reduce(total)
        return FullSoftmax(largest, total, target)

    def nats(self) -> Tensor:
        """-log p(target) of each position, float64 [N]; meaningful once the parts cover the vocabulary."""
        return torch.log(self.total_N) + self.largest_N.double() - self.target_N.double()


@torch.no_grad()
def full_softmax_part(hidden_NP: Tensor, rows_LP: Tensor, bias_L: Tensor, places_N: Tensor, block: int = 8192) -> FullSoftmax:
    """What the rows at hand say, worked through `block` rows at a time.

    hidden_NP: the computing dtype. rows_LP, bias_L: float32 (rows are cast block by block). places_N: int64, the target's place
    among these rows, -1 where it is not among them (on rank r of R: `places_of_targets`).
    """
    num_positions = len(hidden_NP)
    here = places_N >= 0
    places = places_N.clamp(min=0)
    target_rows = rows_LP.index_select(0, places).to(hidden_NP.dtype).to(torch.float32)
    target_N = (hidden_NP.to(torch.float32) * target_rows).sum(1) + bias_L[places]
    target_N = torch.where(here, target_N, -torch.inf)
    result = FullSoftmax(
        torch.full((num_positions,), -torch.inf, device=hidden_NP.device),
        torch.zeros(num_positions, dtype=torch.float64, device=hidden_NP.device),
        target_N,
    )
    sub_block = _block_positions(block, hidden_NP.device)
    chunk = min(num_positions, max(1, _CHUNK_BYTES // (min(block, len(rows_LP)) * hidden_NP.element_size())))
    for first in range(0, len(rows_LP), block):
        rows, bias = rows_LP[first : first + block].to(hidden_NP.dtype), bias_L[first : first + block]
        buffer = _scratch("logits", (chunk, len(rows)), hidden_NP.dtype, hidden_NP.device)
        for start in range(0, num_positions, chunk):
            hidden = hidden_NP[start : start + chunk]
            logits_nL = product(hidden, rows, out=buffer[: len(hidden)])
            for low in range(0, len(hidden), sub_block):
                part = slice(start + low, start + min(low + sub_block, len(hidden)))
                values = _in_float32(logits_nL[low : low + sub_block])
                values += bias
                _accumulate(result, part, values, places_N[part] - first)
    return result


def _accumulate(result: FullSoftmax, part: slice, logits: Tensor, columns: Tensor) -> None:
    """Take a block of float32 logits, which is used up, into the running maximum and sum of the positions `part`."""
    inside = torch.nonzero((columns >= 0) & (columns < logits.shape[1])).flatten()
    # The target's logit is the one computed in float32, in the sum too.
    logits[inside, columns[inside]] = result.target_N[part][inside]
    old = result.largest_N[part]
    largest = torch.maximum(old, logits.amax(1))
    sums = _exp_of_difference(logits, largest).sum(1)
    # exp(-inf - largest) = 0 takes care of the first block.
    result.total_N[part] = result.total_N[part] * torch.exp(old.double() - largest) + sums
    result.largest_N[part] = largest


def full_softmax_nats(hidden_NP: Tensor, rows_VP: Tensor, bias_V: Tensor, targets_N: Tensor, block: int = 8192) -> Tensor:
    """-log p(target) under the full softmax over V rows at hand: float64 [N]. See `full_softmax_part`; targets_N: int64 ids."""
    return full_softmax_part(hidden_NP, rows_VP, bias_V, targets_N, block).nats()


def places_of_targets(targets_N: Tensor, ranks: Ranks) -> Tensor:
    """Where each target's row is among this rank's rows (row r lives on rank r % R at r // R), -1 where it is not here."""
    places = torch.div(targets_N, ranks.size, rounding_mode="floor")
    return torch.where(targets_N % ranks.size == ranks.rank, places, -1)
