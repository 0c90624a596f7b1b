"""AutoAWQ's "gemm" layout of an int4 linear layer.

``qweight`` int32 (in, out / 8): nibble k of word i holds column 8·i + (0,2,4,6,1,3,5,7)[k]; ``qzeros`` int32
(in / group, out / 8) in the same order; ``scales`` (in / group, out). Source: AutoAWQ
``awq/modules/linear/gemm.py``, and vLLM ``csrc/quantization/awq/dequantize.cuh``, whose half2 extraction is
why the columns are interleaved.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qdx.kernels.weights import QuantizedWeight
from qdx.models.bits import (
    check_shapes,
    checked,
    float16_scales,
    pack_columns,
    present,
    rows_per_group,
    unpack_columns,
)

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
SUFFIXES = ("qweight", "qzeros", "scales")


def pack(weight: QuantizedWeight) -> dict[str, Tensor]:
    """Return the layer's ``qweight``, ``qzeros`` and ``scales`` as AutoAWQ stores them.

    Raises
    ------
    QdxError
        When out_features is not a multiple of 8.
    """
    return {
        "qweight": pack_columns(weight.q_KN, ORDER),
        "qzeros": pack_columns(weight.zero_GN, ORDER),
        "scales": weight.scale_GN.clone(),
    }


def check(
    shapes: Mapping[str, tuple[int, ...]], small: Mapping[str, Tensor], group_size: int
) -> tuple[int, int]:
    """Hold a layer's shapes to 4 bits and the stated group size; returns its in- and out-features.

    Parameters
    ----------
    shapes : Mapping
        Of ``qweight``, ``qzeros`` and ``scales``.
    small : Mapping
        Not needed here: any zero point may stand in this layout.
    group_size : int

    Raises
    ------
    QdxError
    """
    present(shapes, SUFFIXES)
    in_features, words = shapes["qweight"]
    groups = in_features // rows_per_group(in_features, group_size)
    check_shapes(shapes, {"qzeros": (groups, words), "scales": (groups, words * 8)})
    return in_features, words * 8


def unpack(tensors: dict[str, Tensor], group_size: int) -> QuantizedWeight:
    """Read a layer from AutoAWQ's tensors.

    Parameters
    ----------
    tensors : dict
        ``qweight``, ``qzeros``, ``scales`` (float16, or bfloat16/float32 where that is exact in float16).
    group_size : int
        As config.json says; -1: one group.

    Raises
    ------
    QdxError
        A tensor is missing or shaped for other bits or another group size, or a scale is not exact in
        float16.
    """
    qweight, qzeros, scales = checked(tensors, SUFFIXES)
    in_features, _ = check({name: tuple(one.shape) for name, one in tensors.items()}, tensors, group_size)
    size = rows_per_group(in_features, group_size)
    zero_GN = unpack_columns(qzeros, ORDER)
    return QuantizedWeight(
        q_KN=unpack_columns(qweight, ORDER),
        zero_GN=zero_GN,
        scale_GN=float16_scales(scales),
        group_size=size,
        symmetric=bool((zero_GN == 8).all()),
    )
