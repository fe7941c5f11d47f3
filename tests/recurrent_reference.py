"""Small stacks of every cell, and the same in float64 as the papers' formulas read."""

from __future__ import annotations

import torch
from torch import Tensor

from lm1b.config import CellConfig
from lm1b.model.recurrent import RecurrentStack, State

CELLS = ["irnn", "np_rnn", "relu_rnn", "tanh_rnn", "lstm", "lstm_projected"]


def make_stack(cell: str, seed: int = 7, input_width: int = 5, **settings: object) -> RecurrentStack:
    """Two layers of 8 units, where the settings do not say otherwise."""
    values: dict[str, object] = {"cell": cell, "layers": 2, "hidden": 8, **settings}
    if cell == "lstm_projected":
        values |= {"cell": "lstm", "recurrent_projection": 3}
    stack = RecurrentStack(CellConfig.model_validate(values), input_width)
    stack.initialize(seed)
    return stack


def random_state(stack: RecurrentStack, lanes: int) -> State:
    """No zeros, as in the middle of a text."""
    generator = torch.Generator().manual_seed(3)
    zero = stack.zero_state(lanes, "cpu", torch.float32)
    return {name: torch.randn(value.shape, generator=generator) * 0.3 for name, value in zero.items()}


def loop_in_float64(
    stack: RecurrentStack, weights: dict[str, Tensor], x_TBD: Tensor, state: State, resets_TB: Tensor
) -> tuple[Tensor, State]:
    """Step by step from the formulas: Elman's h = f(U x + W h + b), and LSTM's gates i, f, g, o (Sak 2014 with projection)."""
    state = {name: value.double() for name, value in state.items()}
    outputs = []
    for x, reset in zip(x_TBD, resets_TB, strict=True):
        for i in range(stack.config.layers):
            w = {kind: weights[f"layers.{i}.{kind}_l0"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            h = state[f"{i}.h"] * ~reset[:, None]
            a = x @ w["weight_ih"].T + w["bias_ih"] + h @ w["weight_hh"].T + w["bias_hh"]
            if stack.config.cell == "lstm":
                gate_i, gate_f, gate_g, gate_o = a.chunk(4, dim=1)
                c = torch.sigmoid(gate_f) * (state[f"{i}.c"] * ~reset[:, None]) + torch.sigmoid(gate_i) * torch.tanh(gate_g)
                h = torch.sigmoid(gate_o) * torch.tanh(c)
                if stack.config.recurrent_projection:
                    h = h @ weights[f"layers.{i}.weight_hr_l0"].T
                state[f"{i}.c"] = c
            else:
                h = torch.tanh(a) if stack.config.cell == "tanh_rnn" else torch.relu(a)
            state[f"{i}.h"] = x = h
        outputs.append(x)
    return torch.stack(outputs), state
