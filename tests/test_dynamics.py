"""What cells and half precisions do to a state, against what can be computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lm1b.sequence_tasks.dynamics import (
    ROUNDINGS,
    Rounding,
    initializations,
    irnn_cases,
    pixel_like,
    recurrent_matrix,
    spectrum,
    state_errors,
    state_norms,
    steps_to_overflow,
)


@pytest.mark.parametrize(("name", "scale"), [("IRNN (W = I)", 1.0), ("IRNN (W = 0.99 I)", 0.99), ("IRNN (W = 0.9 I)", 0.9)])
def test_a_scaled_identity_holds_or_shrinks_a_state_by_its_scale(name: str, scale: float) -> None:
    norms = state_norms(initializations(20)[name], 50, has_input=False)
    assert norms == pytest.approx([scale**step for step in range(51)], rel=1e-12)


def test_the_identity_holds_a_state_for_784_steps_exactly() -> None:
    assert set(state_norms(initializations(20)["IRNN (W = I)"], 784, has_input=False)) == {1.0}


def test_an_np_rnn_forgets_although_its_largest_eigenvalue_is_1() -> None:
    config = initializations(100)["np-RNN"]
    real, imaginary = spectrum(config)
    assert max(real) == pytest.approx(1.0, abs=1e-12)
    assert max(map(abs, imaginary)) < 1e-12
    assert min(real) > 0.0
    assert state_norms(config, 100, has_input=False)[-1] < 1e-6


def test_the_lstms_matrix_is_that_of_its_cell_gate() -> None:
    assert recurrent_matrix(initializations(12)["LSTM (cell state)"]).shape == (12, 12)


def test_pixel_like_input_is_mostly_black() -> None:
    x_TB1 = pixel_like(784, 16)
    assert x_TB1.shape == (784, 16, 1)
    assert float((x_TB1 > 0).double().mean()) == pytest.approx(0.19, abs=0.02)


def test_fewer_bits_are_further_off() -> None:
    for case in irnn_cases(100, 30).values():
        last = {name: state_errors(case, rounding)[-1] or 0.0 for name, rounding in ROUNDINGS.items()}
        assert last["float32"] < 1e-5 < last["fp16"] < last["bf16"]
        assert last["bf16 products of W - I, float32 state"] < last["bf16 products, float32 state"]


def test_rounding_to_float64_is_no_rounding_but_for_the_float32_products() -> None:
    case = irnn_cases(30, 10)["moved weights"]
    errors = state_errors(case, Rounding(torch.float64, torch.float64))
    assert max(error or 0.0 for error in errors) < 1e-6


def test_a_state_that_is_not_finite_has_no_error() -> None:
    case = irnn_cases(30, 10)["moved weights"]
    huge = type(case)(case.w_NN * 1e4, case.u_N1, case.x_TB1, case.h_BN + 1.0)
    errors = state_errors(huge, ROUNDINGS["fp16"])
    assert errors[-1] is None


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 65504.0), (torch.bfloat16, 3.39e38)])
def test_overflow_comes_when_the_rounded_growth_says(dtype: torch.dtype, largest: float) -> None:
    step, growth = steps_to_overflow(1.5, dtype)
    assert growth == 1.5  # exact in both
    assert step == pytest.approx(math.log(largest) / math.log(1.5), abs=2)
    assert steps_to_overflow(1.0, dtype) == (None, 1.0)
