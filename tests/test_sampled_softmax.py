"""Sampled and full softmax against float64 references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from softmax_reference import ours, random_case, reference, relative_error
from torch import Tensor

from lm1b.distributed import Ranks
from lm1b.model import blocks
from lm1b.model.full_softmax import full_softmax_part, places_of_targets
from lm1b.model.sampled_softmax import SampledRows


@settings(deadline=None, max_examples=25)
@given(
    num_positions=st.integers(1, 40),
    num_samples=st.integers(1, 60),
    num_others=st.integers(0, 30),
    width=st.integers(1, 20),
    chunk_bytes=st.sampled_from([1, 3000, 48 << 20]),
    block=st.sampled_from([1, 200, 1 << 18]),
    seed=st.integers(0, 1000),
)
def test_sampled_softmax_and_gradients_in_float32(
    num_positions: int, num_samples: int, num_others: int, width: int, chunk_bytes: int, block: int, seed: int
) -> None:
    case = random_case(num_positions, num_samples, num_others, width, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(blocks, "BLOCK_ELEMENTS", block)
        found = ours(case, num_samples, torch.float32)
    for value, expected in zip(found, reference(case, num_samples), strict=True):
        assert torch.allclose(value.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("chunk_bytes", [48 << 20, 20_000])
def test_sampled_softmax_in_bfloat16(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(blocks, "CHUNK_BYTES", chunk_bytes)
    case = random_case(200, 300, 50, 64)
    # The reference gets what bfloat16 can hold: only the arithmetic is compared.
    case["hidden"], case["rows"] = case["hidden"].bfloat16().float(), case["rows"].bfloat16().float()
    nats, *gradients = ours(case, 300, torch.bfloat16)
    expected_nats, *expected = reference(case, 300)
    assert abs(nats - expected_nats) / expected_nats < 5e-4
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert relative_error(gradient, expected_gradient) < 0.01


def test_all_samples_give_the_full_softmax() -> None:
    case = random_case(300, 500, 0, 48)
    case["log_expected"].zero_()
    nats, *_ = ours(case, 500, torch.float32)
    logits = case["hidden"].double() @ case["rows"].double().T + case["bias"].double()
    exact = torch.nn.functional.cross_entropy(logits, case["targets"])
    assert abs(nats / 300 - exact) / exact < 1e-6


def test_gradients_carry_a_loss_scale_and_add_up_over_micro_batches() -> None:
    case = random_case(64, 100, 20, 16)
    nats, hidden_gradient, rows_gradient, bias_gradient = reference(case, 100)
    found = ours(case, 100, torch.float32, factor=65536.0 / 128)
    for value, expected in zip(found[1:], (hidden_gradient, rows_gradient, bias_gradient), strict=True):
        assert relative_error(value, expected * 512) < 1e-5

    rows, bias = case["rows"].clone().requires_grad_(), case["bias"].clone().requires_grad_()
    total = 0.0
    for part in (slice(0, 20), slice(20, 64)):
        loss = SampledRows(rows, bias.unsqueeze(1), case["log_expected"], 100).nats(case["hidden"][part], case["targets"][part])
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(nats.item(), rel=1e-6)
    assert rows.grad is not None
    assert bias.grad is not None
    assert relative_error(rows.grad, rows_gradient) < 1e-5
    assert relative_error(bias.grad, bias_gradient) < 1e-5


def test_a_factor_is_not_rounded_to_half_precision() -> None:
    case = random_case(64, 100, 20, 16)
    gradient, scaled = (ours(case, 100, torch.bfloat16, factor)[1] for factor in (1.0, 1 / 96))
    assert torch.equal(scaled, (gradient.float() * (1 / 96)).bfloat16())


def test_extreme_logits() -> None:
    case = random_case(8, 20, 4, 4)
    case["hidden"] *= 300.0
    found = ours(case, 20, torch.float32)
    for value, expected in zip(found, reference(case, 20), strict=True):
        assert torch.isfinite(value).all()
        assert torch.allclose(value.double(), expected, rtol=1e-3, atol=2e-2)


def test_a_certain_target_keeps_its_small_gradient() -> None:
    rows = torch.tensor([[0.0], [1.0]], requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    hidden = torch.tensor([[14.0]])
    SampledRows(rows, bias.unsqueeze(1), torch.zeros(2), 1).nats(hidden, torch.tensor([1])).backward()
    assert bias.grad is not None
    small = -torch.sigmoid(torch.tensor(-14.0, dtype=torch.float64))
    assert bias.grad[1].double() == pytest.approx(small.item(), rel=1e-5)
    assert bias.grad[0].double() == pytest.approx(-small.item(), rel=1e-5)


def test_its_gradient_is_taken_once() -> None:
    case = random_case(4, 6, 2, 3)
    sampled = SampledRows(case["rows"].requires_grad_(), case["bias"].unsqueeze(1), case["log_expected"], 6)
    nats = sampled.nats(case["hidden"], case["targets"])
    nats.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        nats.backward()


def test_without_gradients_it_only_scores() -> None:
    case = random_case(30, 40, 5, 8)
    with torch.no_grad():
        nats = SampledRows(case["rows"], case["bias"].unsqueeze(1), case["log_expected"], 40).nats(case["hidden"], case["targets"])
    assert nats.item() == pytest.approx(reference(case, 40)[0].item(), rel=1e-6)


def exact_nats(hidden: Tensor, rows: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    logits = hidden.double() @ rows.double().T + bias.double()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


@settings(deadline=None, max_examples=25)
@given(
    num_positions=st.integers(1, 30),
    vocabulary_size=st.integers(1, 200),
    block=st.integers(1, 250),
    chunk_bytes=st.sampled_from([1, 48 << 20]),
    num_ranks=st.integers(1, 5),
)
def test_full_softmax_in_any_blocks_and_over_any_ranks(
    num_positions: int, vocabulary_size: int, block: int, chunk_bytes: int, num_ranks: int
) -> None:
    case = random_case(num_positions, vocabulary_size, 0, 12, seed=vocabulary_size)
    hidden, rows, bias, targets = (case[name] for name in ("hidden", "rows", "bias", "targets"))
    expected = exact_nats(hidden, rows, bias, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CHUNK_BYTES", chunk_bytes)
        assert torch.allclose(full_softmax_part(hidden, rows, bias, targets, block).nats(), expected, rtol=1e-5, atol=1e-5)
        parts = []
        for rank in range(num_ranks):
            places = places_of_targets(targets, Ranks(rank, num_ranks, torch.device("cpu")))
            parts.append(full_softmax_part(hidden, rows[rank::num_ranks], bias[rank::num_ranks], places, block))
    log_sum_N = torch.stack([torch.log(part.total_N) + part.largest_N for part in parts]).logsumexp(0)
    target_N = torch.stack([part.target_N for part in parts]).amax(0)
    assert torch.allclose(log_sum_N - target_N, expected, rtol=1e-5, atol=1e-5)


def test_full_softmax_in_bfloat16() -> None:
    case = random_case(100, 1000, 0, 64)
    hidden, rows = case["hidden"].bfloat16(), case["rows"].bfloat16().float()
    expected = exact_nats(hidden, rows, case["bias"], case["targets"])
    found = full_softmax_part(hidden, case["rows"], case["bias"], case["targets"], 300).nats()
    assert found.dtype == torch.float64
    assert abs(found.mean() - expected.mean()) / expected.mean() < 1e-3


def test_full_softmax_with_a_far_maximum_in_a_late_block() -> None:
    hidden = torch.tensor([[1.0], [-1.0]])
    rows = torch.linspace(-500, 500, 101)[:, None]
    targets = torch.tensor([100, 0])
    expected = exact_nats(hidden, rows, torch.zeros(101), targets)
    assert torch.allclose(full_softmax_part(hidden, rows, torch.zeros(101), targets, 7).nats(), expected, atol=1e-6)
