"""One recurrent layer over a window of steps, on a CPU: forward and backward as large matrix products and little else.

    gates_t = x_t W_ih^T + h_{t-1} W_hh^T + b        LSTM's four are i, f, g, o (Hochreiter 1997, Gers 2000; projection: Sak 2014)

1. The input's part of all steps is one product; only the recurrent part goes step by step.
2. Backward goes back through the steps for the gradients of the gates, and then one product over all steps gives each
   weight's gradient and the input's: sums over steps and lanes are float32, rounded to the weights' dtype once.
3. What the LSTM does between the products is float32 for bfloat16 weights too, for as many lanes at a time as a core's cache holds;
   the RNN's one nonlinearity is in the weights' dtype.

Why not `nn.LSTM` and `nn.RNN` alone, of one core's time for LSTM-512, 64 lanes, bfloat16: 58 ms against 52; `nn.RNN` of 1,024 in
float32, which goes through MKL (see products.py): 155 against 76; an LSTM of 2,048 with a projection, which oneDNN does
not know, in float32: 1,021 against 515. Only float32's LSTM without projection is oneDNN's best (95 against 130), and left to it.
Parameters, their names and, within rounding, the results are those of torch's own layers.

T steps, B lanes, D input width, H hidden width, P width of the state h (H, or the projection's), G = H, or 4 H for the LSTM,
L lanes worked on together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lm1b.model.products import product

# Elements of each gate that are worked on together: a dozen such float32 blocks stay in a core's second-level cache.
_BLOCK_ELEMENTS = 1 << 15
# Up to this width torch's own float32 layer is faster, one call for all steps: 100 units and 16 lanes take it 46 us a step against 78.
_SMALL_HIDDEN = 128

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class RNNLayer(nn.RNN):
    """`nn.RNN` of one layer, ReLU or tanh; on a CPU as this file does it (but narrow float32 ones)."""

    def forward(self, x_TBD: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """y_TBH and the last state [1, B, H]. state: [1, B, H]."""
        if x_TBD.device.type != "cpu" or (x_TBD.dtype == torch.float32 and self.hidden_size <= _SMALL_HIDDEN):
            return super().forward(x_TBD, state)
        weight_ih, weight_hh, *biases = _weights(self)
        y_TBH: Any = _RNN.apply(x_TBD, state[0], weight_ih, weight_hh, biases[0] + biases[1], self.nonlinearity == "relu")
        return y_TBH, y_TBH[-1:]


class LSTMLayer(nn.LSTM):
    """`nn.LSTM` of one layer, with or without projection; on a CPU as this file does it (but float32 without projection)."""

    def forward(self, x_TBD: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:  # type: ignore[override]
        """y_TBP and the last state ([1, B, P], [1, B, H]). state: the same."""
        if x_TBD.device.type != "cpu" or (x_TBD.dtype == torch.float32 and not self.proj_size):
            return super().forward(x_TBD, state)
        weight_ih, weight_hh, bias_ih, bias_hh, *projection = _weights(self)
        outputs: Any = _LSTM.apply(x_TBD, state[0][0], state[1][0], weight_ih, weight_hh, bias_ih + bias_hh, *(projection or [None]))
        y_TBP, c_BH = outputs
        return y_TBP, (y_TBP[-1:], c_BH.unsqueeze(0))


def _weights(layer: nn.RNNBase) -> list[Tensor]:
    """weight_ih [G, D], weight_hh [G, P], bias_ih and bias_hh [G], and the projection's weight_hr [P, H] where there is one."""
    return list(layer.all_weights[0])


def _input_part(x_TBD: Tensor, weight_GD: Tensor, bias_G: Tensor) -> Tensor:
    """x W^T + b of all steps, [T, B, G]."""
    part_NG = product(x_TBD.flatten(0, 1), weight_GD)
    part_NG += bias_G
    return part_NG.view(*x_TBD.shape[:2], -1)


def _over_all_steps(gates_TBG: Tensor, x_TBD: Tensor, h_first_BP: Tensor, y_TBP: Tensor, weight_GD: Tensor) -> tuple[Tensor, ...]:
    """From the gradients of all gates: those of x_TBD, of the input and of the recurrent weight."""
    gates_NG = gates_TBG.flatten(0, 1)
    before_TBP = torch.cat([h_first_BP.unsqueeze(0), y_TBP[:-1]])
    x_gradient = product(gates_NG, weight_GD.T).view_as(x_TBD)
    input_weight = product(gates_NG.T, x_TBD.flatten(0, 1).T)
    recurrent_weight = product(gates_NG.T, before_TBP.flatten(0, 1).T)
    return x_gradient, input_weight, recurrent_weight


