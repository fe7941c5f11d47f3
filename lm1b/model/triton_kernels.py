# pyright: reportMissingParameterType=false, reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false
"""Three pieces as kernels of a pass or two each, for GPUs, in Triton: sampled softmax, full softmax's sums, Adagrad on chosen rows.

torch's own operations go through memory a dozen times for each. `softmax_in_place` reads the logits twice (the second time mostly
from a cache) and writes the probabilities once, in the computing dtype; `accumulate` reads them once: float32 logits are never in
memory. `adagrad_rows` reads row, accumulator and gradient once and writes the first two.

Used where LM1B_TRITON=1 and a GPU computes. Tested against torch's operations by Triton's interpreter, and compiled for
Nvidia's sm_90, on machines without a GPU; how fast they are there nobody has measured yet.

n positions of a chunk, S samples, U rows, W their width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_LARGEST_BLOCK = 8192  # columns at a time: a row of the usual 8,192 samples in one
_LOG2_E = 1.4426950408889634


@triton.jit
def _softmax_kernel(
    logits_ptr,
    offset_ptr,
    column_ptr,
    target_logit_ptr,
    largest_ptr,
    sum_ptr,
    row_stride,
    NUM_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """One position: largest of its logits and the target's, sum of exp(logit - largest) over the samples, probabilities in place."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    column = tl.load(column_ptr + row)
    target = tl.load(target_logit_ptr + row)
    largest = target
    total = 0.0
    for start in range(0, NUM_COLUMNS, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < NUM_COLUMNS
        values = tl.load(logits_ptr + columns, mask=inside, other=0.0).to(tl.float32) + tl.load(
            offset_ptr + columns, mask=inside, other=0.0
        )
        # A sample that is the target is none.
        values = tl.where(inside & (columns != column), values, float("-inf"))
        larger = tl.maximum(largest, tl.max(values, 0))
        total = total * tl.exp2((largest - larger) * LOG2_E) + tl.sum(tl.exp2((values - larger) * LOG2_E), 0)
        largest = larger
    tl.store(largest_ptr + row, largest)
    tl.store(sum_ptr + row, total)
    scale = 1.0 / (total + tl.exp2((target - largest) * LOG2_E))
    for start in range(0, NUM_COLUMNS, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < NUM_COLUMNS
        values = tl.load(logits_ptr + columns, mask=inside, other=0.0).to(tl.float32) + tl.load(
            offset_ptr + columns, mask=inside, other=0.0
        )
        values = tl.where(columns != column, values, float("-inf"))
        probabilities = tl.exp2((values - largest) * LOG2_E) * scale
        tl.store(logits_ptr + columns, probabilities.to(logits_ptr.dtype.element_ty), mask=inside)


def softmax_in_place(logits_nS: Tensor, offset_S: Tensor, targets_n: Tensor, target_logits_n: Tensor) -> tuple[Tensor, Tensor]:
    """See `sampled_softmax._softmax_in_place`: raw logits become the samples' probabilities. -> nats_n, float64, and column sums.

    logits_nS: rows contiguous. The column sums, float32, are of the probabilities as they are written, in the computing dtype.
    """
    num_positions, num_samples = logits_nS.shape
    largest_n, sum_n = torch.empty_like(target_logits_n), torch.empty_like(target_logits_n)
    block = min(_LARGEST_BLOCK, triton.next_power_of_2(num_samples))
    _softmax_kernel[(num_positions,)](
        logits_nS,
        offset_S,
        targets_n,  # a target that was not sampled is no column: below num_samples if and only if it was
        target_logits_n,
        largest_n,
        sum_n,
        logits_nS.stride(0),
        NUM_COLUMNS=num_samples,
        BLOCK=block,
        LOG2_E=_LOG2_E,
        num_warps=8 if block > 1024 else 4,
    )
    # In float64, a number a position: the nats of a nearly certain target would drown in 1.
    total_n = sum_n.double() + torch.exp(target_logits_n - largest_n).double()
    return torch.log(total_n) + (largest_n - target_logits_n), logits_nS.sum(0, dtype=torch.float32)


@triton.jit
def _accumulate_kernel(
    logits_ptr,
    bias_ptr,
    column_ptr,
    target_logit_ptr,
    largest_ptr,
    total_ptr,
    row_stride,
    NUM_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    LOG2_E: tl.constexpr,
):
    """One position: its running largest logit and float64 sum of exp(logit - largest) take in a block of the vocabulary."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    column = tl.load(column_ptr + row)
    is_there = (column >= 0) & (column < NUM_COLUMNS)
    target = tl.load(target_logit_ptr + row)
    old = tl.load(largest_ptr + row)
    # The target's logit is the one computed in float32. The first block comes to largest = -inf and total = 0.
    largest = tl.where(is_there, tl.maximum(old, target), old)
    block_total = 0.0
    for start in range(0, NUM_COLUMNS, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < NUM_COLUMNS
        values = tl.load(logits_ptr + columns, mask=inside, other=0.0).to(tl.float32) + tl.load(bias_ptr + columns, mask=inside, other=0.0)
        values = tl.where(inside & (columns != column), values, float("-inf"))
        larger = tl.maximum(largest, tl.max(values, 0))
        block_total = block_total * tl.exp2((largest - larger) * LOG2_E) + tl.sum(tl.exp2((values - larger) * LOG2_E), 0)
        largest = larger
    total = tl.load(total_ptr + row) * tl.exp((old - largest).to(tl.float64)) + block_total.to(tl.float64)
    total += tl.where(is_there, tl.exp((target - largest).to(tl.float64)), 0.0)
    tl.store(largest_ptr + row, largest)
    tl.store(total_ptr + row, total)


def accumulate(logits_nW: Tensor, bias_W: Tensor, columns_n: Tensor, target_n: Tensor, largest_n: Tensor, total_n: Tensor) -> None:
    """See `lm1b.model.full_softmax.LogSumExpPart`: largest_n (float32) and total_n (float64) take in W more words, in place.

    logits_nW: raw, rows contiguous. columns_n: int64, the target's column, outside 0 .. W-1 where it is elsewhere. target_n: float32,
    its logit.
    """
    num_positions, num_columns = logits_nW.shape
    block = min(_LARGEST_BLOCK, triton.next_power_of_2(num_columns))
    _accumulate_kernel[(num_positions,)](
        logits_nW,
        bias_W,
        columns_n,
        target_n,
        largest_n,
        total_n,
        logits_nW.stride(0),
        NUM_COLUMNS=num_columns,
        BLOCK=block,
        LOG2_E=_LOG2_E,
        num_warps=8 if block > 1024 else 4,
    )


@triton.jit
def _adagrad_kernel(
    rows_ptr,
    accumulators_ptr,
    places_ptr,
    gradient_ptr,
    scale,
    learning_rate,
    epsilon,
    gradient_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row."""
    number = tl.program_id(0).to(tl.int64)
    start = tl.load(places_ptr + number) * WIDTH
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < WIDTH
        gradient = tl.load(gradient_ptr + number * gradient_stride + columns, mask=inside, other=0.0) * scale
        accumulator = tl.load(accumulators_ptr + start + columns, mask=inside, other=1.0) + gradient * gradient
        row = tl.load(rows_ptr + start + columns, mask=inside, other=0.0)
        tl.store(accumulators_ptr + start + columns, accumulator, mask=inside)
        tl.store(rows_ptr + start + columns, row - learning_rate * (gradient / (tl.sqrt(accumulator) + epsilon)), mask=inside)


def adagrad_rows(
    rows: Tensor, accumulators: Tensor, places: Tensor, gradient_UW: Tensor, *, scale: float, learning_rate: float, epsilon: float
) -> None:
    """Adagrad (Duchi 2011) on rows[places], in place: see `VocabularyTable.update`.

    rows, accumulators: float32, contiguous. places: int64 [U], distinct. gradient_UW: float32, rows contiguous; times scale.
    """
    if not len(places):
        return
    width = rows.shape[1]
    block = min(_LARGEST_BLOCK, triton.next_power_of_2(width))
    _adagrad_kernel[(len(places),)](
        rows,
        accumulators,
        places,
        gradient_UW,
        scale,
        learning_rate,
        epsilon,
        gradient_UW.stride(0),
        WIDTH=width,
        BLOCK=block,
        num_warps=4,
    )
