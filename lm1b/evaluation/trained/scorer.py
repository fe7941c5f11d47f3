"""The exact scorer: -log P of every token of a text, over the whole vocabulary, in float64.

1. A text comes as *sequences* (`cut_for_scoring` in scoring/texts.py, or sentences), each scored from zero state after `</S>`.
2. Sequences of like length go through the recurrent layers side by side, a window of steps at a time, so that each
   call of the softmax gets some thousand positions: long matrix products, and no more memory than one window.
3. What comes out is each position's -log P(target); whoever asks adds them up, by text, by sentence or by word.

Letters: T steps, B sequences side by side, D embedding, P output width, V vocabulary, U distinct words of the text,
N positions (at most T*B, padding left out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lm1b.distributed import Ranks, all_gather_rows, all_reduce_sum
from lm1b.errors import UserError
from lm1b.model.full_softmax import VOCABULARY_BLOCK
from lm1b.model.language_model import LanguageModel
from lm1b.model.output_layer import AdaptiveOutput, OutputLayer, TableOutput
from lm1b.model.products import keep_float32_exact
from lm1b.model.recurrent import State
from lm1b.precision import DTYPES

# In one call of the softmax: matrix products near their ceiling (on a CPU measured: 512 to 4,096), and on a GPU few launches.
POSITIONS, POSITIONS_GPU = 1536, 16384
PRECISIONS = ("fp32", "bf16")  # that it computes in


def dtype_of(precision: str) -> torch.dtype:
    """Raises UserError for a precision that is none."""
    if precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, found {precision}")
    return DTYPES[precision]


@dataclass(frozen=True)
class Rows:
    """What a rank holds of a model's tables, in any dtype, on any device.

    ids_U: int64, rising, the words whose input rows are there. input_UD: rows that lie on another rank are 0. output_VP, bias_V: this
    rank's rows of the softmax, None where it has none; output_VP is input_UD itself where one table is both.
    """

    ids_U: np.ndarray
    input_UD: Tensor
    output_VP: Tensor | None
    bias_V: Tensor | None


@dataclass(frozen=True)
class _Window:
    """start: the first step. real_TB: bool, where a sequence still runs. nats_N: float64, of the positions that are real."""

    start: int
    real_TB: np.ndarray
    nats_N: Tensor


@dataclass(frozen=True)
class Scorer:
    """A model with the rows it needs. Each rank holds all input rows of the text, and its own rows of the output table. It
    runs the recurrent layers for every R-th sequence, and its rows of the softmax for all.

    input_ids_U: int64, rising, the words that occur; input_rows_UD: in the computing precision.
    """

    model: LanguageModel
    input_ids_U: np.ndarray
    input_rows_UD: Tensor
    output: OutputLayer
    end_id: int
    ranks: Ranks

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        rows: Rows,
        *,
        end_id: int,
        dtype: torch.dtype,
        ranks: Ranks,
        vocabulary_block: int = VOCABULARY_BLOCK,
    ) -> Scorer:
        """A model and its rows, made ready to compute in `dtype` on the ranks' devices. A collective.

        vocabulary_block: words whose logits are held at a time.
        Also sets, for the whole process, that float32 products are computed as such.
        """
        keep_float32_exact()
        model = model.to(ranks.device, dtype).eval()
        input_UD = rows.input_UD
        if ranks.size > 1:  # each row is on one rank and 0 on the others, so the sum brings every row to every rank unchanged
            input_UD = all_reduce_sum(input_UD.to(ranks.device), ranks)
        input_UD = input_UD.to(ranks.device, dtype)
        if model.adaptive is not None:
            return cls(model, rows.ids_U, input_UD, AdaptiveOutput(model.adaptive, ranks), end_id, ranks)
        assert rows.output_VP is not None
        assert rows.bias_V is not None
        output_VP = input_UD if rows.output_VP is rows.input_UD else rows.output_VP.to(ranks.device, dtype)
        output = TableOutput(output_VP, rows.bias_V.to(ranks.device), ranks, vocabulary_block)
        return cls(model, rows.ids_U, input_UD, output, end_id, ranks)

    def nats(self, sequences: Sequence[np.ndarray], at_least: int, on_scored: Callable[[int], object] = lambda n: None) -> float:
        """Nats of all tokens of the sequences, each from zero state after `</S>`; float64. See `groups` for at_least.

        on_scored is told of each N.
        """
        total = 0.0
        for group in groups(sequences, at_least, positions_at_a_time(self.ranks.device)):
            for window in self._windows([sequences[i] for i in group]):
                total += float(window.nats_N.sum())
                on_scored(len(window.nats_N))
        return total

    def nats_of_each(
        self, sequences: Sequence[np.ndarray], at_least: int, on_scored: Callable[[int], object] = lambda n: None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(number of a sequence, nats of each of its tokens, float64), from the longest sequence to the shortest."""
        for group in groups(sequences, at_least, positions_at_a_time(self.ranks.device)):
            found = [np.empty(len(sequences[i])) for i in group]
            for window in self._windows([sequences[i] for i in group]):
                nats_TB = np.zeros_like(window.real_TB, np.float64)
                nats_TB[window.real_TB] = window.nats_N.cpu().numpy()
                for nats_T, whole in zip(nats_TB.T, found, strict=False):  # only the first ones still run
                    here = whole[window.start : window.start + len(nats_T)]
                    here[:] = nats_T[: len(here)]
                on_scored(len(window.nats_N))
            yield from zip(group, found, strict=True)

    @torch.no_grad()
    def _windows(self, group: list[np.ndarray]) -> Iterator[_Window]:
        """The group's sequences run from longest to shortest, so that those still running are always the first B."""
        device, ranks = self.ranks.device, self.ranks
        state = self.model.zero_state(len(range(ranks.rank, len(group), ranks.size)), device)
        start = 0
        while start < len(group[0]):
            running = sum(len(sequence) > start for sequence in group)
            steps = min(max(1, positions_at_a_time(self.ranks.device) // running), len(group[0]) - start)
            inputs_TB, targets_TB, real_TB = self._window(group[:running], start, steps)
            inputs_TB = inputs_TB[:, ranks.rank :: ranks.size]
            state = {name: value[: inputs_TB.shape[1]] for name, value in state.items()}
            x_TBD = self.input_rows_UD[torch.from_numpy(inputs_TB).to(device)]
            hidden_TBP, state = self._hidden(x_TBD, state)
            hidden_TBP = _gather_dealt(hidden_TBP, running, ranks)
            real = torch.from_numpy(real_TB).to(device)
            targets_N = torch.from_numpy(targets_TB).to(device)[real]
            yield _Window(start, real_TB, self.output.nats(hidden_TBP[real], targets_N))
            start += steps

    def _hidden(self, x_TBD: Tensor, state: State) -> tuple[Tensor, State]:
        """The recurrent layers, where any of this rank's sequences still runs."""
        if x_TBD.shape[1]:
            return self.model.hidden(x_TBD, state)
        return x_TBD.new_zeros(len(x_TBD), 0, self.model.output_width), state

    def _window(self, running: list[np.ndarray], start: int, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs (as places in input_ids_U), targets, and where a target is real: int64, int64, bool, each (T, B)."""
        inputs_TB = np.full((steps, len(running)), self.end_id, np.int64)
        targets_TB = np.full((steps, len(running)), self.end_id, np.int64)
        real_TB = np.zeros((steps, len(running)), bool)
        for lane, sequence in enumerate(running):
            here = sequence[start : start + steps]
            targets_TB[: len(here), lane] = here
            real_TB[: len(here), lane] = True
            inputs_TB[1 : len(here), lane] = here[:-1]
            if start:
                inputs_TB[0, lane] = sequence[start - 1]
        return np.searchsorted(self.input_ids_U, inputs_TB), targets_TB, real_TB


def positions_at_a_time(device: torch.device) -> int:
    """How many positions a window should have."""
    return POSITIONS if device.type == "cpu" else POSITIONS_GPU


def groups(sequences: Sequence[np.ndarray], at_least: int, positions: int) -> Iterator[list[int]]:
    """Numbers of sequences, from longest to shortest, that run side by side: as many as fill a window of so many positions, and `at_least`
    so many where they are long."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    start = 0
    while start < len(order):
        count = max(at_least, positions // len(sequences[order[start]]))
        yield order[start : start + count]
        start += count


def _gather_dealt(own_TBP: Tensor, num_lanes: int, ranks: Ranks) -> Tensor:
    """All ranks' lanes, where lane number l is on rank l % R at place l // R there: [T, num_lanes, P]. A collective."""
    if ranks.size == 1:
        return own_TBP
    most = -(-num_lanes // ranks.size)
    padded = own_TBP.new_zeros(own_TBP.shape[0], most, own_TBP.shape[2])
    padded[:, : own_TBP.shape[1]] = own_TBP
    return torch.stack(all_gather_rows(padded, ranks).chunk(ranks.size), dim=2).flatten(1, 2)[:, :num_lanes]
