"""The recurrent layers: IRNN, np-RNN, ReLU and tanh RNN, LSTM, one `nn.RNN` or `nn.LSTM` a layer (on a CPU: recurrent_cpu.py's).

1. A stack maps x_TBD and the state of every lane to y_TBH and the new state; states are a dict of names "0.h", "0.c",
   "1.h", ... to tensors [lanes, width] in the computing dtype, so that they travel and are stored by name.
2. Dropout, where wanted, drops inputs of layers: dropout.py.
3. Where `resets_TB` is given, the state is zeroed before the step that it marks; the fused layers then run over the
   stretches of time between marks.
4. `initialize(seed)` sets each weight as its name and the config say: initial_weights.py.

T steps, B lanes, D input width, H hidden width (what a layer puts out: the recurrent projection's width where there is one).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lm1b.config import CELLS, CellConfig
from lm1b.devices import on_device
from lm1b.model.dropout import Dropout
from lm1b.model.initial_weights import initial_value
from lm1b.model.recurrent_cpu import LSTMLayer, RNNLayer

State = dict[str, Tensor]


MakeLayer = Callable[[CellConfig, int], nn.Module]
_ADDED: dict[str, MakeLayer] = {}


def add_cell(name: str, make_layer: MakeLayer) -> None:
    """Make `model.cell=name` known to this process; for the file that LM1B_CELLS names. Raises ValueError where it is known already.

    make_layer(config, input_width) gives one layer, called as `nn.RNN` is: (x_TBD, state [1, B, H]) -> (y_TBH, new state [1, B, H]).
    Its parameters get their initial values by the last part of their names (without `_l0`): `bias*` zeros, `weight_ih` as
    config.input_weight says, `weight_hr` Glorot's, all others N(0, config.recurrent_weight_std). Several gates are stacked in dimension 0.
    """
    if name in CELLS:
        raise ValueError(f"model.cell={name} is known already")
    CELLS.append(name)
    _ADDED[name] = make_layer


class RecurrentStack(nn.Module):
    """Layers of one kind of cell, as `config.cell` says. input_width: of the first layer (D)."""

    def __init__(self, config: CellConfig, input_width: int) -> None:
        super().__init__()
        self.config = config
        self.output_width = config.recurrent_projection or config.hidden
        self.layers = nn.ModuleList(self._layer(input_width if i == 0 else self.output_width) for i in range(config.layers))

    def _layer(self, input_width: int) -> nn.Module:
        config = self.config
        if config.cell in _ADDED:
            return _ADDED[config.cell](config, input_width)
        if config.cell == "lstm":
            return LSTMLayer(input_width, config.hidden, proj_size=config.recurrent_projection or 0)
        return RNNLayer(input_width, config.hidden, nonlinearity="tanh" if config.cell == "tanh_rnn" else "relu")

    def initialize(self, seed: int) -> None:
        """Set every weight from keys of (seed, parameter name), in place, as `config` says."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(initial_value(name, parameter.shape, self.config, seed))

    def zero_state(self, lanes: int, device: torch.device | str, dtype: torch.dtype) -> State:
        """The state before any input."""
        state = {}
        for i in range(self.config.layers):
            state[f"{i}.h"] = torch.zeros(lanes, self.output_width, dtype=dtype, device=device)
            if self.config.cell == "lstm":
                state[f"{i}.c"] = torch.zeros(lanes, self.config.hidden, dtype=dtype, device=device)
        return state

    def forward(
        self, x_TBD: Tensor, state: State, *, dropout: Dropout | None = None, resets_TB: Tensor | None = None
    ) -> tuple[Tensor, State, Tensor]:
        """y_TBH of the last layer and the new state, both in x's dtype, and any layer's largest absolute output (float32, detached).

        resets_TB: bool, best on the host; where True the lane's state is zero before that step.
        """
        new_state: State = {}
        largest = torch.zeros((), device=x_TBD.device)
        for i, layer in enumerate(self.layers):
            if dropout is not None:
                x_TBD = dropout(x_TBD, i)
            names = [f"{i}.h", f"{i}.c"] if self.config.cell == "lstm" else [f"{i}.h"]
            x_TBD, values = _run_layer(layer, x_TBD, [state[name] for name in names], resets_TB)
            new_state.update(zip(names, values, strict=True))
            low, high = torch.aminmax(x_TBD.detach())
            largest = torch.maximum(largest, torch.maximum(-low, high).to(torch.float32))
        return x_TBD, new_state, largest


def _run_layer(layer: nn.Module, x_TBD: Tensor, state: list[Tensor], resets_TB: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """One layer over the window: whole, or in stretches between resets. state: [h] or [h, c], each [lanes, width]."""
    if resets_TB is None:
        return _run_stretch(layer, x_TBD, state)
    num_steps = len(x_TBD)
    # Marks that are on the host are read there, and nobody waits for the device.
    starts = sorted({0, *torch.nonzero(resets_TB.any(dim=1)).flatten().tolist()})
    outputs = []
    for start, end in zip(starts, [*starts[1:], num_steps], strict=True):
        # torch.where, not a product: a lane that has overflowed restarts from zero, not from NaN.
        reset_B1 = on_device(resets_TB[start], x_TBD.device).unsqueeze(1)
        state = [torch.where(reset_B1, torch.zeros_like(value), value) for value in state]
        y, state = _run_stretch(layer, x_TBD[start:end], state)
        outputs.append(y)
    return torch.cat(outputs), state


def _run_stretch(layer: nn.Module, x_TBD: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    state = [value.unsqueeze(0) for value in state]
    y_TBH, new_state = layer(x_TBD, tuple(state) if len(state) == 2 else state[0])
    return y_TBH, [value.squeeze(0) for value in (new_state if len(state) == 2 else (new_state,))]
