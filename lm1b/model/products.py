"""Matrix products at the machine's own rate.

On a CPU `torch.mm` hands float32 to MKL, which on processors that Intel did not make runs at half of what they can do
(measured on an AMD EPYC with AVX-512, one core: 88 against 145 to 195 GFLOP/s); oneDNN, which torch carries too and which it
uses for bfloat16, does not hold back. Sums are float32 either way.

M, N rows, K the width that is summed over.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product(x_MK: Tensor, w_NK: Tensor, *, add_MN: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x @ w.T, plus add_MN where it is given: [M, N], in the dtype of x and w. Either factor may be transposed in memory.

    out: written where the product can be put there without a copy; what is returned is the result in any case.
    """
    if x_MK.dtype == torch.float32 and x_MK.device.type == "cpu" and _HAS_ONEDNN:
        if add_MN is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x_MK, add_MN, w_NK, None, "add")
        return torch.ops.mkldnn._linear_pointwise(x_MK, w_NK, None, "none", [], "")
    if add_MN is not None:
        return torch.addmm(add_MN, x_MK, w_NK.T, out=out)
    return torch.mm(x_MK, w_NK.T, out=out)


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def keep_float32_exact() -> None:
    """Have float32 mean float32 on a GPU: this process's products and recurrent layers of float32 keep all 24 bits, and sums are float32.

    torch lets cuDNN round the factors of float32 recurrent layers to TF32's 11 bits unless told otherwise, and those of
    other products where TORCH_ALLOW_TF32_CUBLAS_OVERRIDE says so: 1e-3 of a state over hundreds of steps, in a perplexity
    that is called exact. It also lets a product of half precision, cut along what is summed over, add up its parts in that precision.
    Every process that trains or scores calls this first.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
