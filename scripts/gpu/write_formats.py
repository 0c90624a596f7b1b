"""Write a dense checkpoint in the formats that vLLM alone reads: ``write_formats.py DENSE OUT``.

OUT/<format> for every format of `qdx.models.engine_formats`, by round to nearest; OUT/bitsandbytes is nf4 and
needs a GPU and the package bitsandbytes. DENSE is a folder with one ``model.safetensors``; the output head
stays dense.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qdx.models.engine_formats import WRITTEN, entry, pack


def write(dense: Path, out: Path, name: str) -> None:
    """Write one format."""
    folder = out / name
    shutil.copytree(dense, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(dense / "model.safetensors")
    projections = [key for key in tensors if key.endswith("_proj.weight")]
    largest = max(float(tensors[key].abs().max()) for key in projections)
    state: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key not in projections:
            state[key] = tensor
            continue
        parts = pack(tensor, name, largest)
        state |= {key.removesuffix("weight") + part: value.contiguous() for part, value in parts.items()}
    save_file(state, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": entry(name)}, indent=1))


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
    for name in WRITTEN:
        write(dense, out, name)
    if torch.cuda.is_available():
        write_bitsandbytes(dense, out)
    else:
        print("no GPU: bitsandbytes was not written", file=sys.stderr)


if __name__ == "__main__":
    main()
