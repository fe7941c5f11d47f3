"""Recurrent layers and a linear read-out: the language model's own cells, on sequences of vectors.

    x_TBD --layer 0--> [T, B, W] --layer 1--> ... --> y_TBW --read-out--> answers, of the ends or of every step

1. A layer is one `RecurrentStack` of one layer, or two, one of which goes through each sequence backward (Schuster 1997).
2. In bfloat16 the recurrent layers' weights are rounded for use and kept in float32; the read-out is float32.

T steps, B sequences, D input width, W width of a layer's output (both directions together), C answers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lm1b.model.initial_weights import glorot_uniform
from lm1b.model.recurrent import RecurrentStack
from lm1b.randomness import derive_key
from lm1b.sequence_tasks.config import NetworkConfig
from lm1b.sequence_tasks.data.task import NO_LABEL, Asked, Batch

LEFT_TO_RIGHT, RIGHT_TO_LEFT = "left_to_right", "right_to_left"


class Answers(NamedTuple):
    """values: float32, [B, C], or [T, B, C] where every step is asked. y_TBW: the last layer's outputs."""

    values: Tensor
    y_TBW: Tensor


class SequenceNetwork(nn.Module):
    """One cell's network for one task. Every weight comes from a key of (seed, its name)."""

    def __init__(
        self, config: NetworkConfig, input_width: int, asked: Asked, outputs: int, seed: int, dtype: torch.dtype = torch.float32
    ) -> None:
        """input_width: D. outputs: C. dtype: of the recurrent layers' computing. The read-out starts from Glorot's uniform and bias 0."""
        super().__init__()
        self.asked: Asked = asked
        self.dtype = dtype
        one_layer = config.model_copy(update={"layers": 1})
        directions = (LEFT_TO_RIGHT, RIGHT_TO_LEFT) if config.bidirectional else (LEFT_TO_RIGHT,)
        self.layers = nn.ModuleList()
        width = input_width
        for i in range(config.layers):
            layer = nn.ModuleDict({direction: RecurrentStack(one_layer, width) for direction in directions})
            for direction, stack in layer.items():
                assert isinstance(stack, RecurrentStack)
                stack.initialize(derive_key(seed, "layer", i, direction))
            self.layers.append(layer)
            width = len(directions) * (config.recurrent_projection or config.hidden)
        self.readout = nn.Linear(width, outputs)
        with torch.no_grad():
            self.readout.weight.copy_(glorot_uniform(derive_key(seed, "readout"), self.readout.weight.shape))
            self.readout.bias.zero_()

    def forward(self, batch: Batch) -> Answers:
        """What the network says of a batch: of each sequence's end (backward: its beginning), or of every step where every one is asked.

        Every sequence starts from a zero state. What is said of steps after a sequence's end means nothing.
        """
        x_TBD, outputs = batch.x_TBD.to(self.dtype), list[Tensor]()
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            outputs = [self._through(layer[LEFT_TO_RIGHT], x_TBD)]
            if RIGHT_TO_LEFT in layer:
                turned_TBD = turn_around(x_TBD, batch.lengths_B)
                outputs.append(turn_around(self._through(layer[RIGHT_TO_LEFT], turned_TBD), batch.lengths_B))
            x_TBD = torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]
        y_TBW = x_TBD.float()
        if self.asked == "label_per_step":
            return Answers(self.readout(y_TBW), y_TBW)
        ends_BW = y_TBW[batch.lengths_B - 1, torch.arange(len(batch.lengths_B), device=y_TBW.device)]
        if len(outputs) > 1:  # each direction where it has read all of the sequence: backward that is the first step
            ends_BW = torch.cat([half_BW.chunk(2, dim=1)[i] for i, half_BW in enumerate((ends_BW, y_TBW[0]))], dim=1)
        return Answers(self.readout(ends_BW), y_TBW)

    def _through(self, stack: nn.Module, x_TBD: Tensor) -> Tensor:
        """y_TBH of one layer in one direction, from a zero state."""
        assert isinstance(stack, RecurrentStack)
        state = stack.zero_state(x_TBD.shape[1], x_TBD.device, self.dtype)
        if self.dtype == torch.float32:
            return stack(x_TBD, state)[0]
        rounded = {name: parameter.to(self.dtype) for name, parameter in stack.named_parameters()}
        return functional_call(stack, rounded, (x_TBD, state))[0]


def turn_around(x_TBD: Tensor, lengths_B: Tensor) -> Tensor:
    """Each sequence backward, [T, B, D] as it came; what comes after its end stays where it is. lengths_B: int64."""
    steps_T1 = torch.arange(len(x_TBD), device=x_TBD.device).unsqueeze(1)
    from_TB = torch.where(steps_T1 < lengths_B, lengths_B - 1 - steps_T1, steps_T1)
    return x_TBD.gather(0, from_TB.unsqueeze(2).expand_as(x_TBD))


def loss_of(answers: Answers, batch: Batch, asked: Asked) -> tuple[Tensor, Tensor, int]:
    """Sum of the losses (with gradient), sum of the errors (float64, detached), and how many answers were asked.

    `number`: squared error, and the same again. Labels: nats, and how many are wrong.
    """
    if asked == "number":
        squared_B = (answers.values.squeeze(1) - batch.targets) ** 2
        return squared_B.sum(), squared_B.detach().double().sum(), len(squared_B)
    values, targets = answers.values.flatten(0, -2), batch.targets.flatten()
    is_asked = targets != NO_LABEL
    nats = nn.functional.cross_entropy(values, targets, reduction="sum", ignore_index=NO_LABEL)
    wrong = ((values.detach().argmax(1) != targets) & is_asked).sum()
    return nats, wrong.double(), int(is_asked.sum())


def norm_stabilizer(y_TBW: Tensor, lengths_B: Tensor) -> tuple[Tensor, int]:
    """Sum over steps and sequences of (|h_t| - |h_t-1|)^2 (Krueger and Memisevic 2016), and of how many."""
    norms_TB = torch.linalg.vector_norm(y_TBW, dim=2)
    both_are_real = torch.arange(1, len(norms_TB), device=y_TBW.device).unsqueeze(1) < lengths_B
    squares = norms_TB.diff(dim=0) ** 2 * both_are_real
    return squares.sum(), int(both_are_real.sum())
