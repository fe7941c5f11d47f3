"""The CPU's own recurrent layers against torch's, and their gradients against differences, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lm1b.model import recurrent_cpu
from lm1b.model.products import product
from lm1b.model.recurrent_cpu import LSTMLayer, RNNLayer

STEPS, LANES, WIDTH, HIDDEN = 7, 6, 5, 8
# (our layer, torch's, keywords)
KINDS: dict[str, tuple[type[nn.RNNBase], type[nn.RNNBase], dict[str, Any]]] = {
    "relu": (RNNLayer, nn.RNN, {"nonlinearity": "relu"}),
    "tanh": (RNNLayer, nn.RNN, {"nonlinearity": "tanh"}),
    "lstm": (LSTMLayer, nn.LSTM, {}),
    "lstm_projection": (LSTMLayer, nn.LSTM, {"proj_size": 3}),
}


@pytest.fixture(autouse=True)
def ours_at_every_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent_cpu, "_SMALL_HIDDEN", 0)


def make_both(kind: str, seed: int = 0) -> tuple[nn.RNNBase, nn.RNNBase]:
    """Our layer and torch's with the same float64 weights."""
    ours, torchs, keywords = KINDS[kind]
    torch.manual_seed(seed)
    reference = torchs(WIDTH, HIDDEN, **keywords).double()
    layer = ours(WIDTH, HIDDEN, **keywords).double()
    layer.load_state_dict(reference.state_dict())
    return layer, reference


def run(layer: nn.RNNBase, dtype: torch.dtype, seed: int = 1) -> dict[str, Tensor]:
    """Outputs, last state and every gradient of a made-up window, float64."""
    generator = torch.Generator().manual_seed(seed)
    state_width = layer.proj_size or HIDDEN
    x, h, c, y_gradient, c_gradient = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in [
            (STEPS, LANES, WIDTH),
            (1, LANES, state_width),
            (1, LANES, HIDDEN),
            (STEPS, LANES, state_width),
            (1, LANES, HIDDEN),
        ]
    )
    layer.zero_grad()
    found: dict[str, Tensor] = {}
    if isinstance(layer, nn.LSTM):
        y, (h_last, c_last) = layer(x, (h, c))
        torch.autograd.backward([y, c_last, h_last], [y_gradient, c_gradient, y_gradient[:1]])
        found |= {"c_last": c_last, "c": c.grad}  # type: ignore[dict-item]
    else:
        y, h_last = layer(x, h)
        torch.autograd.backward([y, h_last], [y_gradient, y_gradient[:1]])
    found |= {"y": y, "h_last": h_last, "x": x.grad, "h": h.grad}  # type: ignore[dict-item]
    found |= {name: parameter.grad for name, parameter in layer.named_parameters()}  # type: ignore[misc]
    return {name: value.detach().double() for name, value in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_torch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, reference = make_both(kind)
    expected = run(reference, torch.float64)
    for elements in (1 << 15, 2 * HIDDEN, 1):  # all lanes together, two, one
        monkeypatch.setattr(recurrent_cpu, "_BLOCK_ELEMENTS", elements)
        for name, value in run(layer, torch.float64).items():
            assert torch.allclose(value, expected[name], rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_rounding_stays_that_of_the_dtype(kind: str, dtype: torch.dtype, largest: float) -> None:
    layer, reference = make_both(kind)
    layer = layer.to(dtype)
    reference.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    # The reference gets the rounded input too.
    expected, found = run(_through(reference, dtype), torch.float64), run(layer, dtype)
    for name, value in found.items():
        assert (value - expected[name]).norm() <= largest * expected[name].norm(), name


def _through(reference: nn.RNNBase, dtype: torch.dtype) -> nn.RNNBase:
    """The reference, whose inputs are rounded to `dtype` on their way in."""

    def rounded(value: Any) -> Any:
        return tuple(map(rounded, value)) if isinstance(value, tuple) else value.to(dtype).double()

    reference.register_forward_pre_hook(lambda _, arguments: rounded(arguments))
    return reference


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_differences(kind: str) -> None:
    layer, _ = make_both(kind)
    x = torch.randn(3, 2, WIDTH, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, 2, layer.proj_size or HIDDEN, dtype=torch.float64, requires_grad=True)
    c = torch.randn(1, 2, HIDDEN, dtype=torch.float64, requires_grad=True)

    def outputs(*_: Tensor) -> tuple[Tensor, ...]:
        y, state = layer(x, (h, c)) if isinstance(layer, nn.LSTM) else layer(x, h)
        return y, state[1] if isinstance(state, tuple) else state

    inputs = [x, h, *layer.parameters(), *([c] if isinstance(layer, nn.LSTM) else [])]
    assert torch.autograd.gradcheck(outputs, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_that_is_not_finite_shows(kind: str) -> None:
    layer = make_both(kind)[0].float()
    state = torch.zeros(1, LANES, layer.proj_size or HIDDEN)
    state[0, 2] = torch.nan
    y = layer(torch.zeros(STEPS, LANES, WIDTH), (state, torch.zeros(1, LANES, HIDDEN)) if isinstance(layer, nn.LSTM) else state)[0]
    assert torch.isnan(y[:, 2]).all()
    assert torch.isfinite(y[:, [0, 1, 3, 4, 5]]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_of_transposed_factors(dtype: torch.dtype) -> None:
    x, w, more = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in [(9, 33), (17, 33), (9, 17)])
    exact = x.double() @ w.double().T
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for left in (x, x.T.contiguous().T):
        for right in (w, w.T.contiguous().T):
            assert torch.allclose(product(left, right).double(), exact, **tolerance)
            assert torch.allclose(product(left, right, add_MN=more).double(), exact + more.double(), **tolerance)
