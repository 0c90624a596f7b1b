"""Round-to-nearest int4 quantization of one linear layer.

No range is clipped: on the demo model, clipping each group for the least squared error lowered that error by
12 % and raised perplexity all the same (symmetric 15.8 → 17.6, asymmetric 15.7 → 15.6; pydoc text, 8 × 512
tokens), since a group's outliers are what the model uses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels.weights import QuantizedWeight
from qdx.models.bits import rows_per_group


def round_to_nearest(weight_NK: Tensor, group_size: int, symmetric: bool) -> QuantizedWeight:
    """Quantize a dense weight without calibration data.

    Parameters
    ----------
    weight_NK : Tensor
        Floating point (out_features, in_features), as ``nn.Linear`` holds it.
    group_size : int
        Rows of in_features that share a scale; -1: all of them.
    symmetric : bool
        True: every zero point is 8 and the scale is signed, so that the group's value farthest from zero
        takes level 0 (that is -8 scales), which the other side lacks. False: the range always holds zero, so
        a zero weight stays exactly zero.

    Returns
    -------
    QuantizedWeight
        Levels are rounded with the scale as float16 holds it, so no error comes in later.

    Raises
    ------
    QdxError
        The group size does not divide in_features, or a weight is not finite or needs a scale beyond float16.
    """
    out_features, in_features = weight_NK.shape
    size = rows_per_group(in_features, group_size)
    weight_NGS = weight_NK.to(torch.float32).view(out_features, in_features // size, size)
    if symmetric:
        place_NG1 = weight_NGS.abs().argmax(-1, keepdim=True)
        scale_NG = _half(weight_NGS.gather(-1, place_NG1).squeeze(-1) / -8)
        zero_NG = torch.full_like(scale_NG, 8.0)
    else:
        low_NG, high_NG = weight_NGS.amin(-1).clamp(max=0), weight_NGS.amax(-1).clamp(min=0)
        scale_NG = _half((high_NG - low_NG) / 15)
        zero_NG = (-low_NG / scale_NG).round_().clamp_(0, 15)
    if not bool(torch.isfinite(scale_NG).all()):
        raise QdxError(
            "quantize: a weight is inf, nan or too large for a float16 scale: check the source checkpoint"
        )
    q_NGS = (weight_NGS / scale_NG[..., None]).round_().add_(zero_NG[..., None]).clamp_(0, 15)
    return QuantizedWeight(
        q_KN=q_NGS.view(out_features, in_features).to(torch.uint8).t().contiguous(),
        zero_GN=zero_NG.to(torch.uint8).t().contiguous(),
        scale_GN=scale_NG.to(torch.float16).t().contiguous(),
        group_size=size,
        symmetric=symmetric,
    )


def _half(scale_NG: Tensor) -> Tensor:
    """Round to float16, kept in float32; where that is 0 (a group of zeros) any scale does: 1."""
    rounded_NG = scale_NG.to(torch.float16).to(torch.float32)
    return torch.where(rounded_NG == 0, torch.ones_like(rounded_NG), rounded_NG)
