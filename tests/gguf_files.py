"""Tiny GGUF files: the tiny checkpoint's weights and tokenizer, written by the package gguf."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from qdx.backends.llamacpp import library
from qdx.schema_gguf import FILE_TYPES

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(checkpoint: Path, target: Path, form: str = "f16", scale: float = 1.0) -> Path:
    """Write a Llama of transformers as a GGUF file.

    Parameters
    ----------
    checkpoint : Path
        Folder of a dense checkpoint, as `tests.tiny.build` writes it.
    target : Path
    form : str
        Type of the matrices; a K type's are made by the quantizer of llama.cpp's own library.
    scale : float
        Of the matrices of attention and MLP: random weights give sharper rows where it is greater.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize

    config = json.loads((checkpoint / "config.json").read_text())
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    base = form.removesuffix("_m").removesuffix("_s")
    kind = GGMLQuantizationType[base.upper()]
    writer = GGUFWriter(target, "llama")
    writer.add_file_type(FILE_TYPES[form])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _write_tokenizer(writer, tokenizer, checkpoint, TokenType)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        values = tensor.float().numpy()
        part = name.removesuffix(".weight").split(".")
        if part[-1] in ("q_proj", "k_proj"):
            heads = config["num_attention_heads" if part[-1] == "q_proj" else "num_key_value_heads"]
            # llama.cpp's Llamas rotate neighbours, transformers' the two halves of a head.
            values = (
                values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
            )
        if "layers" in part:
            own = f"blk.{part[2]}.{NAMES['.'.join(part[3:])]}.weight"
            values = values * (scale if values.ndim > 1 else 1.0)
        else:
            own = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[
                part[-1]
            ] + ".weight"
        fits = values.ndim == 2 and values.shape[1] % 256 == 0
        if values.ndim == 1:
            writer.add_tensor(own, values.astype(np.float32))
        elif base.endswith("_k") and fits:
            writer.add_tensor(own, _by_llamacpp(values, int(kind)), raw_dtype=kind)
        else:
            other = GGMLQuantizationType.Q8_0 if base.endswith("_k") else kind
            writer.add_tensor(own, quantize(values.astype(np.float32), other), raw_dtype=other)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _write_tokenizer(writer: Any, tokenizer: dict[str, Any], checkpoint: Path, kinds: Any) -> None:
    special = {one["id"] for one in tokenizer["added_tokens"] if one["special"]}
    vocab = {
        **tokenizer["model"]["vocab"],
        **{one["content"]: one["id"] for one in tokenizer["added_tokens"]},
    }
    tokens = sorted(vocab, key=vocab.__getitem__)
    merges = [" ".join(one) if isinstance(one, list) else one for one in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL if vocab[one] in special else kinds.NORMAL for one in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocab["<s>"])
    writer.add_eos_token_id(vocab["<|im_end|>"])
    writer.add_add_bos_token(False)
    template = checkpoint / "chat_template.jinja"
    writer.add_chat_template(template.read_text())


def _by_llamacpp(values: np.ndarray[Any, Any], kind: int) -> np.ndarray[Any, Any]:
    """Quantize by ``ggml_quantize_chunk`` of the library that xllamacpp brings; gguf knows no K types."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    rows, width = values.shape
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    data = np.zeros((rows, width // block * size), np.uint8)
    source = np.ascontiguousarray(values, np.float32)
    make = library.library().ggml_quantize_chunk
    make.restype = ctypes.c_size_t
    make.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    written = make(kind, source.ctypes.data, data.ctypes.data, 0, rows, width, None)
    assert written == data.nbytes
    return data
