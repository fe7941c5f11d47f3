"""Vocabulary tables and random numbers on a GPU, beside a dense float64 table and bit for bit. On the CPU too: devices.py."""

from __future__ import annotations

import pytest
import torch
from devices import DEVICES, KERNELS, assert_near, kernels_of
from table_steps import apply, asked, fetched

from lm1b.distributed import single_process
from lm1b.model.dropout import Dropout, keep_mask
from lm1b.model.tables import VocabularyTable
from lm1b.randomness import derive_key, random_bits, uniform

MASK_64, MASK_32 = (1 << 64) - 1, (1 << 32) - 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_table_rows_are_fetched_and_updated(device: str, kernels: str) -> None:
    """Against torch's Adagrad of a dense float64 table: a dozen float32 operations on each number an update, three updates."""
    ranks = single_process(device)
    table = VocabularyTable("input_table", 500, 24, seed=5, initial_scale=1.0, initial_accumulator=0.5, ranks=ranks)
    on_cpu = VocabularyTable("input_table", 500, 24, seed=5, initial_scale=1.0, initial_accumulator=0.5, ranks=single_process())
    assert torch.equal(table.rows.cpu(), on_cpu.rows)  # keyed: the same bits on every device
    dense = torch.nn.Parameter(on_cpu.rows.double())
    optimizer = torch.optim.Adagrad([dense], lr=0.2, initial_accumulator_value=0.5, eps=1e-10)
    generator = torch.Generator().manual_seed(2)
    for number in range(3):
        ids = torch.randperm(500, generator=generator)[: 100 + number]
        gradient = torch.randn(len(ids), 24, generator=generator)
        request = asked(ids, single_process()).moved(lambda tensor: tensor.to(device))  # planned on the host
        before = table.rows.cpu()
        assert torch.equal(fetched(table, request, torch.bfloat16).cpu(), before[ids].bfloat16().float())
        with kernels_of(kernels):
            apply(table, request, gradient.to(device, copy=True), learning_rate=0.2, gradient_scale=3.0)
        dense.grad = torch.zeros_like(dense).index_add_(0, ids, 3.0 * gradient.double())
        optimizer.step()
        untouched = torch.ones(500, dtype=torch.bool).index_fill_(0, ids, False)
        assert torch.equal(table.rows.cpu()[untouched], before[untouched])
    assert table.rows.device.type == device
    assert_near(table.rows, dense.detach(), torch.float32, 3 * 12, "rows")
    assert_near(table.accumulators, optimizer.state[dense]["sum"], torch.float32, 3 * 12, "accumulators")


def split_mix(key: int, counter: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) in whole numbers: 64 bits."""
    x = (counter * 0x9E3779B97F4A7C15 + key) & MASK_64
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK_64
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK_64
    return x ^ x >> 31


def low_bias(x: int) -> int:
    """The 32-bit hash `lowbias32`."""
    x = ((x ^ x >> 16) * 0x7FEB352D) & MASK_32
    x = ((x ^ x >> 15) * 0x846CA68B) & MASK_32
    return x ^ x >> 16


COUNTERS = [*range(300), 793_470, (1 << 32) + 7, (19 << 32) + 127, (1 << 62) + 1, -5]


@pytest.mark.parametrize("device", DEVICES)
def test_random_numbers_are_those_of_whole_number_arithmetic(device: str) -> None:
    key, counters = derive_key(3, "dropout", 4, 1), torch.tensor(COUNTERS, device=device)
    expected = [split_mix(key, counter) for counter in COUNTERS]
    assert [bits & MASK_64 for bits in random_bits(key, counters).tolist()] == expected
    assert uniform(key, counters).tolist() == [((bits >> 12) + 0.5) * 2.0**-52 for bits in expected]


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_drops_what_whole_number_arithmetic_says(device: str) -> None:
    width, probability, drop = 40, 0.25, Dropout(0.25, seed=3, step=4, first_lane=11)
    x_TBD = torch.ones(5, 7, width, device=device)
    key = derive_key(3, "dropout", 4, 1)
    rows = [(t << 32) + lane for t in range(5) for lane in range(11, 18)]
    # Kept from a quarter of the signed numbers upward.
    bits = [[low_bias((split_mix(key, row) + unit * 0x9E3779B1) & MASK_32) for unit in range(width)] for row in rows]
    kept = torch.tensor([[(word ^ 1 << 31) >= probability * 2**32 for word in line] for line in bits])
    mask = keep_mask(key, torch.tensor(rows, device=device), width, probability)
    assert mask.device.type == device
    assert torch.equal(mask.cpu(), kept)
    assert 0.65 < kept.double().mean() < 0.85
    assert torch.equal(drop(x_TBD, 1).cpu(), kept.view(5, 7, width).float() * (1.0 / 0.75))
