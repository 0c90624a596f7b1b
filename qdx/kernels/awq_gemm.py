"""vLLM's own AWQ kernel, before Marlin."""

from __future__ import annotations

import torch
from torch import Tensor

from qdx.kernels import tensor_core
from qdx.kernels._base import KernelModel, check_weight, scratch
from qdx.kernels.weights import QuantizedWeight

SPLITS = 8
BLOCK = 32
DEQUANTIZE_FROM_ROWS = 256


class AwqGemm(KernelModel):
    """Eight fp16 partial sums for few rows; dequantized weights and one matmul for many.

    Source: ``vllm/model_executor/layers/quantization/awq.py``, ``AWQLinearMethod.apply`` (8 splits, 256
    rows), and ``csrc/quantization/awq/gemm_kernels.cu``: ``gemm_forward_4bit_cuda_m16nXk32``,
    ``dequantize_weights``, ``awq_gemm``.

    - Weights: q and zero point become exact halves, their difference is exact, the product with the scale
      is rounded once.
    - Under 256 rows: split z sums the K blocks of 32 rows z, z + 8, z + 16, … in float32 and writes fp16;
      the eight are then summed by torch, in float32, and rounded. Eight fp16 numbers add up exactly in
      float32 unless their exponents are more than ten apart, so the order of this sum does not show.
    - From 256 rows on: one matmul of the dequantized weights, float32 sum, rounded once.

    Parameters
    ----------
    weight : QuantizedWeight
        In-features divisible by 32, out-features by 64, group size 32, 64, 128 or in-features.
    bias : Tensor, optional
        (out_features,); added to the fp16 product.
    sm_count, generator
        Not used: neither the number of SMs nor chance changes this kernel's sums.
    """

    name = "awq_gemm"
    multiples = (BLOCK, 64)
    dtypes = (torch.float16,)

    def __init__(
        self,
        weight: QuantizedWeight,
        bias: Tensor | None = None,
        *,
        sm_count: int = 132,
        generator: torch.Generator | None = None,
    ) -> None:
        check_weight(type(self), weight)
        super().__init__(weight.in_features, weight.out_features, bias)
        self._turns = -(-weight.in_features // (SPLITS * BLOCK))
        rows = self._turns * SPLITS * BLOCK
        # Products with 0 change no sum. An engine may have set another default dtype.
        padded = torch.zeros(rows, weight.out_features, dtype=torch.float32)
        padded[: weight.in_features] = weight.dequantize()
        shape = (self._turns, SPLITS, BLOCK, weight.out_features)
        # Split by split: both paths read this one copy, the second with x in the same order.
        self._weight_SKN = padded.view(shape).transpose(0, 1).reshape(SPLITS, -1, weight.out_features)

    def multiply(self, x_MK: Tensor) -> Tensor:
        """Choose the path by the number of rows."""
        rows = x_MK.shape[0]
        missing = self._turns * SPLITS * BLOCK - self.in_features
        if missing:
            x_MK = torch.nn.functional.pad(x_MK, (0, missing))
        x_MTSB = x_MK.view(rows, self._turns, SPLITS, BLOCK)
        if rows >= DEQUANTIZE_FROM_ROWS:
            x_MSTB = scratch("x", rows, SPLITS, self._turns, BLOCK).copy_(x_MTSB.transpose(1, 2))
            sum_MN = scratch("sum", rows, self.out_features)
            torch.mm(x_MSTB.view(rows, -1), self._weight_SKN.view(-1, self.out_features), out=sum_MN)
            return self.add_bias(sum_MN.to(torch.float16))
        x_SMTB = scratch("x", SPLITS, rows, self._turns, BLOCK).copy_(x_MTSB.permute(2, 0, 1, 3))
        partial_SMN = scratch("partial", SPLITS, rows, self.out_features)
        torch.bmm(x_SMTB.view(SPLITS, rows, -1), self._weight_SKN, out=partial_SMN)
        rounded_SMN = scratch("rounded", SPLITS, rows, self.out_features, dtype=torch.float16).copy_(
            partial_SMN
        )
        partial_SMN.copy_(rounded_SMN)
        sum_MN = scratch("sum", rows, self.out_features)
        torch.sum(partial_SMN, 0, out=sum_MN)
        return self.add_bias(sum_MN.to(torch.float16))

    def multiply_exactly(self, x_MK: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Split by split, or, of many rows, as cuBLAS sums where it does not cut K."""
        missing = self._turns * SPLITS * BLOCK - self.in_features
        x_MK_padded = torch.nn.functional.pad(x_MK[rows], (0, missing)).to(torch.float32)
        x_SMK = x_MK_padded.view(len(rows), self._turns, SPLITS, BLOCK).permute(2, 0, 1, 3)
        weight_SKN = self._weight_SKN
        if len(columns) < self.out_features or not torch.equal(columns, torch.arange(self.out_features)):
            weight_SKN = weight_SKN[:, :, columns]
        if x_MK.shape[0] >= DEQUANTIZE_FROM_ROWS:
            weight_STBN = weight_SKN.view(SPLITS, self._turns, BLOCK, len(columns))
            weight_KN = weight_STBN.transpose(0, 1).reshape(-1, len(columns))
            return self.add_bias(
                tensor_core.chain(x_MK_padded, weight_KN, self.rule).to(torch.float16), columns
            )
        partials = [
            tensor_core.chain(x.reshape(len(rows), -1), weight_KN, self.rule).to(torch.float16)
            for x, weight_KN in zip(x_SMK, weight_SKN, strict=True)
        ]
        return self.add_bias(torch.stack(partials).to(torch.float32).sum(0).to(torch.float16), columns)
