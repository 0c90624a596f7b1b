"""Write a checkpoint of Qwen3-8B's shape with random weights in AWQ or GPTQ layout, in seconds on a GPU.

    python scripts/gpu/random_model.py FOLDER [--layers 36] [--format awq]

The numbers mean nothing; sizes, layouts and kernels are those of a real int4 model of group size 128.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, MLP, HEADS, KEY_VALUE_HEADS, HEAD, VOCAB, GROUP = 4096, 12288, 32, 8, 128, 151936, 128
SHAPES = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KEY_VALUE_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KEY_VALUE_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
    "mlp.gate_proj": (MLP, HIDDEN),
    "mlp.up_proj": (MLP, HIDDEN),
    "mlp.down_proj": (HIDDEN, MLP),
}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
QUANTIZATION: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False},
}


def packed(q: Tensor, order: tuple[int, ...], dim: int) -> Tensor:
    """Pack eight 4-bit integers along a dim into an int32."""
    parts = q.unflatten(dim, (-1, 8))
    word = torch.zeros_like(parts.select(dim + 1, 0), dtype=torch.int32)
    for slot, index in enumerate(order):
        word |= parts.select(dim + 1, index).int() << (4 * slot)
    return word.contiguous()


def quantized(weight_NK: Tensor, form: str) -> dict[str, Tensor]:
    """Round a matrix to 4 bits and lay it out as the format does."""
    rows, columns = weight_NK.shape
    x_NGS = weight_NK.view(rows, columns // GROUP, GROUP)
    if form == "gptq":
        scale = x_NGS.abs().amax(-1) / 7.5
        zero = torch.full_like(scale, 8)
    else:
        least, most = x_NGS.amin(-1), x_NGS.amax(-1)
        scale = (most - least) / 15
        zero = (-least / scale).round().clamp(0, 15)
    scale = scale.half().float()
    q_NGS = ((x_NGS / scale[..., None]).round() + zero[..., None]).clamp(0, 15)
    q_KN, zero_GN, scale_GN = q_NGS.view(rows, columns).t(), zero.t(), scale.t().contiguous().half()
    natural = tuple(range(8))
    if form == "awq":
        return {
            "qweight": packed(q_KN, AWQ_ORDER, 1),
            "qzeros": packed(zero_GN, AWQ_ORDER, 1),
            "scales": scale_GN,
        }
    return {
        "qweight": packed(q_KN, natural, 0),
        "qzeros": packed(zero_GN - 1, natural, 1),
        "scales": scale_GN,
        "g_idx": (torch.arange(columns) // GROUP).int(),
    }


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--format", choices=tuple(QUANTIZATION), default="awq")
    arguments = parser.parse_args()
    numbers = torch.Generator(device="cuda").manual_seed(0)

    def drawn(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=numbers, device="cuda") * 0.02

    state: dict[str, Tensor] = {}
    for layer in range(arguments.layers):
        for name, (rows, columns) in SHAPES.items():
            parts = quantized(drawn(rows, columns), arguments.format)
            state |= {f"model.layers.{layer}.{name}.{key}": value.cpu() for key, value in parts.items()}
        for name, size in (
            ("input_layernorm", HIDDEN),
            ("post_attention_layernorm", HIDDEN),
            ("self_attn.q_norm", HEAD),
            ("self_attn.k_norm", HEAD),
        ):
            state[f"model.layers.{layer}.{name}.weight"] = torch.ones(size, dtype=torch.half)
    state["model.embed_tokens.weight"] = drawn(VOCAB, HIDDEN).half().cpu()
    state["lm_head.weight"] = drawn(VOCAB, HIDDEN).half().cpu()
    state["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.half)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "attention_bias": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "quantization_config": QUANTIZATION[arguments.format],
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    (arguments.folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(state, arguments.folder / "model.safetensors", metadata={"format": "pt"})
    print(f"{arguments.folder}: {arguments.layers} layers, {arguments.format}")


if __name__ == "__main__":
    main()
