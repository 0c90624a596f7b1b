"""Write a dense checkpoint in the formats that vLLM alone reads: ``python scripts/gpu/formats.py DENSE OUT``.

OUT/w4a16 and OUT/w8a16 are compressed-tensors (symmetric integers: 4 bit in groups of 128, 8 bit a channel),
OUT/fp8 is method fp8 (e4m3, one scale a matrix, activations scaled as they come), OUT/bitsandbytes is nf4 and
needs a GPU and the package bitsandbytes. DENSE is a folder with one ``model.safetensors``; the output head
stays dense.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 128


def integers(weight_NK: Tensor, bits: int, group: int) -> dict[str, Tensor]:
    """Round to symmetric integers and pack them along K, the lowest nibble or byte first.

    The scale is positive, as compressed-tensors writes it; `qdx.models.quantize` lets it be negative.
    """
    rows, columns = weight_NK.shape
    largest = 2 ** (bits - 1)
    parts = weight_NK.float().view(rows, columns // group, group)
    scale = (parts.abs().amax(-1, keepdim=True) / (largest - 0.5)).half()
    scale[scale == 0] = 1.0  # a group of zeros, as widening leaves them
    q = (parts / scale.float()).round().clamp(-largest, largest - 1).to(torch.int64) + largest
    per_word = 32 // bits
    words = (q.view(rows, -1, per_word) << (bits * torch.arange(per_word))).sum(-1)
    return {
        "weight_packed": words.to(torch.uint32).view(torch.int32),
        "weight_scale": scale.view(rows, -1),
        "weight_shape": torch.tensor([rows, columns]),
    }


def floats(weight_NK: Tensor) -> dict[str, Tensor]:
    """Round to e4m3 with one scale."""
    scale = weight_NK.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
    return {"weight": (weight_NK.float() / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def compressed(bits: int, group: int | None) -> dict[str, Any]:
    """Return the entry of ``config.json`` that compressed-tensors writes."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group" if group else "channel",
        "group_size": group,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


def write(dense: Path, out: Path, name: str) -> None:
    """Write one format."""
    folder = out / name
    shutil.copytree(dense, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    state: dict[str, Tensor] = {}
    for key, tensor in load_file(dense / "model.safetensors").items():
        if not key.endswith("_proj.weight"):
            state[key] = tensor
            continue
        match name:
            case "w4a16":
                parts = integers(tensor, 4, GROUP)
            case "w8a16":
                parts = integers(tensor, 8, tensor.shape[1])
            case _:
                parts = floats(tensor)
        state |= {key.removesuffix("weight") + part: value.contiguous() for part, value in parts.items()}
    save_file(state, folder / "model.safetensors")
    entry = {
        "w4a16": compressed(4, GROUP),
        "w8a16": compressed(8, None),
        "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["lm_head"]},
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": entry[name]}, indent=1))


def write_bitsandbytes(dense: Path, out: Path) -> None:
    """Let transformers and bitsandbytes write theirs."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
    )
    model = AutoModelForCausalLM.from_pretrained(
        dense, quantization_config=how, dtype=torch.float16, device_map="cuda"
    )
    folder = out / "bitsandbytes"
    shutil.copytree(dense, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(folder)


def main() -> None:
    """Write all formats that this machine can."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dense", type=Path, help="folder with one model.safetensors")
    parser.add_argument("out", type=Path, help="a new folder")
    options = parser.parse_args()
    dense, out = options.dense, options.out
    out.mkdir(parents=True)
    for name in ("w4a16", "w8a16", "fp8"):
        write(dense, out, name)
    if torch.cuda.is_available():
        write_bitsandbytes(dense, out)
    else:
        print("no GPU: bitsandbytes was not written", file=sys.stderr)


if __name__ == "__main__":
    main()
