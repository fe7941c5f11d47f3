"""Initial weights of the dense core: each drawn from a key of (seed, parameter name), so no random state exists.

All are drawn in float64 and rounded once, where they are copied into a parameter. Sources: identity, Le, Jaitly and Hinton 2015
(arXiv 1504.00941); normalized positive definite, Talathi and Vartak 2015 (arXiv 1511.03771); Glorot and Bengio 2010.

Example: "layers.0.weight_hh_l0" of an IRNN is the identity times `identity_scale`, of an np-RNN a matrix of largest eigenvalue 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lm1b.config import CellConfig
from lm1b.randomness import derive_key, normal, uniform


def initial_value(name: str, shape: torch.Size, config: CellConfig, seed: int) -> Tensor:
    """Initial weight, float64. name: `layers.0.weight_hh_l0` and the like; LSTM's four gates i, f, g, o are stacked in dimension 0."""
    kind = name.rsplit(".", 1)[-1].removesuffix("_l0")
    key = derive_key(seed, "weight", name)
    hidden = config.hidden
    if kind.startswith("bias"):
        value = torch.zeros(shape, dtype=torch.float64)
        if config.cell == "lstm" and kind == "bias_ih":  # on one of the two only: they are added up
            value[hidden : 2 * hidden] = config.forget_bias
        return value
    if kind == "weight_ih":
        return _input_weight(key, shape, config)
    if kind == "weight_hr":
        return glorot_uniform(key, shape)
    if config.cell == "irnn":
        return torch.eye(hidden, dtype=torch.float64) * config.identity_scale
    if config.cell == "np_rnn":
        return normalized_positive_definite(key, hidden)
    return _normal_matrix(key, shape) * (config.recurrent_weight_std or 1.0 / math.sqrt(hidden))


def _input_weight(key: int, shape: torch.Size, config: CellConfig) -> Tensor:
    if config.input_weight == "normal":
        return _normal_matrix(key, shape) * config.input_weight_std
    if config.input_weight == "np_rnn":
        # Talathi and Vartak 2015: N(0, a/N) by its variance, N the number of units.
        variance = math.sqrt(2.0) * math.exp(1.2 / (max(config.hidden, 6) - 2.4)) / config.hidden
        return _normal_matrix(key, shape) * math.sqrt(variance)
    # Each of LSTM's gates is a matrix [H, D] of its own: the limit is that of one gate.
    return glorot_uniform(key, shape, fan_out=config.hidden)


def _normal_matrix(key: int, shape: torch.Size) -> Tensor:
    return normal(key, torch.arange(shape.numel())).view(shape)


def glorot_uniform(key: int, shape: torch.Size, fan_out: int | None = None) -> Tensor:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot 2010), float64. shape: [out, in]."""
    limit = math.sqrt(6.0 / (shape[1] + (fan_out or shape[0])))
    return (uniform(key, torch.arange(shape.numel())).view(shape) * 2.0 - 1.0) * limit


def glorot_normal(key: int, shape: torch.Size) -> Tensor:
    """Normal with variance 2 / (fan_in + fan_out) (Glorot 2010), float64. shape: [out, in]."""
    return _normal_matrix(key, shape) * math.sqrt(2.0 / (shape[0] + shape[1]))


def normalized_positive_definite(key: int, size: int) -> Tensor:
    """np-RNN's recurrent weight (Talathi and Vartak 2015, arXiv 1511.03771), float64: largest eigenvalue 1, all positive.

    R of independent standard normals, A = R^T R / N, W = (A + I) / lambda_max(A + I).
    """
    r = _normal_matrix(key, torch.Size((size, size)))
    a = r.T @ r / size + torch.eye(size, dtype=torch.float64)
    return a / torch.linalg.eigvalsh(a)[-1]
