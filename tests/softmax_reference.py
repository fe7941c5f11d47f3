"""Random cases of the sampled softmax, and the same in float64 as its formula reads."""

from __future__ import annotations

import torch
from torch import Tensor

from lm1b.model.sampled_softmax import SampledRows


def random_case(num_positions: int, num_samples: int, num_others: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    """Hidden vectors, their targets, and the rows of samples and of other targets."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = num_samples + num_others
    return {
        "hidden": torch.randn(num_positions, width, generator=generator),
        "rows": torch.randn(num_rows, width, generator=generator) * 0.5,
        "bias": torch.randn(num_rows, generator=generator),
        "targets": torch.randint(0, num_rows, (num_positions,), generator=generator),
        "log_expected": -torch.rand(num_rows, generator=generator) * 8,
    }


def reference(case: dict[str, Tensor], num_samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nats and gradients of hidden vectors, rows and bias by plain float64 autograd, written as the formula reads."""
    hidden, rows, bias = (case[name].double().requires_grad_() for name in ("hidden", "rows", "bias"))
    targets = case["targets"]
    corrected_NU = hidden @ rows.T + bias - case["log_expected"].double()
    target_N = corrected_NU.gather(1, targets[:, None]).squeeze(1)
    samples_NS = corrected_NU[:, :num_samples]
    is_target = torch.arange(num_samples) == targets[:, None]
    samples_NS = samples_NS.masked_fill(is_target, -torch.inf)
    nats = (torch.logsumexp(torch.cat([target_N[:, None], samples_NS], 1), 1) - target_N).sum()
    nats.backward()
    gradients = [tensor.grad for tensor in (hidden, rows, bias)]
    assert all(gradient is not None for gradient in gradients)
    return nats.detach(), *gradients  # type: ignore[return-value]


def ours(case: dict[str, Tensor], num_samples: int, dtype: torch.dtype, factor: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nats and the same gradients by our sampled softmax; hidden vectors in `dtype`."""
    hidden = case["hidden"].clone().to(dtype).requires_grad_()
    rows, bias = case["rows"].clone().requires_grad_(), case["bias"].clone().requires_grad_()
    nats = SampledRows(rows, bias.unsqueeze(1), case["log_expected"], num_samples).nats(hidden, case["targets"])
    (nats * factor).backward()
    assert nats.dtype == torch.float64
    assert nats.shape == ()
    assert hidden.grad is not None
    assert rows.grad is not None
    assert bias.grad is not None
    assert hidden.grad.dtype == dtype
    assert rows.grad.dtype == bias.grad.dtype == torch.float32
    return nats.detach(), hidden.grad, rows.grad, bias.grad


def relative_error(value: Tensor, expected: Tensor) -> float:
    """The norm of what is between them, relative to the expected one's."""
    return float((value.double() - expected).norm() / expected.norm())
