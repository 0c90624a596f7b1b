"""The awq and gptq layouts, against dequantizers written as element loops from the layouts' description."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdx.errors import QdxError
from qdx.kernels.weights import QuantizedWeight
from qdx.models import awq, gptq

LAYOUTS = pytest.mark.parametrize("layout", [awq, gptq], ids=["awq", "gptq"])


def random_weight(
    in_features: int, out_features: int, group_size: int, seed: int = 0, *, symmetric: bool = False
) -> QuantizedWeight:
    """A weight of any levels; zero points 1…15, which both layouts hold, and scales of both signs."""
    generator = torch.Generator().manual_seed(seed)
    size = in_features if group_size == -1 else group_size
    groups = in_features // size
    zero_GN = torch.randint(1, 16, (groups, out_features), generator=generator, dtype=torch.uint8)
    return QuantizedWeight(
        q_KN=torch.randint(0, 16, (in_features, out_features), generator=generator, dtype=torch.uint8),
        zero_GN=torch.full_like(zero_GN, 8) if symmetric else zero_GN,
        scale_GN=torch.randn(groups, out_features, generator=generator).to(torch.float16),
        group_size=size,
        symmetric=symmetric,
    )


def nibble(word: int, place: int) -> int:
    return ((word & 0xFFFFFFFF) >> (4 * place)) & 0xF


def awq_by_loops(tensors: dict[str, torch.Tensor], group: int) -> np.ndarray:
    """Nibble k of a word holds column 8·i + (0,2,4,6,1,3,5,7)[k], in qweight and in qzeros."""
    place = {0: 0, 2: 1, 4: 2, 6: 3, 1: 4, 3: 5, 5: 6, 7: 7}
    qweight, qzeros, scales = (tensors[name].numpy() for name in ("qweight", "qzeros", "scales"))
    rows, columns = qweight.shape[0], qweight.shape[1] * 8
    weight = np.empty((rows, columns), np.float16)
    for row in range(rows):
        for column in range(columns):
            level = nibble(int(qweight[row, column // 8]), place[column % 8])
            zero = nibble(int(qzeros[row // group, column // 8]), place[column % 8])
            weight[row, column] = np.float16((level - zero) * np.float64(scales[row // group, column]))
    return weight


def gptq_by_loops(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """Nibble k of qweight word i: row 8·i + k; qzeros columns in order, minus 1; g_idx says the group."""
    qweight, qzeros, scales, g_idx = (
        tensors[name].numpy() for name in ("qweight", "qzeros", "scales", "g_idx")
    )
    rows, columns = qweight.shape[0] * 8, qweight.shape[1]
    weight = np.empty((rows, columns), np.float16)
    for row in range(rows):
        for column in range(columns):
            level = nibble(int(qweight[row // 8, column]), row % 8)
            zero = nibble(int(qzeros[g_idx[row], column // 8]), column % 8) + 1
            weight[row, column] = np.float16((level - zero) * np.float64(scales[g_idx[row], column]))
    return weight


SHAPES = st.tuples(
    st.integers(1, 4), st.integers(1, 3), st.sampled_from([8, 32, 64, 128, -1]), st.integers(0, 99)
)


@settings(max_examples=15, deadline=None)
@given(SHAPES)
def test_packed_awq_means_the_same_to_an_independent_reader(shape: tuple[int, int, int, int]) -> None:
    groups, words, group_size, seed = shape
    weight = random_weight(groups * max(group_size, 8), words * 8, group_size, seed)
    by_loops = awq_by_loops(awq.pack(weight), weight.group_size)
    np.testing.assert_array_equal(weight.dequantize().numpy(), by_loops)


@settings(max_examples=15, deadline=None)
@given(SHAPES)
def test_packed_gptq_means_the_same_to_an_independent_reader(shape: tuple[int, int, int, int]) -> None:
    groups, words, group_size, seed = shape
    weight = random_weight(groups * max(group_size, 8), words * 8, group_size, seed)
    np.testing.assert_array_equal(weight.dequantize().numpy(), gptq_by_loops(gptq.pack(weight)))


@LAYOUTS
@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, symmetric=st.booleans())
def test_packing_and_unpacking_gives_every_number_back(
    layout: ModuleType, shape: tuple[int, int, int, int], symmetric: bool
) -> None:
    groups, words, group_size, seed = shape
    weight = random_weight(groups * max(group_size, 8), words * 8, group_size, seed, symmetric=symmetric)
    back = layout.unpack(layout.pack(weight), group_size)
    assert torch.equal(back.q_KN, weight.q_KN)
    assert torch.equal(back.zero_GN, weight.zero_GN)
    assert torch.equal(back.scale_GN, weight.scale_GN)
    assert back.group_size == weight.group_size
    assert back.symmetric == bool((weight.zero_GN == 8).all())


def test_awq_word_interleaves_its_columns_as_published() -> None:
    """Columns 0…7 holding 0…7 make AutoAWQ's word 0x75316420."""
    q_KN = torch.arange(8, dtype=torch.uint8).repeat(8, 1)
    ones = torch.ones(1, 8)
    weight = QuantizedWeight(q_KN, ones.to(torch.uint8), ones.to(torch.float16), 8, False)
    assert {int(word) for word in awq.pack(weight)["qweight"].flatten()} == {0x75316420}


