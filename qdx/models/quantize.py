"""Round-to-nearest int4 quantization of one linear layer, each group's scale searched for the least squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels.weights import QuantizedWeight

# Shrinking a group's range clips its outliers and refines the rest; under 0.75 it never paid on SmolLM2.
SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


def round_to_nearest(weight_NK: Tensor, group_size: int, symmetric: bool) -> QuantizedWeight:
    """Quantize a dense weight without calibration data.

    Parameters
    ----------
    weight_NK : Tensor
        Floating point (out_features, in_features), as ``nn.Linear`` holds it.
    group_size : int
        Rows of in_features that share a scale; -1: all of them.
    symmetric : bool
        True: every zero point is 8 and the scale is signed, so that the group's value farthest from zero can take the
        one level (0, that is -8) that the other side lacks. False: the range always holds zero, so that a zero
        weight stays exactly zero.

    Returns
    -------
    QuantizedWeight
        The scales are float16 *before* rounding to levels, so no error comes in later.

    Raises
    ------
    QdxError
        When the group size does not divide in_features, or a weight is not finite.
    """
    out_features, in_features = weight_NK.shape
    size = in_features if group_size == -1 else group_size
    if size < 1 or in_features % size:
        raise QdxError(f"quantize: group size {group_size} does not divide {in_features} in-features: use 32, 64, 128 or -1")
    weight_NGS = weight_NK.to(torch.float32).view(out_features, in_features // size, size)
    if not bool(torch.isfinite(weight_NGS).all()):
        raise QdxError("quantize: the weight holds inf or nan; check the source checkpoint")

    candidates = _signed_scales(weight_NGS) if symmetric else _ranges(weight_NGS)
    best_error_NG = torch.full(weight_NGS.shape[:2], torch.inf)
    best_q_NGS = torch.zeros_like(weight_NGS)
    best_scale_NG = torch.ones_like(best_error_NG)
    best_zero_NG = torch.full_like(best_error_NG, 8.0)
    for scale_NG, zero_NG in candidates:
        q_NGS = (weight_NGS / scale_NG[..., None]).round_().add_(zero_NG[..., None]).clamp_(0, 15)
        error_NGS = (q_NGS - zero_NG[..., None]).mul_(scale_NG[..., None]).sub_(weight_NGS)
        error_NG = error_NGS.square_().sum(-1)
        better_NG = error_NG < best_error_NG
        best_error_NG = torch.where(better_NG, error_NG, best_error_NG)
        best_scale_NG = torch.where(better_NG, scale_NG, best_scale_NG)
        best_zero_NG = torch.where(better_NG, zero_NG, best_zero_NG)
        best_q_NGS = torch.where(better_NG[..., None], q_NGS, best_q_NGS)
    return QuantizedWeight(
        q_KN=best_q_NGS.view(out_features, in_features).to(torch.uint8).t().contiguous(),
        zero_GN=best_zero_NG.to(torch.uint8).t().contiguous(),
        scale_GN=best_scale_NG.to(torch.float16).t().contiguous(),
        group_size=size,
        symmetric=symmetric,
    )


def _ranges(weight_NGS: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Scales and zero points of the shrunk ranges [min, max], both with zero inside."""
    low_NG = weight_NGS.amin(-1).clamp(max=0)
    high_NG = weight_NGS.amax(-1).clamp(min=0)
    found = []
    for shrink in SHRINK:
        scale_NG = _float16_scale((high_NG - low_NG) * (shrink / 15))
        found.append((scale_NG, (-low_NG * shrink / scale_NG).round_().clamp_(0, 15)))
    return found


def _signed_scales(weight_NGS: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Scales that put the value farthest from zero at -8 (or, with the other sign, at 7), shrunk; zero point 8."""
    place_NG1 = weight_NGS.abs().argmax(-1, keepdim=True)
    extreme_NG = weight_NGS.gather(-1, place_NG1).squeeze(-1)
    zero_NG = torch.full_like(extreme_NG, 8.0)
    scales = [extreme_NG * (shrink / -8) for shrink in SHRINK] + [extreme_NG / 7]
    return [(_float16_scale(scale_NG), zero_NG) for scale_NG in scales]


def _float16_scale(scale_NG: Tensor) -> Tensor:
    """Round to float16 (kept in float32); a group of zeros gets 1, any scale would do."""
    rounded_NG = scale_NG.to(torch.float16).to(torch.float32)
    return torch.where(rounded_NG == 0, torch.ones_like(rounded_NG), rounded_NG)
