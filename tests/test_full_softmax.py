"""The full softmax as a training loss: nats and gradients against plain float64 autograd, in any blocks, over any ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from softmax_reference import random_case, relative_error
from tiny import run_ranks
from torch import Tensor

from lm1b.distributed import single_process
from lm1b.model import blocks
from lm1b.model.full_softmax import OwnRows
from lm1b.model.sampled_softmax import SampledRows

WORKER = str(Path(__file__).with_name("full_softmax_worker.py"))


def made_case(num_positions: int, vocabulary_size: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    return random_case(num_positions, vocabulary_size, 0, width, seed)


def reference(case: dict[str, Tensor]) -> list[Tensor]:
    """Nats and the gradients of hidden vectors, rows and bias by plain float64 autograd."""
    hidden, rows, bias = (case[name].double().requires_grad_() for name in ("hidden", "rows", "bias"))
    nats = torch.nn.functional.cross_entropy(hidden @ rows.T + bias, case["targets"], reduction="sum")
    return [nats.detach(), *torch.autograd.grad(nats, [hidden, rows, bias])]


def ours(case: dict[str, Tensor], dtype: torch.dtype = torch.float32, factor: float = 1.0, block: int = 8192) -> list[Tensor]:
    hidden = case["hidden"].clone().to(dtype).requires_grad_()
    rows, bias = case["rows"].clone().requires_grad_(), case["bias"].clone().requires_grad_()
    nats = OwnRows(rows, bias.unsqueeze(1), single_process(), block).nats(hidden, case["targets"])
    assert nats.dtype == torch.float64
    assert nats.shape == ()
    gradients = torch.autograd.grad(nats * factor, [hidden, rows, bias])
    assert [gradient.dtype for gradient in gradients] == [dtype, torch.float32, torch.float32]
    return [nats.detach(), *gradients]


@settings(deadline=None, max_examples=25)
@given(
    num_positions=st.integers(1, 40),
    vocabulary_size=st.integers(1, 120),
    width=st.integers(1, 20),
    block=st.integers(1, 150),
    chunk_bytes=st.sampled_from([1, 3000, 48 << 20]),
    block_elements=st.sampled_from([1, 200, 1 << 17]),
)
def test_nats_and_gradients_in_any_blocks(
    num_positions: int, vocabulary_size: int, width: int, block: int, chunk_bytes: int, block_elements: int
) -> None:
    case = made_case(num_positions, vocabulary_size, width, seed=vocabulary_size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(blocks, "BLOCK_ELEMENTS", block_elements)
        found = ours(case, block=block)
    for value, expected in zip(found, reference(case), strict=True):
        assert torch.allclose(value.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("block", [100, 8192])
def test_in_bfloat16(block: int) -> None:
    case = made_case(200, 300, 64)
    # The reference gets what bfloat16 can hold: only the arithmetic is compared.
    case["hidden"], case["rows"] = case["hidden"].bfloat16().float(), case["rows"].bfloat16().float()
    nats, *gradients = ours(case, torch.bfloat16, block=block)
    expected_nats, *expected = reference(case)
    assert abs(nats - expected_nats) / expected_nats < 5e-4
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        assert relative_error(gradient, expected_gradient) < 0.01


def test_it_is_the_sampled_softmax_of_all_words() -> None:
    case = made_case(300, 500, 48)
    hidden, rows, bias = (case[name].clone().requires_grad_() for name in ("hidden", "rows", "bias"))
    nats = SampledRows(rows, bias.unsqueeze(1), torch.zeros(500), 500).nats(hidden, case["targets"])
    expected = [nats.detach(), *torch.autograd.grad(nats, [hidden, rows, bias])]
    for value, expected_value in zip(ours(case), expected, strict=True):
        assert relative_error(value, expected_value.double()) < 1e-6


def test_a_loss_scale_and_extreme_logits() -> None:
    case = made_case(64, 100, 16)
    found = ours(case, factor=65536.0 / 128)
    for value, expected in zip(found[1:], reference(case)[1:], strict=True):
        assert relative_error(value, expected * 512) < 1e-5
    case["hidden"] *= 300.0
    for value, expected in zip(ours(case, block=7), reference(case), strict=True):
        assert torch.isfinite(value).all()
        assert torch.allclose(value.double(), expected, rtol=1e-3, atol=2e-2)


def test_a_factor_is_not_rounded_to_half_precision() -> None:
    case = made_case(64, 100, 16)
    gradient, scaled = (ours(case, torch.bfloat16, factor)[1] for factor in (1.0, 1 / 96))
    assert torch.equal(scaled, (gradient.float() * (1 / 96)).bfloat16())


def test_a_certain_target_keeps_its_small_gradient() -> None:
    case = {"hidden": torch.tensor([[14.0]]), "rows": torch.tensor([[0.0], [1.0]]), "bias": torch.zeros(2), "targets": torch.tensor([1])}
    bias_gradient = ours(case)[3].double()
    small = torch.sigmoid(torch.tensor(-14.0, dtype=torch.float64)).item()
    assert bias_gradient.tolist() == pytest.approx([small, -small], rel=1e-5)


def test_its_gradient_is_taken_once_and_none_is_made_where_none_is_wanted() -> None:
    case = made_case(4, 6, 3)
    own = OwnRows(case["rows"].requires_grad_(), case["bias"].unsqueeze(1), single_process())
    with torch.no_grad():
        assert own.nats(case["hidden"], case["targets"]) > 0
    nats = own.nats(case["hidden"], case["targets"])
    nats.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already"):
        nats.backward()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_that_hold_the_rows_between_them(tmp_path: Path, num_ranks: int) -> None:
    case = made_case(num_ranks * 20, 101, 12, seed=num_ranks)
    (tmp_path / "case.json").write_text(json.dumps({name: tensor.tolist() for name, tensor in case.items()}))
    run_ranks([WORKER, str(tmp_path)], num_ranks)
    reports = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(num_ranks)]
    nats, hidden_gradient, rows_gradient, bias_gradient = reference(case)
    assert sum(report["nats"] for report in reports) == pytest.approx(nats.item(), rel=1e-6)
    assert relative_error(torch.cat([torch.tensor(report["hidden"]) for report in reports]), hidden_gradient) < 1e-5
    for rank, report in enumerate(reports):
        assert relative_error(torch.tensor(report["rows"]), rows_gradient[rank::num_ranks]) < 1e-5
        assert relative_error(torch.tensor(report["bias"]), bias_gradient[rank::num_ranks]) < 1e-5
        assert report["most_rows_at_once"] <= 7, "logits are of a block of this rank's rows"
