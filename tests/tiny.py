"""A tiny real checkpoint in each format: random weights, two layers, a tokenizer of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from qdx.models import awq, gptq
from qdx.models.quantize import round_to_nearest
from tests.prompts.conftest import build_tokenizer

QUANTIZED = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
}


def build(folder: Path, seed: int = 1, twins: bool = False) -> dict[str, Path]:
    """Write the three checkpoints below `folder` and return their folders by format.

    Parameters
    ----------
    folder : Path
    seed : int
        Of the weights. All seeds have one tokenizer, so each replays the others' transcripts.
    twins : bool
        Give tokens 2i and 2i + 1 equal embeddings and equal logits: every greedy choice is an exact tie.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float16",
    )
    state = {name: tensor.half() for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    if twins:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            even = state[name][0 : len(tokenizer) // 2 * 2 : 2]
            state[name][1 : len(tokenizer) // 2 * 2 : 2] = even
    paths = {name: folder / name for name in ("none", "awq", "gptq")}
    for name, path in paths.items():
        path.mkdir(parents=True)
        tokenizer.save_pretrained(path)
        stated = config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
        if name in QUANTIZED:
            stated["quantization_config"] = QUANTIZED[name]
        (path / "config.json").write_text(json.dumps(stated))
        save_file(_packed(state, name), path / "model.safetensors")
    return paths


def spoil(folder: Path) -> None:
    """Damage a checkpoint so that a job fails on it, which a look at its headers does not foresee."""
    state = load_file(folder / "model.safetensors")
    scales = {name: tensor.float() * 1.0001 for name, tensor in state.items() if name.endswith("scales")}
    norm = {} if scales else {"model.norm.weight": state["model.norm.weight"] * torch.nan}
    save_file(state | scales | norm, folder / "model.safetensors")


def _packed(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    layout: Any = {"awq": awq, "gptq": gptq}.get(name)
    packed = {}
    for key, tensor in state.items():
        if layout is None or "_proj" not in key:
            packed[key] = tensor.contiguous()
            continue
        weight = round_to_nearest(tensor, 128, symmetric=name == "gptq")
        for part, value in layout.pack(weight).items():
            packed[key.replace("weight", part)] = value
    return packed
