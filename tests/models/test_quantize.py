"""Round-to-nearest quantization."""

from __future__ import annotations

import pytest
import torch

from qdx.errors import QdxError
from qdx.models.quantize import round_to_nearest

MODES = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


def dense(out_features: int = 24, in_features: int = 256, scale: float = 0.05) -> torch.Tensor:
    return torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(7)) * scale


@MODES
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_error_is_at_most_half_a_step_or_the_level_that_one_side_lacks(
    symmetric: bool, group_size: int
) -> None:
    weight_NK = dense()
    weight = round_to_nearest(weight_NK, group_size, symmetric)
    step_KN = weight.scale_GN.float().abs().repeat_interleave(weight.group_size, 0)
    error_KN = (weight.dequantize().float() - weight_NK.t()).abs()
    # Rounding the zero point costs the asymmetric range half a step at an end; symmetric ends at 7 of 8.
    assert bool((error_KN <= step_KN * 1.01).all())
    assert float((error_KN <= step_KN * 0.505).float().mean()) > 0.98
    assert weight.symmetric == symmetric


def test_symmetric_gives_the_value_farthest_from_zero_all_eight_steps_whatever_its_sign() -> None:
    weight_NK = torch.full((2, 32), 0.01)
    weight_NK[0, 5], weight_NK[1, 5] = 1.0, -1.0
    weight = round_to_nearest(weight_NK, 32, symmetric=True)
    assert weight.scale_GN.tolist() == [[-0.125, 0.125]]
    assert weight.dequantize()[5].tolist() == [1.0, -1.0]


@MODES
def test_zeros_stay_exactly_zero_so_that_padding_is_exact(symmetric: bool) -> None:
    weight_NK = dense()
    weight_NK[:, 64:] = 0  # half of a group, and a whole one
    weight_NK[20:] = 0
    weight_KN = round_to_nearest(weight_NK, 128, symmetric).dequantize()
    assert bool((weight_KN[64:] == 0).all())
    assert bool((weight_KN[:, 20:] == 0).all())
    assert bool((weight_KN[:64, :20] != 0).any())


@pytest.mark.parametrize("sign", [1, -1])
def test_asymmetric_range_of_one_sign_still_holds_zero(sign: int) -> None:
    weight_NK = sign * (1 + torch.rand(4, 32, generator=torch.Generator().manual_seed(0)))
    weight = round_to_nearest(weight_NK, 32, symmetric=False)
    assert bool((weight.zero_GN == (0 if sign == 1 else 15)).all())
    assert torch.allclose(
        weight.dequantize().float(), weight_NK.t(), atol=float(weight.scale_GN.max()) * 0.51
    )


@MODES
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e7])
def test_weight_that_no_float16_scale_holds_is_refused(symmetric: bool, bad: float) -> None:
    weight_NK = dense()
    weight_NK[3, 40] = bad
    with pytest.raises(QdxError, match="check the source checkpoint"):
        round_to_nearest(weight_NK, 64, symmetric)


def test_group_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(QdxError, match="group size 48 does not divide 256"):
        round_to_nearest(dense(), 48, symmetric=True)
