"""Largest absolute eigenvalue of the recurrent weights: what a state without input grows or shrinks by, where it is linear."""

from __future__ import annotations

import torch
from torch import Tensor

from lm1b.config import CellConfig

GATES = "ifgo"  # in the order in which LSTM's are stacked
LARGEST_WIDTH = 2048  # of a matrix: the time grows with its cube, 2 s of one core at 1,024


def spectral_radii(core: dict[str, Tensor], cell: CellConfig) -> dict[str, float]:
    """`layer 0` and so on, of the LSTM `layer 0 gate i`: the spectral radius. core: float32 weights by name.

    LSTM with a projection: that of the gate's weight times the projection, from state to state. Layers that are not finite, wider than
    LARGEST_WIDTH, or of another make (a cell that was added) are left out.
    """
    found = {}
    for layer in range(cell.layers):
        weight = core.get(f"stack.layers.{layer}.weight_hh_l0")
        if weight is None:
            continue
        if cell.cell != "lstm":
            matrices = {f"layer {layer}": weight}
        else:
            projection = core.get(f"stack.layers.{layer}.weight_hr_l0")
            parts = dict(zip(GATES, weight.chunk(4), strict=True))
            matrices = {f"layer {layer} gate {gate}": part if projection is None else projection @ part for gate, part in parts.items()}
        for name, matrix in matrices.items():
            if matrix.shape[0] == matrix.shape[1] <= LARGEST_WIDTH and torch.isfinite(matrix).all():
                found[name] = round(float(torch.linalg.eigvals(matrix).abs().max()), 6)
    return found
