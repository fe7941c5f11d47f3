"""The dense core of the language model, from fetched rows to a loss: what DeepSpeed casts, cuts and trains.

    input rows --gather--> x_TBD --recurrent layers--> y_TBH --projection--> hidden_TBP --softmax--> nats

Vocabulary tables are no part of it: their rows come in as float32 leaves and leave with float32 gradients. (The adaptive softmax alone
brings its own dense weights, and takes no output rows.) The computing dtype is that of the module's parameters. Every parameter takes
part in every backward pass (ZeRO needs that).

T steps, B lanes, N = T*B positions (time-major: n = t*B + b), D embedding, H hidden, P output width, U distinct rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lm1b.config import ModelConfig, SoftmaxConfig
from lm1b.model.adaptive import AdaptiveSoftmax
from lm1b.model.dropout import Dropout
from lm1b.model.full_softmax import OwnRows
from lm1b.model.initial_weights import glorot_normal, glorot_uniform
from lm1b.model.recurrent import RecurrentStack, State
from lm1b.model.sampled_softmax import SampledRows
from lm1b.randomness import derive_key


class LossParts(NamedTuple):
    """What a forward pass gives. A tuple, because DeepSpeed's hooks look for tensors inside tuples.

    nats: float64, no dimensions, summed over the N positions, with gradient. state: after the window, detached.
    largest_activation: float32, no dimensions: largest absolute output of a recurrent layer. hidden_NP: detached.
    """

    nats: Tensor
    state: State
    largest_activation: Tensor
    hidden_NP: Tensor


class LanguageModel(nn.Module):
    """Recurrent layers, an optional linear projection before the softmax, and the adaptive softmax where it is asked for."""

    def __init__(
        self, config: ModelConfig, seed: int, *, initialize: bool = True, softmax: SoftmaxConfig | None = None, vocabulary_size: int = 0
    ) -> None:
        """initialize False: initial weights are left out, for a checkpoint's to take their place.

        softmax, vocabulary_size: looked at for softmax.kind=adaptive alone. Raises UserError where that cannot be made.
        """
        super().__init__()
        self.config = config
        self.seed = seed
        self.stack = RecurrentStack(config, config.embedding)
        if initialize:
            self.stack.initialize(seed)
        self.projection = None if config.projection is None else nn.Linear(self.stack.output_width, config.projection)
        if self.projection is not None and initialize:
            with torch.no_grad():
                weight = self.projection.weight
                initial = glorot_normal if config.projection_weight == "glorot_normal" else glorot_uniform
                weight.copy_(initial(derive_key(seed, "weight", "projection.weight"), weight.shape))
                self.projection.bias.zero_()
        self.adaptive = None
        if softmax is not None and softmax.kind == "adaptive":
            self.adaptive = AdaptiveSoftmax(self.output_width, vocabulary_size, softmax)
            if initialize:
                self.adaptive.initialize(seed)

    @property
    def output_width(self) -> int:
        """Width of what the softmax reads (P)."""
        return self.config.output_width

    @property
    def dtype(self) -> torch.dtype:
        """The computing dtype: that of the parameters, whatever casts them."""
        return next(self.parameters()).dtype

    def zero_state(self, lanes: int, device: torch.device | str) -> State:
        """The state before any input, in the computing dtype."""
        return self.stack.zero_state(lanes, device, self.dtype)

    def hidden(
        self, x_TBD: Tensor, state: State, *, step: int | None = None, first_lane: int = 0, resets_TB: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """hidden_TBP, what the softmax reads, and the new state. step None (evaluation): no dropout."""
        hidden_TBP, new_state, _ = self._run(x_TBD, state, step, first_lane, resets_TB)
        return hidden_TBP, new_state

    def _run(
        self, x_TBD: Tensor, state: State, step: int | None, first_lane: int, resets_TB: Tensor | None
    ) -> tuple[Tensor, State, Tensor]:
        dropout = None
        if step is not None and self.config.dropout:
            dropout = Dropout(self.config.dropout, self.seed, step, first_lane)
        y_TBH, new_state, largest = self.stack(x_TBD, state, dropout=dropout, resets_TB=resets_TB)
        hidden_TBP = y_TBH if self.projection is None else self.projection(y_TBH)
        if dropout is not None:
            hidden_TBP = dropout(hidden_TBP, self.config.layers)
        return hidden_TBP, new_state, largest

    def forward(
        self,
        input_rows_UD: Tensor,
        input_positions_TB: Tensor,
        output: SampledRows | OwnRows | None,
        targets_N: Tensor,
        state: State,
        *,
        step: int | None = None,
        first_lane: int = 0,
        resets_TB: Tensor | None = None,
    ) -> LossParts:
        """The loss of a window: the sampled one, the full softmax's, or with no output rows the adaptive one's.

        input_rows_UD: float32 leaf from the table. input_positions_TB: int64, which of these rows each position reads. targets_N: int64,
        time-major (shape [T, B] will do), the targets' positions among sampled output rows, else their ids. state: by name, [B, width]
        each, in the computing dtype. step: seeds dropout; None: none. first_lane: global number of lane 0. resets_TB: bool, zero the
        lane's state before that step.
        """
        x_TBD = gather_rows(input_rows_UD, input_positions_TB, self.dtype)
        hidden_TBP, new_state, largest = self._run(x_TBD, state, step, first_lane, resets_TB)
        hidden_NP = hidden_TBP.flatten(0, 1)
        softmax = output or self.adaptive
        assert softmax is not None, "output rows are left out for the adaptive softmax alone"
        nats = softmax.nats(hidden_NP, targets_N.flatten())
        return LossParts(nats, {name: value.detach() for name, value in new_state.items()}, largest, hidden_NP.detach())


def gather_rows(rows_UD: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    """rows_UD[positions] in `dtype`; the gradient of rows_UD is summed in float32. rows_UD: float32, positions: int64, any shape."""
    result: Any = _GatherRows.apply(rows_UD, positions, dtype)
    return result


class _GatherRows(torch.autograd.Function):
    """Indexing's own backward would sum in the computing dtype and is slow on the CPU."""

    @staticmethod
    def forward(ctx: Any, rows_UD: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.num_rows = len(rows_UD)
        return nn.functional.embedding(positions, rows_UD.to(dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the name of ctx)
        (positions,) = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2).to(torch.float32)
        total = torch.zeros(ctx.num_rows, gradient.shape[1], device=gradient.device)
        return total.index_add_(0, positions.flatten(), gradient), None, None