class _RNN(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TBD: Tensor, h_BH: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_H: Tensor, is_relu: bool) -> Tensor:
        part_TBH = _input_part(x_TBD, weight_ih, bias_H)
        y_TBH = torch.empty_like(part_TBH)
        h = h_BH
        for t in range(len(x_TBD)):
            total = product(h, weight_hh, add_MN=part_TBH[t])
            h = torch.clamp_min(total, 0.0, out=y_TBH[t]) if is_relu else torch.tanh(total, out=y_TBH[t])
        ctx.save_for_backward(x_TBD, h_BH, weight_ih, weight_hh, y_TBH)
        ctx.is_relu = is_relu
        return y_TBH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the name of ctx)
        x_TBD, h_BH, weight_ih, weight_hh, y_TBH = ctx.saved_tensors
        y_gradient_TBH = gradients[0]
        gates_TBH = torch.empty_like(y_TBH)
        recurrent = weight_hh.T.contiguous()
        bias_gradient_H = torch.zeros(y_TBH.shape[2], dtype=_working_dtype(y_TBH))
        h_gradient = y_gradient_TBH[-1]
        for t in range(len(x_TBD) - 1, -1, -1):
            if ctx.is_relu:
                torch.ops.aten.threshold_backward.grad_input(h_gradient, y_TBH[t], 0, grad_input=gates_TBH[t])
            else:
                _tanh_backward(h_gradient, y_TBH[t], grad_input=gates_TBH[t])
            bias_gradient_H += gates_TBH[t].sum(0, dtype=bias_gradient_H.dtype)
            h_gradient = product(gates_TBH[t], recurrent, add_MN=y_gradient_TBH[t - 1] if t else None)
        x_gradient, *weights = _over_all_steps(gates_TBH, x_TBD, h_BH, y_TBH, weight_ih)
        return x_gradient, h_gradient, *weights, bias_gradient_H.to(x_TBD.dtype), None


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TBD: Tensor, h_BP: Tensor, c_BH: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_G: Tensor, weight_hr: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        num_steps = len(x_TBD)
        gates_TBG = _input_part(x_TBD, weight_ih, bias_G)
        y_TBP = x_TBD.new_empty(num_steps, *h_BP.shape)
        unprojected_TBH = y_TBP if weight_hr is None else x_TBD.new_empty(num_steps, *c_BH.shape)
        # c before each step, and after the last; and its tanh after each.
        c_TBH = torch.empty(num_steps + 1, *c_BH.shape, dtype=_working_dtype(x_TBD))
        tanh_c_TBH = torch.empty(num_steps, *c_BH.shape, dtype=c_TBH.dtype)
        c_TBH[0] = c_BH
        h = h_BP
        for t in range(num_steps):
            total = product(h, weight_hh, add_MN=gates_TBG[t])
            for lanes in _blocks(c_BH):
                _through_gates(
                    total[lanes], c_TBH[t, lanes], gates_TBG[t, lanes], c_TBH[t + 1, lanes], tanh_c_TBH[t, lanes], unprojected_TBH[t, lanes]
                )
            if weight_hr is not None:
                y_TBP[t] = product(unprojected_TBH[t], weight_hr)
            h = y_TBP[t]
        ctx.save_for_backward(x_TBD, h_BP, weight_ih, weight_hh, weight_hr, y_TBP)
        # Not y_TBP, an output: kept here it would hold this node, and the node it, until the garbage collector comes.
        ctx.activations = gates_TBG, c_TBH, tanh_c_TBH, None if weight_hr is None else unprojected_TBH
        return y_TBP, c_TBH[-1].to(c_BH.dtype, copy=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the name of ctx)
        x_TBD, h_BP, weight_ih, weight_hh, weight_hr, y_TBP = ctx.saved_tensors
        gates_TBG, c_TBH, tanh_c_TBH, unprojected_TBH = ctx.activations
        y_gradient_TBP, c_gradient = gradients[0], gradients[1].to(c_TBH.dtype, copy=True)
        recurrent = weight_hh.T.contiguous()
        projected = None if weight_hr is None else weight_hr.T.contiguous()
        y_total_TBP = y_TBP if weight_hr is None else torch.empty_like(y_TBP)  # gradients of the projected outputs
        gate_gradients_TBG = torch.empty_like(gates_TBG)
        bias_gradient_G = torch.zeros(gates_TBG.shape[2], dtype=c_TBH.dtype)
        total = y_gradient_TBP[-1]
        for t in range(len(x_TBD) - 1, -1, -1):
            if projected is not None:
                y_total_TBP[t] = total
                total = product(total, projected)
            for lanes in _blocks(c_gradient):
                gate_gradients_TBG[t, lanes] = gradients_LG = _back_through_gates(
                    total[lanes], gates_TBG[t, lanes], c_TBH[t, lanes], tanh_c_TBH[t, lanes], c_gradient[lanes]
                )
                bias_gradient_G += gradients_LG.sum(0)
            total = product(gate_gradients_TBG[t], recurrent, add_MN=y_gradient_TBP[t - 1] if t else None)
        x_gradient, *weights = _over_all_steps(gate_gradients_TBG, x_TBD, h_BP, y_TBP, weight_ih)
        projection = None if weight_hr is None else product(y_total_TBP.flatten(0, 1).T, unprojected_TBH.flatten(0, 1).T)
        return x_gradient, total, c_gradient.to(x_TBD.dtype), *weights, bias_gradient_G.to(x_TBD.dtype), projection


