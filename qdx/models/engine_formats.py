"""Writes one linear layer in the formats that engines alone run, by round to nearest, without calibration.

| format | stored as | weights | activations |
|---|---|---|---|
| w4a16, w8a16 | compressed-tensors, packed | int4 in groups of 128, int8 a channel | as they are |
| w8a8 | compressed-tensors | int8, one scale a channel | int8, one scale a token |
| w4a8 | compressed-tensors, packed | int4 in groups of 128 | e4m3, one scale a token |
| fp8 | method fp8 | e4m3, one scale a matrix | e4m3, one scale a token |
| fp8_block | method fp8 | e4m3, one scale for 128 × 128 | e4m3, one scale for 128 values |
| nvfp4 | compressed-tensors | e2m1, an e4m3 scale for 16 values, one a matrix | e2m1, or as they are |
| mxfp4 | compressed-tensors | e2m1, a power of two for 32 values | e2m1, or as they are |

Activations of the last two stay as they are on a card without such matrix units, as Hopper is.

Layouts were read in vLLM 0.33.0 (``quantization/fp8.py``, ``compressed_tensors/schemes``) and
compressed-tensors 0.17. The weights are tried as they are: a model that somebody sells in these formats was
calibrated, and its *numbers* are better; the kernels that run are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from qdx.errors import QdxError

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 128
E4M3_MAX, E2M1_MAX = 448.0, 6.0
# of e2m1, by its three low bits
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_TOKEN: dict[str, Any] = {"strategy": "token", "dynamic": True, "symmetric": True}
_INT4: dict[str, Any] = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": GROUP,
}
_INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
_NVFP4: dict[str, Any] = {
    "num_bits": 4,
    "type": "float",
    "symmetric": True,
    "strategy": "tensor_group",
    "group_size": 16,
}
_MXFP4: dict[str, Any] = {**_NVFP4, "strategy": "group", "group_size": 32}
# format → container, weights, activations, as compressed-tensors names them
_COMPRESSED: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "w4a16": ("pack-quantized", _INT4, None),
    "w8a16": ("pack-quantized", _INT8, None),
    "w8a8": ("int-quantized", _INT8, {"num_bits": 8, "type": "int", **_TOKEN}),
    "w4a8": ("pack-quantized", _INT4, {"num_bits": 8, "type": "float", **_TOKEN}),
    "nvfp4": ("nvfp4-pack-quantized", _NVFP4, {**_NVFP4, "dynamic": "local"}),
    "mxfp4": ("mxfp4-pack-quantized", _MXFP4, {**_MXFP4, "dynamic": True}),
}
WRITTEN = (*_COMPRESSED, "fp8", "fp8_block")


def entry(form: str, dense: Iterable[str] = ("lm_head",)) -> dict[str, Any]:
    """Return the ``quantization_config`` of a checkpoint in that format.

    Parameters
    ----------
    form : str, one of `WRITTEN`
    dense : iterable of str
        Full names of the linear layers that are stored as they are.
    """
    if form in ("fp8", "fp8_block"):
        block = {"weight_block_size": [GROUP, GROUP]} if form == "fp8_block" else {}
        ignored = list(dense)
        return {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ignored, **block}
    container, weights, activations = _COMPRESSED[form]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": container,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(dense),
    }


def pack(weight_NK: Tensor, form: str, largest: float) -> dict[str, Tensor]:
    """Quantize a dense weight and lay it out as a checkpoint stores it.

    Parameters
    ----------
    weight_NK : Tensor
        (out_features, in_features), floating point.
    form : str, one of `WRITTEN`
    largest : float
        Bound of the absolute values, from which nvfp4's scale of a matrix is made: the same one for matrices
        that an engine fuses (query, key and value; gate and up), whose scales it takes for one.

    Returns
    -------
    dict of str to Tensor
        Name after the layer's, such as ``weight_packed``, → tensor.

    Raises
    ------
    QdxError
        For sizes that the format's groups do not divide.
    """
    rows, columns = weight_NK.shape
    if columns % GROUP or (form == "fp8_block" and rows % GROUP):
        raise QdxError(
            f"format {form}: a weight of {rows} x {columns} does not divide into groups of {GROUP}: choose "
            "other sizes"
        )
    match form:
        case "w4a16" | "w4a8":
            return _integers(weight_NK, 4, GROUP)
        case "w8a16":
            return _integers(weight_NK, 8, columns)
        case "w8a8":
            return _int8(weight_NK)
        case "fp8":
            return _e4m3(weight_NK)
        case "fp8_block":
            return _e4m3_blocks(weight_NK)
        case "nvfp4":
            return _nvfp4(weight_NK, largest)
        case "mxfp4":
            return _mxfp4(weight_NK)
    raise QdxError(f"format {form!r} is not written here, one of {', '.join(WRITTEN)}")


def _integers(weight_NK: Tensor, bits: int, group: int) -> dict[str, Tensor]:
    """Round to symmetric integers and pack them along K, the lowest nibble or byte first.

    The scale is positive, as compressed-tensors writes it; `qdx.models.quantize` lets it be negative.
    """
    import torch

    rows, columns = weight_NK.shape
    largest = 2 ** (bits - 1)
    parts = weight_NK.float().view(rows, columns // group, group)
    scale = (parts.abs().amax(-1, keepdim=True) / (largest - 0.5)).half()
    scale[scale == 0] = 1.0  # a group of zeros, as widening leaves them
    q = (parts / scale.float()).round().clamp(-largest, largest - 1).to(torch.int64) + largest
    per_word = 32 // bits
    shifts = bits * torch.arange(per_word, device=q.device)
    words = (q.view(rows, -1, per_word) << shifts).sum(-1)
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return {
        "weight_packed": signed,
        "weight_scale": scale.view(rows, -1),
        "weight_shape": torch.tensor([rows, columns]),
    }


def _int8(weight_NK: Tensor) -> dict[str, Tensor]:
    import torch

    wide = weight_NK.float()
    scale = wide.abs().amax(1, keepdim=True) / 127
    scale[scale == 0] = 1.0
    return {"weight": (wide / scale).round().clamp(-128, 127).to(torch.int8), "weight_scale": scale}


def _e4m3(weight_NK: Tensor) -> dict[str, Tensor]:
    import torch

    wide = weight_NK.float()
    scale = (wide.abs().max() / E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
    return {"weight": (wide / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def _e4m3_blocks(weight_NK: Tensor) -> dict[str, Tensor]:
    import torch

    rows, columns = weight_NK.shape
    blocks = weight_NK.float().view(rows // GROUP, GROUP, columns // GROUP, GROUP)
    scale = blocks.abs().amax((1, 3), keepdim=True) / E4M3_MAX
    scale[scale == 0] = 1.0
    values = (blocks / scale).to(torch.float8_e4m3fn).view(rows, columns)
    return {"weight": values, "weight_scale_inv": scale.view(rows // GROUP, columns // GROUP)}


def _nvfp4(weight_NK: Tensor, largest: float) -> dict[str, Tensor]:
    import torch

    rows, columns = weight_NK.shape
    groups = weight_NK.float().view(rows, columns // 16, 16)
    # a weight is code · scale / whole, with the scale of a group of 16 in e4m3
    whole = E4M3_MAX * E2M1_MAX / largest
    scale = (groups.abs().amax(-1, keepdim=True) / E2M1_MAX * whole).to(torch.float8_e4m3fn)
    step = scale.float() / whole
    step[step == 0] = 1.0
    return {
        "weight_packed": _nibbles(groups / step).view(rows, columns // 2),
        "weight_scale": scale.view(rows, columns // 16),
        "weight_global_scale": torch.tensor([whole], dtype=torch.float32),
        # of activations, about 10 at most after a norm; a card without such a matrix unit does not read it
        "input_global_scale": torch.tensor([E4M3_MAX * E2M1_MAX / 10], dtype=torch.float32),
    }


def _mxfp4(weight_NK: Tensor) -> dict[str, Tensor]:
    import torch

    rows, columns = weight_NK.shape
    groups = weight_NK.float().view(rows, columns // 32, 32)
    greatest = groups.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    # OCP Microscaling 1.0: the exponent of the greatest value less that of e2m1's greatest, which is 2
    exponent = torch.frexp(greatest).exponent - 1 - 2
    codes = _nibbles(groups / torch.exp2(exponent.float()))
    return {
        "weight_packed": codes.view(rows, columns // 2),
        "weight_scale": (exponent + 127).clamp(0, 254).to(torch.uint8).view(rows, columns // 32),
    }


def _nibbles(values: Tensor) -> Tensor:
    """Round to e2m1, ties to the even code, and pack pairs of values, the first one in the low half."""
    import torch

    levels = torch.tensor(E2M1, device=values.device)
    between = (levels[1:] + levels[:-1]) / 2
    size = values.abs().clamp(max=E2M1_MAX).contiguous()
    low = torch.bucketize(size, between)  # a tie stays below
    tie = size == between[low.clamp(max=len(between) - 1)]
    code = torch.where(tie & (low % 2 == 1), low + 1, low) + 8 * (values < 0)
    pairs = code.view(*code.shape[:-1], -1, 2)
    return (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8)
