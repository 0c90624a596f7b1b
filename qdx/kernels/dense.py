"""Unquantized linear layer, as a GPU's BLAS computes it."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import tensor_core
from qdx.kernels._base import KernelModel, scratch


class Dense(KernelModel):
    """Float32 sum over all of K, plus the bias, rounded once to the activation's dtype.

    vLLM's ``UnquantizedLinearMethod.apply`` (``vllm/model_executor/layers/linear.py``) calls cuBLAS, which
    accumulates fp16 and bf16 products in float32 and adds the bias before it rounds. cuBLAS chooses its own
    order of summation; this is the CPU's.

    Parameters
    ----------
    weight_NK : Tensor
        (out_features, in_features), float16, bfloat16 or float32.
    bias : Tensor, optional
        (out_features,).
    """

    name = "dense"
    dtypes = (torch.float16, torch.bfloat16, torch.float32)

    def __init__(self, weight_NK: Tensor, bias: Tensor | None = None) -> None:
        if weight_NK.ndim != 2 or weight_NK.dtype not in self.dtypes:
            raise QdxError(
                f"kernel 'dense' takes a float16, bfloat16 or float32 matrix (out-features, in-features), "
                f"got {str(weight_NK.dtype).removeprefix('torch.')} {tuple(weight_NK.shape)}"
            )
        super().__init__(weight_NK.shape[1], weight_NK.shape[0], bias)
        self._weight_KN = weight_NK.detach().to(torch.float32).t()
        self._dtype = weight_NK.dtype

    @property
    def weight(self) -> Tensor:
        """The matrix (out_features, in_features), which some architectures read beside calling the layer."""
        return self._weight_KN.t().to(self._dtype)

    @cached_property
    def _contiguous_KN(self) -> Tensor:
        return self._weight_KN.contiguous()

    def multiply(self, x_MK: Tensor) -> Tensor:
        """One matmul."""
        rows = x_MK.shape[0]
        sum_MN = scratch("sum", rows, self.out_features)
        torch.mm(scratch("x", *x_MK.shape).copy_(x_MK), self._weight_KN, out=sum_MN)
        if self.bias is not None:
            sum_MN.add_(self.bias.to(torch.float32))
        return sum_MN.to(x_MK.dtype, copy=True)

    def multiply_exactly(self, x_MK: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Sum as cuBLAS does where it does not cut K; compared with awq's matmul from 256 rows on alone."""
        weight_KN = self._contiguous_KN
        if len(columns) < self.out_features or not torch.equal(columns, torch.arange(self.out_features)):
            weight_KN = weight_KN[:, columns]
        sum_MN = tensor_core.chain(x_MK[rows].to(torch.float32), weight_KN, self.rule)
        if self.bias is not None:
            sum_MN.add_(self.bias[columns].to(torch.float32))
        return sum_MN.to(x_MK.dtype)
