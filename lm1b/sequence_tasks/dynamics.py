"""What the cells do before they have learned anything, and what half precision does to their state. No training.

1. `state_norms`: the norm of the state step by step, relative to its start, with no input and with input like MNIST's pixels.
2. `spectrum`: eigenvalues of the initial recurrent matrix (of the LSTM: of its cell gate's).
3. `state_errors`: how far an IRNN's state is from the float64 one, step by step, in several half precisions.

Half precision is computed by rounding: weights, state and input are rounded to the type, products are summed in float32 as tensor cores
and oneDNN do, and the new state is rounded to the type of the state. So the figures do not depend on the machine.

T steps, B sequences, N units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lm1b.config import CellConfig
from lm1b.model.recurrent import RecurrentStack
from lm1b.randomness import derive_key, normal, uniform

UNITS, SEQUENCES, STEPS = 100, 16, 784
PIXELS_LIT = 0.19  # share of MNIST's pixels that are not black
SEED = 1


def initializations(units: int = UNITS) -> dict[str, CellConfig]:
    """The initialisations that are compared, by the names that tables give them."""
    le = {"hidden": units, "input_weight": "normal", "input_weight_std": 0.001}
    scales = {"I": 1.0, "0.99 I": 0.99, "0.9 I": 0.9, "0.01 I": 0.01}
    values: dict[str, dict[str, object]] = {
        f"IRNN (W = {name})": {"cell": "irnn", "identity_scale": scale, **le} for name, scale in scales.items()
    }
    values["IRNN (W = I, Glorot input)"] = {"cell": "irnn", "hidden": units}  # what the tasks' configs train
    values["np-RNN"] = {"cell": "np_rnn", "hidden": units, "input_weight": "np_rnn"}
    values["ReLU RNN (Gaussian)"] = {"cell": "relu_rnn", "hidden": units}
    values["tanh RNN"] = {"cell": "tanh_rnn", "hidden": units}
    values["LSTM (cell state)"] = {"cell": "lstm", "hidden": units}
    return {name: CellConfig.model_validate(value) for name, value in values.items()}


def pixel_like(steps: int, sequences: int, seed: int = SEED) -> Tensor:
    """x_TB1, float64: 0 for most steps, uniform in (0, 1) for PIXELS_LIT of them."""
    counters_TB = torch.arange(steps * sequences).view(steps, sequences)
    values_TB, lit_TB = (uniform(derive_key(seed, "pixels", what), counters_TB) for what in ("value", "lit"))
    return torch.where(lit_TB < PIXELS_LIT, values_TB, 0.0).unsqueeze(2)


def start_BN(units: int, seed: int = SEED) -> Tensor:
    """A random start of SEQUENCES sequences, uniform in (0, 1): float64 [B, N]."""
    return uniform(derive_key(seed, "start"), torch.arange(SEQUENCES * units)).view(SEQUENCES, units)


def state_norms(config: CellConfig, steps: int, *, has_input: bool) -> list[float]:
    """Norm of the state after 0 to `steps` steps over that at the start, the median of the sequences. LSTM: of its cell state."""
    stack = RecurrentStack(config, 1).double()
    stack.initialize(SEED)
    name = "0.c" if config.cell == "lstm" else "0.h"
    x_TB1 = pixel_like(steps, SEQUENCES) if has_input else torch.zeros(steps, SEQUENCES, 1, dtype=torch.float64)
    state = dict.fromkeys(stack.zero_state(SEQUENCES, "cpu", torch.float64), start_BN(config.hidden))
    norms_TB = [torch.linalg.vector_norm(state[name], dim=1)]
    with torch.no_grad():
        for x_B1 in x_TB1:
            _, state, _ = stack(x_B1.unsqueeze(0), state)
            norms_TB.append(torch.linalg.vector_norm(state[name], dim=1))
    relative_TB = torch.stack(norms_TB) / norms_TB[0]
    return relative_TB.quantile(0.5, dim=1).tolist()


def recurrent_matrix(config: CellConfig) -> Tensor:
    """Initial recurrent weight [N, N], float64; of the LSTM its cell gate's block."""
    stack = RecurrentStack(config, 1).double()
    stack.initialize(SEED)
    weight = dict(stack.named_parameters())["layers.0.weight_hh_l0"].detach()
    return weight[2 * config.hidden : 3 * config.hidden] if config.cell == "lstm" else weight


