"""Weights, inputs and error bounds that the kernel tests share."""

from __future__ import annotations

import torch
from torch import Tensor

from qdx.kernels import QuantizedWeight

U16 = 2.0**-11  # half an ULP of fp16, relative
U32 = 2.0**-24
TINY16 = 2.0**-25  # half an ULP of fp16's subnormals


def weights(
    in_features: int, out_features: int, group_size: int, *, symmetric: bool, seed: int = 0
) -> QuantizedWeight:
    """Draw int4 weights; symmetric ones have scales of both signs, as GPTQ's may be."""
    numbers = torch.Generator().manual_seed(seed)
    groups = in_features // group_size
    q_KN = torch.randint(0, 16, (in_features, out_features), dtype=torch.uint8, generator=numbers)
    zero_GN = torch.randint(0, 16, (groups, out_features), dtype=torch.uint8, generator=numbers)
    scale_GN = torch.rand(groups, out_features, generator=numbers).mul_(0.02).add_(0.005)
    if symmetric:
        zero_GN.fill_(8)
        scale_GN *= torch.randint(0, 2, scale_GN.shape, generator=numbers) * 2 - 1
    return QuantizedWeight(q_KN, zero_GN, scale_GN.half(), group_size, symmetric)


def inputs(rows: int, in_features: int, seed: int = 1) -> Tensor:
    """Draw float16 activations."""
    return torch.randn(rows, in_features, generator=torch.Generator().manual_seed(seed)).half()


def exact(weight: QuantizedWeight) -> Tensor:
    """Return (q - zero) * scale in float64: no rounding at all."""
    size = weight.group_size
    centred_KN = weight.q_KN.double() - weight.zero_GN.double().repeat_interleave(size, 0)
    return centred_KN * weight.scale_GN.double().repeat_interleave(size, 0)


def ulps(a: Tensor, b: Tensor) -> Tensor:
    """Distance of two float16 tensors in representable numbers."""

    def ordinal(x: Tensor) -> Tensor:
        bits = x.contiguous().view(torch.int16).long()
        return torch.where(bits < 0, -32768 - bits, bits)

    return (ordinal(a) - ordinal(b)).abs()
