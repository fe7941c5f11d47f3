"""What a GPU computes of the model, piece by piece, beside the same in float64 on the CPU; each body runs on the CPU too (devices.py)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from devices import DEVICES, KERNELS, ON_GPU, PRECISIONS, assert_near, kernels_of, no_waiting, on, rounded
from recurrent_reference import CELLS, loop_in_float64, make_stack, random_state
from scoring_reference import brute_force_nats, made_scorer
from softmax_reference import ours, random_case, reference

from lm1b.config import ModelConfig
from lm1b.distributed import single_process
from lm1b.evaluation.scoring.ranks import evaluating_ranks
from lm1b.evaluation.trained.scorer import Scorer
from lm1b.model import blocks
from lm1b.model.full_softmax import full_softmax_part
from lm1b.model.language_model import LanguageModel, LossParts
from lm1b.model.output_layer import TableOutput
from lm1b.model.products import keep_float32_exact, product
from lm1b.model.sampled_softmax import SampledRows

STEPS, LANES, WIDTH, HIDDEN = 20, 6, 24, 40
# Of set_sync_debug_mode, told once.
pytestmark = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")


@pytest.fixture(autouse=True)
def _float32_is_float32() -> Iterator[None]:
    """As every process that trains or scores has it."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    keep_float32_exact()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


# Recurrent layers ------------------------------------------------------------------------------------------------


def errors_of_a_stack(cell: str, device: str, dtype: torch.dtype, given: torch.dtype) -> None:
    """Two layers over a window, forward and backward. given: what the layers' inputs are rounded to behind the reference's back.

    A state is rounded once a step and layer, going forward, and its gradient again, going back: 2 x STEPS roundings, and no layer at hand
    makes an error grow. (In half precision a ReLU now and then opens on one side alone: those are the largest errors.)
    """
    # A projection as wide as a GPU's half precision likes it: shapes are multiples of 8 in all configs.
    projected = {"recurrent_projection": 16} if cell == "lstm_projected" else {}
    stack = make_stack(cell.removesuffix("_projected"), input_width=WIDTH, hidden=HIDDEN, **projected).to(dtype)
    generator = torch.Generator().manual_seed(1)
    x_TBD = rounded(torch.randn(STEPS, LANES, WIDTH, generator=generator), dtype)
    factor = rounded(torch.randn(STEPS, LANES, stack.output_width, generator=generator), dtype)
    state = {name: rounded(value, dtype) for name, value in random_state(stack, LANES).items()}
    there = on(stack, device, dtype)
    x_there = rounded(x_TBD, given).to(device, dtype, copy=True).requires_grad_()
    y_TBH, new_state, _ = there(x_there, {name: value.to(device, dtype) for name, value in state.items()})
    (y_TBH.float() * factor.to(device, torch.float32)).sum().backward()

    weights = {name: value.detach().double().requires_grad_() for name, value in stack.named_parameters()}
    x_expected = x_TBD.double().requires_grad_()
    expected_TBH, expected_state = loop_in_float64(stack, weights, x_expected, state, torch.zeros(STEPS, LANES, dtype=torch.bool))
    (expected_TBH * factor.double()).sum().backward()
    assert y_TBH.device.type == device
    roundings = 2 * STEPS
    assert_near(y_TBH, expected_TBH, dtype, roundings, "output")
    for name, value in expected_state.items():
        assert_near(new_state[name], value, dtype, roundings, f"state {name}")
    for name, parameter in [*there.named_parameters(), ("inputs", x_there)]:
        expected = x_expected.grad if name == "inputs" else weights[name].grad
        assert parameter.grad is not None
        assert expected is not None
        assert_near(parameter.grad, expected, dtype, roundings, f"gradient of {name}")


