"""A small checkpoint of the demo model's shapes, and inputs, made of whole numbers.

What is drawn are whole numbers, and floats are these times powers of two. So every machine makes the same
bits, and what a card computed with them can be compared anywhere, without a file of weights. Nothing that the
model says means anything.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.kernels import QuantizedWeight

LAYERS, HIDDEN, MLP, HEADS, KV_HEADS, HEAD, VOCAB = 2, 768, 1536, 12, 4, 64, 49152
GROUP = 128
MATRICES = {  # in-features, out-features
    "self_attn.q_proj": (HIDDEN, HEADS * HEAD),
    "self_attn.k_proj": (HIDDEN, KV_HEADS * HEAD),
    "self_attn.v_proj": (HIDDEN, KV_HEADS * HEAD),
    "self_attn.o_proj": (HEADS * HEAD, HIDDEN),
    "mlp.gate_proj": (HIDDEN, MLP),
    "mlp.up_proj": (HIDDEN, MLP),
    "mlp.down_proj": (MLP, HIDDEN),
}
FORMATS = ("none", "awq", "gptq")


def whole(name: str, low: int, high: int, *shape: int) -> NDArray[np.int64]:
    """Return whole numbers from `low` to `high`, drawn by a generator that `name` seeds."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).integers(low, high + 1, shape)


def halves(name: str, most: int, exponent: int, *shape: int) -> Tensor:
    """Return float16 numbers n · 2^exponent, n from -most to most."""
    return torch.from_numpy((whole(name, -most, most, *shape) * 2.0**exponent).astype(np.float16))


def weight(name: str, form: str) -> QuantizedWeight:
    """Return one projection's int4 weights; ``gptq`` has the zero point 8 alone."""
    rows, columns = MATRICES[name.split(".", 1)[1]]
    groups = rows // GROUP
    zero = whole(f"{name} zero", 6, 9, groups, columns) if form != "gptq" else np.full((groups, columns), 8)
    scale = (1024 + whole(f"{name} scale", 0, 1023, groups, columns)) * 2.0**-17
    return QuantizedWeight(
        q_KN=torch.from_numpy(whole(f"{name} q", 0, 15, rows, columns).astype(np.uint8)),
        zero_GN=torch.from_numpy(zero.astype(np.uint8)),
        scale_GN=torch.from_numpy(scale.astype(np.float16)),
        group_size=GROUP,
        symmetric=form == "gptq",
    )


def tensors(form: str) -> dict[str, Tensor]:
    """Return the checkpoint's tensors; ``none`` has the numbers of ``awq``, rounded to float16."""
    from qdx.models import awq, gptq

    found = {"model.embed_tokens.weight": halves("embedding", 1023, -13, VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        for short in MATRICES:
            name = f"{layer}.{short}"
            packed = weight(name, form)
            if form == "none":
                parts = {"weight": packed.dequantize().t().contiguous()}
            else:
                parts = (awq if form == "awq" else gptq).pack(packed)
            found.update({f"model.layers.{name}.{part}": value for part, value in parts.items()})
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{layer}.{norm}.weight"] = norm_weight(f"{layer}.{norm}")
    found["model.norm.weight"] = norm_weight("norm")
    return found


def norm_weight(name: str) -> Tensor:
    """Return float16 weights from 1/2 to 3/2."""
    return torch.from_numpy((whole(name, 512, 1535, HIDDEN) * 2.0**-10).astype(np.float16))


def config(form: str) -> dict[str, Any]:
    """Return ``config.json``, with the demo model's constants."""
    from qdx.models.demo import QUANTIZATION

    found: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 7.5e-6,
        "rope_theta": 100000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }
    if form in QUANTIZATION:
        found["quantization_config"] = QUANTIZATION[form]
    return found


def write(folder: Path, form: str) -> None:
    """Write the checkpoint."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(tensors(form), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(form), indent=2) + "\n", encoding="utf-8")


def prompt(name: str, tokens: int) -> list[int]:
    """Return token ids."""
    return [int(one) for one in whole(f"prompt {name}", 100, VOCAB - 1, tokens)]
