"""Each kernel model against a float64 product, within the error that its own rounding steps allow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdx.kernels import KERNELS, QuantizedWeight, make

from .builders import TINY16, U16, U32, exact, inputs, weights

ROWS = (1, 3, 17, 50, 51, 65, 255, 256, 323)


def bound(kernel: str, x_MK: Tensor, weight: QuantizedWeight) -> Tensor:
    """Bound |model - exact|: n roundings cost at most (1 + u)^n - 1 of the sum of |terms|."""
    rows, in_features = x_MK.shape
    terms_MN = x_MK.double().abs() @ exact(weight).abs()
    per_column = weight.group_size == in_features
    halves = {
        "awq_gemm": 1 + (rows < 256) + 1,  # weight, split's partial, sum
        "marlin": 2,  # weight (or the sum, with one scale a column), result
        "machete": 2,
        # chain of 4, block sum, an atomic a block; or weight and a rounding every 16 rows
        "exllama": 4 + 1 + -(-in_features // 128) if rows <= 50 else 1 + -(-in_features // 16),
    }[kernel]
    allowed_MN = ((1 + U16) ** halves * (1 + U32) ** (in_features + 64) - 1) * terms_MN
    if kernel == "machete" and not weight.symmetric:  # -scale * zero has a rounding of its own
        shift_KN = (weight.scale_GN.double() * weight.zero_GN).repeat_interleave(weight.group_size, 0)
        allowed_MN += U16 * (1 + U16) ** 2 * (x_MK.double().abs() @ shift_KN)
    scale = weight.scale_GN.double().abs().max().item() if kernel == "exllama" or per_column else 1.0
    subnormal = in_features * max(scale, 1.0) + x_MK.double().abs().sum(-1, keepdim=True)
    return allowed_MN + TINY16 * subnormal


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("group_size", [32, 64, 128, 768])
@pytest.mark.parametrize("kernel", ["awq_gemm", "marlin", "machete", "exllama"])
def test_error_exceeds_what_the_rounding_steps_allow(kernel: str, group_size: int, rows: int) -> None:
    x_MK = inputs(rows, 768)
    for symmetric in (True,) if kernel == "exllama" else (True, False):
        weight = weights(768, 320, group_size, symmetric=symmetric)
        y_MN = make(kernel, weight, generator=torch.Generator().manual_seed(0))(x_MK)
        error_MN = (y_MN.double() - x_MK.double() @ exact(weight)).abs()
        assert (error_MN <= bound(kernel, x_MK, weight)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dense_is_not_rounded_once(dtype: torch.dtype) -> None:
    weight_NK = torch.randn(96, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    bias_N = torch.randn(96, generator=torch.Generator().manual_seed(1)).to(dtype)
    x_MK = inputs(5, 256).to(dtype)
    y_MN = make("dense", weight_NK, bias_N)(x_MK)
    assert y_MN.dtype == dtype
    exact_MN = x_MK.double() @ weight_NK.double().t() + bias_N.double()
    terms_MN = x_MK.double().abs() @ weight_NK.double().abs().t() + bias_N.double().abs()
    unit = torch.finfo(dtype).eps / 2
    assert ((y_MN.double() - exact_MN).abs() <= unit * exact_MN.abs() + 2 * 260 * U32 * terms_MN).all()


@pytest.mark.parametrize("kernel", ["marlin", "machete"])
@pytest.mark.parametrize("group_size", [64, 256])
def test_bfloat16_weights_are_not_rounded_to_bfloat16(kernel: str, group_size: int) -> None:
    weight = weights(256, 128, group_size, symmetric=False)
    x_MK = inputs(7, 256).bfloat16()
    layer = make(kernel, weight)
    y_MN = layer(x_MK)
    assert y_MN.dtype == torch.bfloat16
    u = 2.0**-8
    terms_MN = x_MK.double().abs() @ exact(weight).abs()
    shift_KN = (weight.scale_GN.double() * weight.zero_GN).repeat_interleave(group_size, 0)
    allowed_MN = ((1 + u) ** 3 - 1 + 300 * U32) * terms_MN + 3 * u * (x_MK.double().abs() @ shift_KN)
    error_MN = (y_MN.double() - x_MK.double() @ exact(weight)).abs()
    assert (error_MN <= allowed_MN).all()
    assert error_MN.max() > 2.0**-11 * terms_MN.max() / 64  # bf16 was used, not fp16
    half = inputs(7, 256)
    assert torch.equal(
        layer(half), make(kernel, weight)(half)
    )  # and going back to fp16 leaves nothing behind


def test_bias_is_added_before_or_without_a_rounding() -> None:
    bias_N = torch.randn(128, generator=torch.Generator().manual_seed(3)).half()
    x_MK = inputs(4, 256)
    weight = weights(256, 128, 64, symmetric=True)
    for kernel in ("awq_gemm", "marlin", "machete", "exllama"):
        plain = make(kernel, weight, generator=torch.Generator().manual_seed(0))
        biased = make(kernel, weight, bias_N, generator=torch.Generator().manual_seed(0))
        assert torch.equal(biased(x_MK), plain(x_MK) + bias_N)


@settings(max_examples=25, deadline=None)
@given(
    kernel=st.sampled_from(sorted(set(KERNELS) - {"dense"})),
    in_blocks=st.integers(1, 5),
    out_blocks=st.integers(1, 5),
    group_size=st.sampled_from([32, 64, 128, -1]),
    rows=st.one_of(st.integers(1, 60), st.integers(250, 330)),
    sm_count=st.integers(1, 160),
    seed=st.integers(0, 2**31),
)
def test_a_shape_breaks_a_kernel(
    kernel: str, in_blocks: int, out_blocks: int, group_size: int, rows: int, sm_count: int, seed: int
) -> None:
    in_features = 128 * in_blocks
    size = in_features if group_size == -1 else group_size
    weight = weights(
        in_features, 64 * out_blocks, size, symmetric=kernel == "exllama" or seed % 2 == 0, seed=seed
    )
    x_MK = inputs(rows, in_features, seed)
    layer = make(kernel, weight, sm_count=sm_count, generator=torch.Generator().manual_seed(seed))
    error_MN = (layer(x_MK).double() - x_MK.double() @ exact(weight)).abs()
    assert (error_MN <= bound(kernel, x_MK, weight)).all()


@pytest.mark.parametrize("kernel", ["awq_gemm", "exllama"])
def test_in_features_that_fill_no_whole_block_break_a_kernel(kernel: str) -> None:
    for in_features in (32, 96, 160, 288):
        weight = weights(in_features, 64, 32, symmetric=True)
        for rows in (1, 9, 51, 256):
            x_MK = inputs(rows, in_features)
            y_MN = make(kernel, weight)(x_MK)
            error_MN = (y_MN.double() - x_MK.double() @ exact(weight)).abs()
            assert (error_MN <= bound(kernel, x_MK, weight)).all()