@pytest.mark.parametrize(("device", "dtype"), PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_recurrent_stack_and_its_gradients(cell: str, device: str, dtype: torch.dtype) -> None:
    errors_of_a_stack(cell, device, dtype, dtype)


@pytest.mark.parametrize("cell", CELLS)
def test_the_tolerance_of_float32_would_not_let_tf32_pass(cell: str) -> None:
    """TF32 keeps 11 bits of what goes into a product, as float16 does: were it at work, the test above would fail."""
    with pytest.raises(AssertionError, match="allowed"):
        errors_of_a_stack(cell, "cpu", torch.float32, torch.float16)


@pytest.mark.parametrize("device", DEVICES)
def test_a_product_of_float32_keeps_24_bits(device: str) -> None:
    """The sum of (1 + 2^-12)^2 less 1 is lost where factors are rounded to 11 bits."""
    x = torch.full((64, 64), 1.0 + 2.0**-12, device=device)
    assert torch.equal(product(x, x).cpu(), torch.full((64, 64), 64 * (1.0 + 2.0**-12) ** 2))


def test_an_evaluator_keeps_float32_exact() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    with evaluating_ranks("cpu"):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32


# Softmax ---------------------------------------------------------------------------------------------------------


def softmax_case(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    case = random_case(300, 500, 60, 64)
    return case | {name: rounded(case[name], dtype) for name in ("hidden", "rows")}


def roundings_of_logits(case: dict[str, torch.Tensor]) -> float:
    """A logit of size l is rounded by l eps / 2, and once more as the argument of the exponential: its probability is off by
    as much relative to itself. Then the probability is rounded, the product with it, and its sums. The usual size of a
    logit counts: of so many, roundings partly cancel.
    """
    logits_NU = case["hidden"] @ case["rows"].T + case["bias"] - case["log_expected"]
    return 2.0 * float(logits_NU.norm()) / logits_NU.numel() ** 0.5 + 4.0


@pytest.mark.parametrize(("device", "dtype"), PRECISIONS)
@pytest.mark.parametrize("chunk_bytes", [48 << 20, 60_000])
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_sampled_softmax_and_its_gradients(
    device: str, dtype: torch.dtype, chunk_bytes: int, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHUNK_BYTES", "CHUNK_BYTES_GPU"):
        monkeypatch.setattr(blocks, name, chunk_bytes)
    case = softmax_case(dtype)
    with kernels_of(kernels):
        found = ours({name: value.to(device) for name, value in case.items()}, 500, dtype)
    for name, value, expected in zip(("nats", "hidden", "rows", "bias"), found, reference(case, 500), strict=True):
        assert value.device.type == device
        assert_near(value, expected, dtype, roundings_of_logits(case), name)


@pytest.mark.parametrize(("device", "dtype"), PRECISIONS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_exact_nats_of_every_position(device: str, dtype: torch.dtype, kernels: str) -> None:
    case = softmax_case(dtype)
    hidden, rows, bias, targets = (case[name] for name in ("hidden", "rows", "bias", "targets"))
    logits_NV = hidden.double() @ rows.double().T + bias.double()
    expected_N = torch.nn.functional.cross_entropy(logits_NV, targets, reduction="none")
    with kernels_of(kernels):
        found_N = full_softmax_part(hidden.to(device, dtype), rows.to(device, dtype), bias.to(device), targets.to(device), 128).nats()
    assert found_N.device.type == device
    assert found_N.dtype == torch.float64
    assert_near(found_N, expected_N, dtype, roundings_of_logits(case))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", ["lstm", "irnn"])
def test_the_exact_evaluator(device: str, cell: str) -> None:
    """Sequences of several lengths, whole: within 1e-6 of a float64 loop over positions, which TF32 would miss by 1e-4."""
    made, input_rows = made_scorer(3, 20, cell=cell)
    assert isinstance(made.output, TableOutput)
    sequences = [np.random.default_rng(length).integers(0, 20, length) for length in (1, 30, 7, 200)]
    ranks = single_process(device)
    output = TableOutput(made.output.rows_LP.to(device), made.output.bias_L.to(device), ranks, 7)
    scorer = Scorer(on(made.model, device, torch.float32), made.input_ids_U, input_rows.to(device), output, 1, ranks)  # type: ignore[arg-type]
    nats = scorer.nats(sequences, 3)
    arguments = input_rows, made.output.rows_LP, made.output.bias_L
    assert nats == pytest.approx(sum(brute_force_nats(made.model, *arguments, sequence.tolist(), 1) for sequence in sequences), rel=1e-6)


# The window as a whole -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "dtype"), PRECISIONS)
@pytest.mark.parametrize("cell", ["lstm", "irnn"])
def test_a_window_of_the_model_waits_for_nothing_and_is_right(cell: str, device: str, dtype: torch.dtype) -> None:
    """From fetched rows to their gradients, on a GPU without one look at what the device has done so far."""
    config = ModelConfig(cell=cell, embedding=WIDTH, hidden=HIDDEN, projection=16)  # type: ignore[arg-type]
    model = LanguageModel(config, 3).to(dtype)
    case = random_case(STEPS * LANES, 50, 30, 16)
    case["rows"] = rounded(case["rows"], dtype)
    generator = torch.Generator().manual_seed(1)
    input_rows_UD = rounded(torch.randn(25, WIDTH, generator=generator), dtype)
    positions_TB = torch.randint(0, 25, (STEPS, LANES), generator=generator)
    there = on(model, device, dtype)
    leaves = [value.to(device, copy=True).requires_grad_() for value in (input_rows_UD, case["rows"], case["bias"])]
    given = [value.to(device) for value in (positions_TB, case["targets"], case["log_expected"])]
    state = there.zero_state(LANES, device)  # type: ignore[operator]

    def window() -> LossParts:
        for tensor in [*leaves, *there.parameters()]:
            tensor.grad = None
        parts = there(leaves[0], given[0], SampledRows(leaves[1], leaves[2], given[2], 50), given[1], state)
        (parts.nats / LANES).float().backward()
        return parts

    window()  # libraries set themselves up
    with no_waiting(device):
        parts = window()

    weights = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    inputs = input_rows_UD.double().requires_grad_()
    of_stack = {name.removeprefix("stack."): value for name, value in weights.items()}
    zero = model.zero_state(LANES, "cpu")
    y_TBH, _ = loop_in_float64(model.stack, of_stack, inputs[positions_TB], zero, torch.zeros(STEPS, LANES, dtype=torch.bool))
    hidden_NP = (y_TBH @ weights["projection.weight"].T + weights["projection.bias"]).flatten(0, 1)
    expected_nats, hidden_gradient, rows_gradient, bias_gradient = reference(case | {"hidden": hidden_NP.detach()}, 50)
    hidden_NP.backward(hidden_gradient)
    roundings = 2 * STEPS + roundings_of_logits(case | {"hidden": hidden_NP.detach().float()})
    assert_near(parts.nats, expected_nats, dtype, roundings, "nats")
    for name, parameter in there.named_parameters():
        expected = weights[name].grad
        assert parameter.grad is not None
        assert expected is not None
        assert_near(parameter.grad, expected / LANES, dtype, roundings, f"gradient of {name}")
    for leaf, expected in zip(leaves, (inputs.grad, rows_gradient, bias_gradient), strict=True):
        assert leaf.grad is not None
        assert expected is not None
        assert_near(leaf.grad, expected / LANES, dtype, roundings, "gradient of rows")


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
def test_waiting_is_noticed(device: str) -> None:
    """Else the test above would pass whatever the model does."""
    value = torch.ones(3, device=device)
    with no_waiting(device), pytest.raises(RuntimeError, match="synchroniz"):
        value.sum().item()