def spectrum(config: CellConfig) -> tuple[list[float], list[float]]:
    """Real and imaginary parts of the initial recurrent matrix's eigenvalues."""
    values = torch.linalg.eigvals(recurrent_matrix(config))
    return values.real.tolist(), values.imag.tolist()


@dataclass(frozen=True)
class Rounding:
    """How one arithmetic rounds. products: type of both operands of the product. state: type that the state is kept in.

    identity_apart: the product is of W - I alone and the state itself is added to it, so that the identity passes no rounded operand.
    """

    products: torch.dtype
    state: torch.dtype
    identity_apart: bool = False


ROUNDINGS = {
    "float32": Rounding(torch.float32, torch.float32),
    "fp16": Rounding(torch.float16, torch.float16),
    "bf16": Rounding(torch.bfloat16, torch.bfloat16),
    "fp16 products, float32 state": Rounding(torch.float16, torch.float32),
    "bf16 products, float32 state": Rounding(torch.bfloat16, torch.float32),
    "bf16 products of W - I, float32 state": Rounding(torch.bfloat16, torch.float32, identity_apart=True),
}


@dataclass(frozen=True)
class IrnnCase:
    """An IRNN at some point of its life: w_NN and u_N1, float64, bias 0; x_TB1, float64; starts from h_BN."""

    w_NN: Tensor
    u_N1: Tensor
    x_TB1: Tensor
    h_BN: Tensor


def irnn_cases(steps: int, units: int = UNITS) -> dict[str, IrnnCase]:
    """At its initialisation, and with weights as training may leave them: 0.99 I + N(0, 0.01 / sqrt(N)), inputs of order 0.1.

    The second has eigenvalues up to about 1 and a state that stays within bounds.
    """
    x_TB1, zero_BN = pixel_like(steps, SEQUENCES), torch.zeros(SEQUENCES, units, dtype=torch.float64)
    eye_NN = torch.eye(units, dtype=torch.float64)
    u_N1 = normal(derive_key(SEED, "input weight"), torch.arange(units)).unsqueeze(1)
    noise_NN = normal(derive_key(SEED, "moved weight"), torch.arange(units * units)).view(units, units)
    return {
        "at initialisation": IrnnCase(eye_NN, 0.001 * u_N1, x_TB1, zero_BN),
        "moved weights": IrnnCase(0.99 * eye_NN + 0.01 / units**0.5 * noise_NN, 0.1 * u_N1, x_TB1, zero_BN),
    }


def _next_state(w_NN: Tensor, h_BN: Tensor, input_BN: Tensor, identity_apart: bool) -> Tensor:
    kept_BN = h_BN if identity_apart else 0.0
    return torch.relu(kept_BN + h_BN.to(w_NN.dtype).to(input_BN.dtype) @ w_NN.to(input_BN.dtype).T + input_BN)


def state_errors(case: IrnnCase, rounding: Rounding) -> list[float | None]:
    """|h - h64| / |h64| after every step, over all sequences together; None where the state is not finite."""
    h64_BN, h_BN = case.h_BN, case.h_BN.to(rounding.state)
    w64_NN = case.w_NN - torch.eye(len(case.w_NN), dtype=torch.float64) if rounding.identity_apart else case.w_NN
    w_NN, u_N1 = w64_NN.to(rounding.products), case.u_N1.to(rounding.products)
    errors: list[float | None] = []
    for x64_B1 in case.x_TB1:
        h64_BN = torch.relu(h64_BN @ case.w_NN.T + x64_B1 @ case.u_N1.T)
        input_BN = x64_B1.to(rounding.products).float() @ u_N1.float().T
        h_BN = _next_state(w_NN, h_BN.float(), input_BN, rounding.identity_apart).to(rounding.state)
        size = torch.linalg.vector_norm(h64_BN)
        error = float(torch.linalg.vector_norm(h_BN.double() - h64_BN) / size) if size > 0 else 0.0
        errors.append(error if math.isfinite(error) else None)
    return errors


def steps_to_overflow(growth: float, dtype: torch.dtype, longest: int = 2000) -> tuple[int | None, float]:
    """A state of 1 that grows by `growth` a step: the first step at which it is infinite in `dtype` (None: not within `longest`),
    and the growth that `dtype` makes of `growth`.
    """
    factor, state = torch.tensor(growth, dtype=dtype), torch.ones((), dtype=dtype)
    for step in range(1, longest + 1):
        state = (state.float() * factor.float()).to(dtype)
        if torch.isinf(state):
            return step, float(factor)
    return None, float(factor)
