"""Pad SmolLM2-135M with zeros to shapes that the GPU kernels take, without changing its function.

Marlin needs in-features divisible by 128 and out-features by 64; 576 wide with 3 key-value heads is neither.
At 768 wide with 12 and 4 heads the added features are 0 everywhere, the added heads attend to nothing but
zeros, and zeros quantize exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN, WIDE_HIDDEN = 576, 768
HEADS, WIDE_HEADS = 9, 12
KEY_VALUE_HEADS, WIDE_KEY_VALUE_HEADS = 3, 4
HEAD = 64
MLP = 1536
# RMSNorm's mean runs over 768 features of which 576 can be non-zero: mean and eps shrink alike, the weight
# makes it up.
SHARE = HIDDEN / WIDE_HIDDEN

_SHAPES = {
    "embed_tokens": (None, WIDE_HIDDEN),
    "q_proj": (WIDE_HEADS * HEAD, WIDE_HIDDEN),
    "k_proj": (WIDE_KEY_VALUE_HEADS * HEAD, WIDE_HIDDEN),
    "v_proj": (WIDE_KEY_VALUE_HEADS * HEAD, WIDE_HIDDEN),
    "o_proj": (WIDE_HIDDEN, WIDE_HEADS * HEAD),
    "gate_proj": (MLP, WIDE_HIDDEN),
    "up_proj": (MLP, WIDE_HIDDEN),
    "down_proj": (WIDE_HIDDEN, MLP),
}


def widen(name: str, tensor: Tensor) -> Tensor:
    """Return one tensor of the widened model, in the dtype it came in.

    Parameters
    ----------
    name : str
        As transformers' Llama names it, such as ``model.layers.0.self_attn.q_proj.weight``.
    tensor : Tensor
        float32 (out, in) of a projection or the embedding, (hidden,) of an RMSNorm.
    """
    if name.endswith("norm.weight"):
        return torch.nn.functional.pad(tensor * SHARE**0.5, (0, WIDE_HIDDEN - HIDDEN))
    rows, columns = _SHAPES[name.split(".")[-2]]
    down = 0 if rows is None else rows - tensor.shape[0]
    return torch.nn.functional.pad(tensor, (0, columns - tensor.shape[1], 0, down))