def test_gptq_symmetric_zero_points_are_stored_as_sevens() -> None:
    """Every AutoGPTQ symmetric checkpoint's qzeros are 0x77777777."""
    packed = gptq.pack(random_weight(64, 16, 32, symmetric=True))
    assert {int(word) for word in packed["qzeros"].flatten()} == {0x77777777}


def test_gptq_in_activation_order_is_refused() -> None:
    packed = gptq.pack(random_weight(64, 16, 32))
    packed["g_idx"] = packed["g_idx"].flip(0)
    with pytest.raises(QdxError, match="desc_act=false"):
        gptq.unpack(packed, 32)


def test_gptq_of_eight_bits_is_refused() -> None:
    packed = gptq.pack(random_weight(64, 16, 32))
    packed["qweight"] = packed["qweight"].repeat(2, 1)
    with pytest.raises(QdxError, match="other bits"):
        gptq.unpack(packed, 32)


def test_awq_of_eight_bits_is_refused() -> None:
    packed = awq.pack(random_weight(64, 16, 32))
    packed["qweight"] = packed["qweight"].repeat(1, 2)
    with pytest.raises(QdxError, match="other bits"):
        awq.unpack(packed, 32)


@LAYOUTS
def test_another_group_size_than_the_tensors_have_is_refused(layout: ModuleType) -> None:
    packed = layout.pack(random_weight(128, 16, 32))
    packed.pop("g_idx", None)
    if layout is gptq:
        packed["g_idx"] = torch.arange(128, dtype=torch.int32) // 64
    with pytest.raises(QdxError, match=r"qzeros has shape \(4, 2\), expected \(2, 2\)"):
        layout.unpack(packed, 64)


@LAYOUTS
def test_group_size_that_does_not_divide_is_refused(layout: ModuleType) -> None:
    with pytest.raises(QdxError, match="group size 48 does not divide 64"):
        layout.unpack(layout.pack(random_weight(64, 16, 32)), 48)


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scales_in_another_dtype_are_read_when_float16_holds_them(
    layout: ModuleType, dtype: torch.dtype
) -> None:
    packed = layout.pack(random_weight(64, 16, 32))
    packed["scales"] = packed["scales"].to(torch.bfloat16).to(dtype)
    assert torch.equal(layout.unpack(packed, 32).scale_GN.to(dtype), packed["scales"])


@LAYOUTS
@pytest.mark.parametrize("value", [1e-7, 1e5, float("nan")])
def test_scales_that_float16_would_change_are_refused(layout: ModuleType, value: float) -> None:
    packed = layout.pack(random_weight(64, 16, 32))
    packed["scales"] = packed["scales"].to(torch.bfloat16)
    packed["scales"][1, 3] = value
    with pytest.raises(QdxError, match=r"1 of 32 torch\.bfloat16 scales are not exact in float16"):
        layout.unpack(packed, 32)


@LAYOUTS
def test_a_missing_tensor_is_named(layout: ModuleType) -> None:
    packed = layout.pack(random_weight(64, 16, 32))
    del packed["qzeros"]
    with pytest.raises(QdxError, match="qzeros missing"):
        layout.unpack(packed, 32)


@LAYOUTS
def test_words_of_another_type_are_refused(layout: ModuleType) -> None:
    packed = layout.pack(random_weight(64, 16, 32))
    packed["qweight"] = packed["qweight"].to(torch.int64)
    with pytest.raises(QdxError, match=r"qweight is torch\.int64"):
        layout.unpack(packed, 32)


@LAYOUTS
def test_features_that_fill_no_word_are_refused(layout: ModuleType) -> None:
    with pytest.raises(QdxError, match="not a multiple of 8"):
        layout.pack(random_weight(64, 12, 32))


def test_gptq_refuses_the_zero_point_that_its_readers_disagree_on() -> None:
    weight = random_weight(64, 16, 32)
    weight.zero_GN[0, 0] = 0
    with pytest.raises(QdxError, match="zero point is 0"):
        gptq.pack(weight)
    packed = gptq.pack(random_weight(64, 16, 32))
    packed["qzeros"][0, 0] |= 0xF
    with pytest.raises(QdxError, match="stored zero point is 15"):
        gptq.unpack(packed, 32)
