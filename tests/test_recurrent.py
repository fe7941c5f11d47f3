"""Recurrent layers: each cell against a float64 loop written from its paper, and how they start."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from recurrent_reference import CELLS, loop_in_float64, make_stack, random_state

from lm1b.model.dropout import Dropout
from lm1b.model.initial_weights import normalized_positive_definite


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("with_resets", [False, True])
def test_against_a_float64_loop_with_gradients(cell: str, with_resets: bool) -> None:
    stack = make_stack(cell)
    generator = torch.Generator().manual_seed(1)
    x_TBD = torch.randn(9, 4, 5, generator=generator)
    resets_TB = torch.rand(9, 4, generator=generator) < (0.3 if with_resets else 0.0)
    state = random_state(stack, 4)
    factor = torch.randn(9, 4, stack.output_width, generator=generator)

    y_TBH, new_state, _ = stack(x_TBD, state, resets_TB=resets_TB if with_resets else None)
    (y_TBH * factor).sum().backward()
    weights = {name: value.detach().double().requires_grad_() for name, value in stack.named_parameters()}
    expected_TBH, expected_state = loop_in_float64(stack, weights, x_TBD.double(), state, resets_TB)
    (expected_TBH * factor).sum().backward()

    assert torch.allclose(y_TBH.double(), expected_TBH, atol=1e-5)
    assert new_state.keys() == expected_state.keys() == state.keys()
    for name, value in new_state.items():
        assert value.shape == state[name].shape
        assert torch.allclose(value.double(), expected_state[name], atol=1e-5)
    for name, parameter in stack.named_parameters():
        assert parameter.grad is not None, name
        assert torch.allclose(parameter.grad.double(), weights[name].grad, rtol=1e-4, atol=1e-4), name  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", CELLS)
def test_state_carries_over_windows(cell: str) -> None:
    stack = make_stack(cell)
    x_TBD = torch.randn(10, 3, 5, generator=torch.Generator().manual_seed(1))
    whole, last, _ = stack(x_TBD, stack.zero_state(3, "cpu", torch.float32))
    state = stack.zero_state(3, "cpu", torch.float32)
    parts = []
    for part in x_TBD.split(4):
        y, state, _ = stack(part, state)
        parts.append(y)
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)
    assert all(torch.allclose(state[name], last[name], atol=1e-6) for name in last)


@pytest.mark.parametrize("cell", CELLS)
def test_a_reset_forgets_everything(cell: str) -> None:
    stack = make_stack(cell)
    x_TBD = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(1))
    resets_TB = torch.zeros(6, 2, dtype=torch.bool)
    resets_TB[3, 0] = True
    broken = {name: torch.full_like(value, torch.nan) for name, value in stack.zero_state(2, "cpu", torch.float32).items()}
    state = {name: torch.cat([broken[name][:1], value[1:]]) for name, value in random_state(stack, 2).items()}
    y_TBH, _, _ = stack(x_TBD, state, resets_TB=resets_TB)
    fresh, _, _ = stack(x_TBD[3:], stack.zero_state(2, "cpu", torch.float32))
    assert torch.allclose(y_TBH[3:, 0], fresh[:, 0], atol=1e-6)
    unbroken, _, _ = stack(x_TBD, random_state(stack, 2))
    assert torch.allclose(y_TBH[:, 1], unbroken[:, 1], atol=1e-6)


def test_identity_holds_a_state() -> None:
    stack = make_stack("irnn", layers=1)
    state = {"0.h": torch.rand(4, 8)}
    y_TBH, new_state, _ = stack(torch.zeros(300, 4, 5), state)
    assert torch.equal(new_state["0.h"], state["0.h"])
    assert torch.equal(y_TBH, state["0.h"].expand_as(y_TBH))


def test_irnn_starts_from_a_scaled_identity() -> None:
    weights = dict(make_stack("irnn", identity_scale=0.01, input_weight="normal", hidden=200).named_parameters())
    assert torch.equal(weights["layers.0.weight_hh_l0"], 0.01 * torch.eye(200))
    assert weights["layers.1.weight_ih_l0"].std().item() == pytest.approx(0.001, rel=0.02)
    assert not any(value.any() for name, value in weights.items() if "bias" in name)


@pytest.mark.parametrize("size", [1, 2, 17, 100])
def test_np_rnn_spectrum(size: int) -> None:
    weight = normalized_positive_definite(11, size)
    assert torch.allclose(weight, weight.T, rtol=0, atol=1e-15)
    eigenvalues = torch.linalg.eigvalsh(weight)
    assert eigenvalues[-1].item() == pytest.approx(1.0, abs=1e-12)
    assert eigenvalues[0] > 0
    if size > 50:  # A's spectrum is Marchenko and Pastur's (0..4), so that of (A + I) / lambda_max is about 1/5..1
        assert 0.18 < eigenvalues[0] < 0.25


def test_np_rnn_input_weights() -> None:
    weights = dict(make_stack("np_rnn", input_weight="np_rnn", hidden=300).named_parameters())
    variance = math.sqrt(2) * math.exp(1.2 / (300 - 2.4)) / 300
    assert weights["layers.1.weight_ih_l0"].var().item() == pytest.approx(variance, rel=0.02)


def test_glorot_limit_is_that_of_one_gate() -> None:
    weight = dict(make_stack("lstm", input_width=50, hidden=60).named_parameters())["layers.0.weight_ih_l0"]
    limit = math.sqrt(6 / 110)
    assert 0.98 * limit < weight.abs().max() <= limit


@pytest.mark.parametrize("cell", ["lstm", "lstm_projected"])
def test_forget_bias_counts_once(cell: str) -> None:
    weights = dict(make_stack(cell, forget_bias=4.0).named_parameters())
    for layer in range(2):
        total = weights[f"layers.{layer}.bias_ih_l0"] + weights[f"layers.{layer}.bias_hh_l0"]
        assert total.tolist() == [0.0] * 8 + [4.0] * 8 + [0.0] * 16


@pytest.mark.parametrize("cell", ["relu_rnn", "tanh_rnn", "lstm"])
def test_recurrent_weight_std(cell: str) -> None:
    for given, expected in ((None, 1 / math.sqrt(120)), (0.02, 0.02)):
        weights = dict(make_stack(cell, hidden=120, recurrent_weight_std=given).named_parameters())
        assert weights["layers.0.weight_hh_l0"].std().item() == pytest.approx(expected, rel=0.03)


def test_initial_weights_are_keyed_by_seed_and_name() -> None:
    one, same, other = (dict(make_stack("lstm", seed).named_parameters()) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    names = [name for name in one if "weight" in name]
    assert not any(torch.equal(one[name], other[name]) for name in names)
    square = [one[name].flatten()[:64] for name in names]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(square, 2))
    # A deeper stack starts its first layers alike.
    deeper = dict(make_stack("lstm", 1, layers=3).named_parameters())
    assert all(torch.equal(one[name], deeper[name]) for name in one)


def test_dropout_is_the_same_for_any_split_of_lanes() -> None:
    x_TBD = torch.ones(7, 12, 40)
    whole = Dropout(0.3, seed=1, step=5)(x_TBD, 1)
    for sizes in ([12], [4, 4, 4], [1, 11], [5, 7]):
        first, parts = 0, []
        for size in sizes:
            parts.append(Dropout(0.3, seed=1, step=5, first_lane=first)(x_TBD[:, first : first + size], 1))
            first += size
        assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(Dropout(0.3, seed=1, step=5)(x_TBD[:3], 1), whole[:3])


def test_dropout_keeps_its_share_and_differs_by_step_layer_and_seed() -> None:
    x_TBD = torch.ones(20, 32, 100)
    kept = Dropout(0.3, seed=1, step=5)(x_TBD, 0)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (kept > 0).double().mean().item() == pytest.approx(0.7, abs=0.006)
    others = [Dropout(0.3, 1, 6)(x_TBD, 0), Dropout(0.3, 1, 5)(x_TBD, 1), Dropout(0.3, 2, 5)(x_TBD, 0)]
    for other in others:  # independent: both keep 0.49 of the activations
        assert ((other > 0) & (kept > 0)).double().mean().item() == pytest.approx(0.49, abs=0.01)
    assert torch.equal(Dropout(0.0, 1, 5)(x_TBD, 0), x_TBD)


def test_dropout_in_half_precision_rounds_each_activation_once() -> None:
    x_TBD = torch.randn(7, 12, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    dropout = Dropout(0.25, seed=1, step=5)
    assert torch.equal(dropout(x_TBD, 0), dropout(x_TBD.float(), 0).bfloat16())


def test_dropout_in_a_stack_reaches_every_layer() -> None:
    stack = make_stack("lstm")
    x_TBD = torch.randn(6, 4, 5)
    zero = stack.zero_state(4, "cpu", torch.float32)
    dropout = Dropout(0.5, seed=1, step=0)
    expected = dropout(x_TBD, 0)
    expected, _ = stack.layers[0](expected, (zero["0.h"][None], zero["0.c"][None]))
    expected, _ = stack.layers[1](dropout(expected, 1), (zero["1.h"][None], zero["1.c"][None]))
    y_TBH, _, _ = stack(x_TBD, zero, dropout=dropout)
    assert torch.equal(y_TBH, expected)


def test_largest_activation_looks_at_every_layer() -> None:
    stack = make_stack("irnn", input_weight="normal")
    state = stack.zero_state(2, "cpu", torch.float32)
    state["0.h"][1, 3] = 77.0
    _, _, largest = stack(torch.zeros(4, 2, 5), state)
    assert largest.item() == 77.0