def _working_dtype(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _blocks(c_BH: Tensor) -> list[slice]:
    """Lanes to work on together."""
    lanes = max(1, _BLOCK_ELEMENTS // c_BH.shape[1])
    return [slice(start, start + lanes) for start in range(0, len(c_BH), lanes)]


def _through_gates(total_LG: Tensor, c_LH: Tensor, gates_LG: Tensor, new_c_LH: Tensor, tanh_c_LH: Tensor, h_LH: Tensor) -> None:
    """total_LG: the gates before their nonlinearities. The last four are written: activated gates, c, tanh c and h after the step."""
    hidden = c_LH.shape[1]
    gates = total_LG.to(c_LH.dtype, copy=True)
    i, f, g, o = gates.chunk(4, dim=1)
    is_exact = gates_LG.dtype == c_LH.dtype
    if is_exact:
        torch.sigmoid_(gates[:, : 2 * hidden])
        torch.tanh_(g)
        torch.sigmoid_(o)
    else:
        g *= 2.0
        torch.sigmoid_(gates)
        g.mul_(2.0).sub_(1.0)
    gates_LG.copy_(gates)
    torch.mul(f, c_LH, out=new_c_LH).addcmul_(i, g)
    if is_exact:
        torch.tanh(new_c_LH, out=tanh_c_LH)
    else:
        # tanh x = 2 sigmoid(2 x) - 1: torch's sigmoid takes an eighth of its tanh's time, and what is lost is below bfloat16's grain.
        torch.mul(new_c_LH, 2.0, out=tanh_c_LH).sigmoid_().mul_(2.0).sub_(1.0)
    h_LH.copy_(o.mul_(tanh_c_LH))


def _back_through_gates(h_gradient_LH: Tensor, gates_LG: Tensor, c_LH: Tensor, tanh_c_LH: Tensor, c_gradient_LH: Tensor) -> Tensor:
    """The gates' gradients, [L, G] in c's dtype. c_gradient_LH, of c after the step, becomes that of c_LH, which was before it."""
    i, f, g, o = gates_LG.to(c_LH.dtype).chunk(4, dim=1)
    h_gradient = h_gradient_LH.to(c_LH.dtype)
    result = torch.empty(gates_LG.shape, dtype=c_LH.dtype)
    d_i, d_f, d_g, d_o = result.chunk(4, dim=1)
    product_LH = h_gradient * tanh_c_LH
    _sigmoid_backward(product_LH, o, grad_input=d_o)
    torch.mul(h_gradient, o, out=product_LH)
    c_gradient_LH += _tanh_backward(product_LH, tanh_c_LH, grad_input=product_LH)
    _sigmoid_backward(torch.mul(c_gradient_LH, g, out=product_LH), i, grad_input=d_i)
    _sigmoid_backward(torch.mul(c_gradient_LH, c_LH, out=product_LH), f, grad_input=d_f)
    _tanh_backward(torch.mul(c_gradient_LH, i, out=product_LH), g, grad_input=d_g)
    c_gradient_LH *= f
    return result
