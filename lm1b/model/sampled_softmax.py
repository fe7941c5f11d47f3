"""From hidden vectors to nats by the sampled softmax, training's usual loss.

For a position with hidden vector h and target t, samples s (Jean 2015, arXiv 1412.2007):

    c_k = h . w_k + b_k - log E(k)                      corrected logit, float32
    nats = log(exp(c_t) + sum over s != t of exp(c_s)) - c_t

1. One product gives a chunk's logits in the computing dtype; small blocks of positions go through float32, where the
   correction, the mask and the softmax happen, and leave as the gradient of the logits, in place.
2. Two more products turn that into the gradients of hidden vectors and of sampled rows: all is ready when the forward pass
   ends, and backward only multiplies by the gradient of the sum.
3. The target's own logit is computed apart in float32, its gradient too, for sampled targets and others alike.

N positions, P hidden width, S samples, U rows at hand (samples first).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lm1b.model.blocks import TargetColumns, chunks_of_logits, exp_of_difference, float32_blocks
from lm1b.model.kernels import triton_kernels
from lm1b.model.products import product


class SampledRows(NamedTuple):
    """Output rows that a step has fetched, of which the first num_samples are the samples. (A tuple: see `LossParts`.)

    rows_UP, bias_U1: float32, from the tables. log_expected_U: float32, log E of each row.
    """

    rows_UP: Tensor
    bias_U1: Tensor
    log_expected_U: Tensor
    num_samples: int

    def nats(self, hidden_NP: Tensor, target_positions_N: Tensor) -> Tensor:
        """Sum over positions of -log p(target) under the sampled softmax: float64, no dimensions, in nats.

        hidden_NP: the computing dtype. target_positions_N: int64, of the target among the U; below num_samples if and only if it was
        sampled. Differentiable once with respect to hidden_NP (gradient in its dtype), rows and bias (float32); a second backward raises
        RuntimeError.
        """
        # Flattened only here: backward goes from the newest operation to the oldest, and the bias's gradient would otherwise wait
        # for that of the recurrent layers, and with it whoever sends the output rows' gradients.
        bias_U = self.bias_U1.flatten()
        result: Any = _SampledSoftmax.apply(hidden_NP, self.rows_UP, bias_U, target_positions_N, self.log_expected_U, self.num_samples)
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
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the name of ctx)
        if ctx.gradients is None:
            raise RuntimeError("sampled softmax: its gradient was taken already (retain_graph is not supported)")
        # Handed over, not kept: autograd may then use these tensors as the leaves' gradients without a copy.
        hidden_gradient, rows_gradient, bias_gradient = ctx.gradients
        ctx.gradients = None
        for gradient in (hidden_gradient, rows_gradient, bias_gradient):
            gradient.mul_(gradients[0])  # not in its dtype: 1/96 as bfloat16 is 0.2 % too large
        return hidden_gradient, rows_gradient, bias_gradient, None, None, None


def _nats_and_gradients(
    hidden_NP: Tensor, rows_UP: Tensor, offset_U: Tensor, targets_N: Tensor, num_samples: int, needs_gradient: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
    """Nats summed (float64) and the gradients of that sum by hidden vectors, rows and bias."""
    dtype, device = hidden_NP.dtype, hidden_NP.device
    rows_SP = rows_UP[:num_samples].to(dtype)
    nats = torch.zeros((), dtype=torch.float64, device=device)
    gradients = _Gradients(hidden_NP, rows_UP, num_samples) if needs_gradient else None
    # A third of a chunk in float32: on a CPU a fifth of a usual step's positions.
    for chunk, logits in chunks_of_logits(hidden_NP, rows_SP, 1 if dtype.itemsize < 4 else 3):
        hidden, targets = hidden_NP[chunk], targets_N[chunk]
        target_rows = rows_UP.index_select(0, targets).to(dtype).to(torch.float32)
        target_logits = (hidden.to(torch.float32) * target_rows).sum(1) + offset_U[targets]
        nats_chunk, column_sums = _softmax_in_place(logits, offset_U[:num_samples], targets, target_logits)
        nats += nats_chunk.sum()
        if gradients is not None:
            gradients.add_samples(chunk, hidden, logits, rows_SP, column_sums)
            # d nats / d target logit = p - 1 = expm1(-nats), exact where p is near 1.
            gradients.add_targets(chunk, hidden, targets, target_rows, torch.expm1(-nats_chunk).to(torch.float32))
    return nats, (gradients.hidden_NP, gradients.rows_UP, gradients.bias_U) if gradients is not None else None


class _Gradients:
    """The gradients of the sum of nats, gathered chunk by chunk: hidden_NP in the computing dtype, rows_UP and bias_U in float32."""

    def __init__(self, hidden_NP: Tensor, rows_UP: Tensor, num_samples: int) -> None:
        self.num_samples = num_samples
        self.hidden_NP = torch.empty_like(hidden_NP)
        self.rows_UP = torch.empty_like(rows_UP)
        self.rows_UP[num_samples:] = 0.0
        self.bias_U = torch.zeros(len(rows_UP), device=rows_UP.device)

    def add_samples(self, chunk: slice, hidden: Tensor, probabilities: Tensor, rows_SP: Tensor, column_sums: Tensor) -> None:
        """A chunk's part through the samples' logits; the first one sets what later ones add to."""
        self.hidden_NP[chunk] = product(probabilities, rows_SP.T)
        rows = self.rows_UP[: self.num_samples]
        if chunk.start:
            rows += product(probabilities.T, hidden.T)
        else:
            rows.copy_(product(probabilities.T, hidden.T))
        self.bias_U[: self.num_samples] += column_sums

    def add_targets(self, chunk: slice, hidden: Tensor, targets: Tensor, target_rows: Tensor, target_gradient: Tensor) -> None:
        """A chunk's part through the targets' logits, in float32. Comes after `add_samples`."""
        here = self.hidden_NP[chunk]
        here.copy_(torch.addcmul(here, target_gradient.unsqueeze(1), target_rows))
        self.rows_UP.index_add_(0, targets, target_gradient.unsqueeze(1) * hidden)
        self.bias_U.index_add_(0, targets, target_gradient)


def _softmax_in_place(logits_nS: Tensor, offset_S: Tensor, targets_n: Tensor, target_logits_n: Tensor) -> tuple[Tensor, Tensor]:
    """Replace raw logits by the samples' probabilities, block by block in float32.

    The probability of a sample that is the position's target becomes 0. Returns nats_n, float64, and the probabilities' column
    sums, float32.
    """
    if kernels := triton_kernels(logits_nS.device):
        return kernels.softmax_in_place(logits_nS, offset_S, targets_n, target_logits_n)
    nats_n = torch.empty_like(target_logits_n, dtype=torch.float64)
    column_sums = torch.zeros_like(offset_S)
    sampled = TargetColumns(targets_n, logits_nS.shape[1])
    for here, logits, values in float32_blocks(logits_nS, offset_S):
        sampled.put(here, values, -torch.inf)
        target = target_logits_n[here]
        largest = torch.maximum(values.amax(1), target)
        exp_of_difference(values, largest)
        # In float64, a handful of numbers: the nats of a nearly certain target would drown in 1.
        total = values.sum(1).double() + torch.exp(target - largest).double()
        nats_n[here] = torch.log(total) + (largest - target)
        values *= (1.0 / total).to(torch.float32).unsqueeze(1)
        column_sums += values.sum(0)
        if values is not logits:
            logits.copy_(values)
    return nats_n, column_sums
