"""AutoGPTQ's layout (``checkpoint_format: gptq``) of an int4 linear layer.

``qweight`` int32 (in / 8, out): nibble k of word i holds row 8·i + k; ``qzeros`` int32 (in / group, out / 8),
columns in order, stored minus 1; ``scales`` (in / group, out); ``g_idx`` int32 (in,), the group of each row.
Source: AutoGPTQ ``auto_gptq/nn_modules/qlinear/qlinear_cuda.py``; vLLM ``csrc/quantization/gptq/q_gemm.cu``
adds the 1 back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qdx.errors import QdxError
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

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
ASYMMETRIC = (
    "a GPTQ layer with zero points, which no engine runs with Marlin, Machete or exllama: use a checkpoint "
    "made with sym=true"
)
SECOND = (
    "every stored zero point is 8, as checkpoint_format=gptq_v2 stores it, and config.json does not say so: "
    "some kernels would read each weight one step off, others not; save the checkpoint with format='gptq' "
    "(GPTQModel does), or use another one"
)


def pack(weight: QuantizedWeight) -> dict[str, Tensor]:
    """Return the layer's ``qweight``, ``qzeros``, ``scales`` and ``g_idx`` as AutoGPTQ stores them.

    Raises
    ------
    QdxError
        When a dimension is not a multiple of 8, or a zero point is 0: stored minus 1 it has no nibble, and
        readers differ.
    """
    if bool((weight.zero_GN == 0).any()):
        raise QdxError(
            "gptq pack: a zero point is 0, stored minus 1 it does not fit 4 bits: quantize symmetrically"
        )
    return {
        "qweight": pack_columns(weight.q_KN.t().contiguous()).t().contiguous(),
        "qzeros": pack_columns(weight.zero_GN - 1),
        "scales": weight.scale_GN.clone(),
        "g_idx": _in_order(weight.in_features, weight.group_size),
    }


def check(
    shapes: Mapping[str, tuple[int, ...]], small: Mapping[str, Tensor], group_size: int
) -> tuple[int, int]:
    """Hold a layer to 4 bits, the stated group size and rows in order; returns its in- and out-features.

    Parameters
    ----------
    shapes : Mapping
        Of ``qweight``, ``qzeros``, ``scales`` and ``g_idx``.
    small : Mapping
        ``qzeros`` and ``g_idx`` themselves.
    group_size : int

    Raises
    ------
    QdxError
    """
    present(shapes, SUFFIXES)
    in_features, out_features = shapes["qweight"][0] * 8, shapes["qweight"][1]
    if shapes["g_idx"] != (in_features,):
        raise QdxError(
            f"gptq layer: g_idx names {shapes['g_idx'][0]} rows, qweight holds {in_features} at 4 bits: the "
            "layer has other bits"
        )
    size = rows_per_group(in_features, group_size)
    groups = in_features // size
    check_shapes(shapes, {"qzeros": (groups, out_features // 8), "scales": (groups, out_features)})
    if not torch.equal(small["g_idx"].to(torch.int32).cpu(), _in_order(in_features, size)):
        raise QdxError(
            "gptq layer: g_idx is not in order (desc_act, activation order), which is not supported: "
            "use a checkpoint made with desc_act=false"
        )
    stored_GN = unpack_columns(small["qzeros"])
    if bool((stored_GN == 15).any()):
        raise QdxError(
            "gptq layer: a stored zero point is 15, which some readers take as 16 and others as 0: use a "
            "symmetric checkpoint"
        )
    return in_features, out_features


def unpack(tensors: dict[str, Tensor], group_size: int) -> QuantizedWeight:
    """Read a layer from AutoGPTQ's tensors.

    Parameters
    ----------
    tensors : dict
        ``qweight``, ``qzeros``, ``scales`` (float16, or bfloat16/float32 where that is exact in float16),
        ``g_idx``.
    group_size : int
        As config.json says; -1: one group.

    Raises
    ------
    QdxError
        A tensor is missing or shaped for other bits or another group size; rows are in activation order
        (``g_idx`` not monotonic); a stored zero point is 15 (true zero 16 for some readers, 0 for others); a
        scale is not exact in float16.
    """
    qweight, qzeros, scales, _ = checked(tensors, SUFFIXES)
    shapes = {name: tuple(one.shape) for name, one in tensors.items()}
    in_features, _ = check(shapes, tensors, group_size)
    size = rows_per_group(in_features, group_size)
    stored_GN = unpack_columns(qzeros)
    zero_GN = stored_GN + 1
    return QuantizedWeight(
        q_KN=unpack_columns(qweight.t().contiguous()).t().contiguous(),
        zero_GN=zero_GN,
        scale_GN=float16_scales(scales),
        group_size=size,
        symmetric=bool((zero_GN == 8).all()),
    )


def _in_order(in_features: int, group_size: int) -> Tensor:
    return torch.arange(in_features, dtype=torch.int32) // group_size
