"""An int4 linear layer's weights, free of any checkpoint's packing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qdx.errors import QdxError


@dataclass(frozen=True)
class QuantizedWeight:
    """One linear layer's unpacked 4-bit weights: K input features, N output features, G groups.

    Parameters
    ----------
    q_KN : Tensor
        uint8 (in_features, out_features), 0…15, columns in natural order.
    zero_GN : Tensor
        uint8 (groups, out_features): the true zero point (GPTQ files store it minus one).
    scale_GN : Tensor
        float16 (groups, out_features); GPTQ scales may be negative.
    group_size : int
        Rows of K that share a scale; already in_features where the checkpoint says -1.
    symmetric : bool
        Every zero point is 8.

    Raises
    ------
    QdxError
        The tensors do not fit each other.
    """

    q_KN: Tensor
    zero_GN: Tensor
    scale_GN: Tensor
    group_size: int
    symmetric: bool

    def __post_init__(self) -> None:
        if self.q_KN.ndim != 2 or self.group_size < 1 or self.in_features % self.group_size:
            raise QdxError(
                f"quantized weight: group size {self.group_size} does not divide the in-features of "
                f"q_KN {tuple(self.q_KN.shape)}; read the group size from the checkpoint's config.json"
            )
        expected = (self.in_features // self.group_size, self.out_features)
        for name, tensor in (("zero_GN", self.zero_GN), ("scale_GN", self.scale_GN)):
            if tuple(tensor.shape) != expected:
                raise QdxError(
                    f"quantized weight: {name} has shape {tuple(tensor.shape)}, must be {expected} for "
                    f"q_KN {tuple(self.q_KN.shape)} and group size {self.group_size}"
                )
        types = (self.q_KN.dtype, self.zero_GN.dtype, self.scale_GN.dtype)
        if types != (torch.uint8, torch.uint8, torch.float16):
            raise QdxError(
                f"quantized weight: q, zero, scale have dtypes {types}, must be uint8, uint8, float16"
            )

    @property
    def in_features(self) -> int:
        """K, the length of an input row."""
        return int(self.q_KN.shape[0])

    @property
    def out_features(self) -> int:
        """N, the length of an output row."""
        return int(self.q_KN.shape[1])

    def dequantize(self) -> Tensor:
        """Return float16 (in_features, out_features): ``(q - zero) * scale``, rounded once."""
        centred_GSN = self.q_KN.to(torch.float32).view(-1, self.group_size, self.out_features)
        centred_GSN = centred_GSN - self.zero_GN.to(torch.float32)[:, None]
        # 5-bit integer times an 11-bit significand is exact in float32, so this rounds once.
        weight_GSN = (centred_GSN * self.scale_GN.to(torch.float32)[:, None]).to(torch.float16)
        return weight_GSN.view(self.in_features, self.out_features)
