"""A checkpoint of a real model's shape with random weights: nothing is downloaded, and nothing it says means
anything.

``synthetic:layers=36,hidden=4096,mlp=12288,heads=32,kv_heads=8,head=128,vocab=151936,seed=0`` names one, of
the Qwen3 family; with ``experts=16,active=4`` beside it every layer is a mixture of experts (Qwen3-MoE) of
``mlp`` each. Every matrix is drawn from a generator of its own, so that all formats quantize the same
weights. They are drawn on the GPU where there is one, in seconds; its numbers are other ones than a CPU's, so
the device is part of the folder's name. The tokenizer has a token a byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdx.errors import QdxError, nearest
from qdx.models.cache import prepare
from qdx.models.engine_formats import WRITTEN, entry, pack

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "synthetic:"
FORMATS = ("none", "awq", "gptq", *WRITTEN)
RECIPE = 1  # a change of what is built makes other folders
GROUP = 128
DEVIATION = 0.02
LARGEST = 8 * DEVIATION  # no weight drawn is beyond
OPTIONAL = ("seed", "experts", "active")
CHAT_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, and the seed of its weights; without experts a layer has one MLP."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocab: int
    seed: int = 0
    experts: int = 0
    active: int = 0


def parse(name: str) -> Shape:
    """Return the shape that a name says.

    Raises
    ------
    QdxError
        For a key that is unknown or missing, or a size that no kernel takes.
    """
    known = [field.name for field in fields(Shape)]
    said: dict[str, int] = {}
    for part in name.removeprefix(PREFIX).split(","):
        key, _, value = part.partition("=")
        if key not in known:
            raise QdxError(
                f"model {name!r}: unknown key {key!r}, one of {', '.join(known)}{nearest(key, known)}"
            )
        if not value.isdecimal():
            raise QdxError(f"model {name!r}: {key}={value}: must be a whole number")
        said[key] = int(value)
    if missing := [key for key in known if key not in said and key not in OPTIONAL]:
        raise QdxError(f"model {name!r}: {missing[0]} is missing: write {missing[0]}=<number>")
    shape = Shape(**said)
    for key in ("hidden", "mlp"):
        if said[key] % GROUP or not said[key]:
            raise QdxError(f"model {name!r}: {key}={said[key]}: must be a multiple of the group size {GROUP}")
    if (shape.heads * shape.head) % GROUP or (shape.kv_heads * shape.head) % 64:
        raise QdxError(
            f"model {name!r}: heads x head must be a multiple of {GROUP}, kv_heads x head of 64: raise head"
        )
    if bool(shape.experts) != bool(shape.active) or shape.active > shape.experts:
        raise QdxError(
            f"model {name!r}: experts={shape.experts}, active={shape.active}: a mixture needs both, and at "
            "most all experts are active"
        )
    if shape.vocab < 257 or not shape.layers or not shape.kv_heads or shape.heads % shape.kv_heads:
        raise QdxError(
            f"model {name!r}: needs vocab of at least 257, a layer, and heads that kv_heads divides"
        )
    return shape


def synthetic_folder(name: str, form: str, cache: Path) -> Path:
    """Return the checkpoint folder of that shape and format, made on first use.

    Parameters
    ----------
    name : str
        ``synthetic:…``.
    form : str, one of `FORMATS`
    cache : Path

    Raises
    ------
    QdxError
        For a name that is not a shape, another format, or a cache that cannot hold it.
    """
    shape = parse(name)
    if form not in FORMATS:
        raise QdxError(f"model {name!r} has no format {form}, one of {', '.join(FORMATS)}")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    # a shape without experts keeps the folder that it had before there were any
    sizes = {name: size for name, size in asdict(shape).items() if size or name not in ("experts", "active")}
    key = hashlib.sha256(repr((sizes, RECIPE, device)).encode()).hexdigest()[:12]
    target = cache / f"synthetic-{key}-{form}"
    return prepare(
        target, lambda folder: _build(folder, shape, form, device), needs_bytes=_bytes(shape, form)
    )


def _bytes(shape: Shape, form: str) -> int:
    linear = shape.layers * sum(rows * columns for rows, columns in _matrices(shape).values())
    each = {"none": 2.0, **dict.fromkeys(("w8a16", "w8a8", "fp8", "fp8_block"), 1.02)}.get(form, 0.57)
    return int(linear * each) + 4 * shape.vocab * shape.hidden


def _matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    query, key_value = shape.heads * shape.head, shape.kv_heads * shape.head
    places = [f"mlp.experts.{i}" for i in range(shape.experts)] or ["mlp"]
    return {
        "self_attn.q_proj": (query, shape.hidden),
        "self_attn.k_proj": (key_value, shape.hidden),
        "self_attn.v_proj": (key_value, shape.hidden),
        "self_attn.o_proj": (shape.hidden, query),
        **{
            f"{place}.{name}": size
            for place in places
            for name, size in (
                ("gate_proj", (shape.mlp, shape.hidden)),
                ("up_proj", (shape.mlp, shape.hidden)),
                ("down_proj", (shape.hidden, shape.mlp)),
            )
        },
    }


def _build(folder: Path, shape: Shape, form: str, device: str) -> None:
    from safetensors.torch import save_file

    state = dict(_tensors(shape, form, device))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", _config(shape, form))
    _write(
        folder / "qdx-provenance.json",
        {
            "derived_from": f"random weights, {asdict(shape)}, recipe {RECIPE}, drawn on {device}",
            "quantizer": "" if form == "none" else "qdx round to nearest",
        },
    )
    _write_tokenizer(folder)


def _tensors(shape: Shape, form: str, device: str) -> Iterator[tuple[str, Tensor]]:
    import torch

    from qdx.models import awq, gptq
    from qdx.models.quantize import round_to_nearest

    def drawn(name: str, rows: int, columns: int) -> Tensor:
        digest = hashlib.sha256(f"{shape.seed} {name}".encode()).digest()
        numbers = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "little"))
        return (torch.randn(rows, columns, generator=numbers, device=device) * DEVIATION).half()

    def ones(size: int) -> Tensor:
        return torch.ones(size, dtype=torch.float16)

    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for short, (rows, columns) in _matrices(shape).items():
            name = f"{prefix}.{short}"
            weight_NK = drawn(name, rows, columns)
            if form == "none":
                yield f"{name}.weight", weight_NK.cpu()
                continue
            if form in WRITTEN:
                parts = pack(weight_NK, form, LARGEST)
            else:
                weight = round_to_nearest(weight_NK, GROUP, symmetric=form == "gptq")
                parts = (awq if form == "awq" else gptq).pack(weight)
            for part, value in parts.items():
                yield f"{name}.{part}", value.cpu().contiguous()
        if shape.experts:  # the router stays dense, as everybody leaves it
            yield f"{prefix}.mlp.gate.weight", drawn(f"{prefix}.mlp.gate", shape.experts, shape.hidden).cpu()
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}.{norm}.weight", ones(shape.hidden)
        for norm in ("q_norm", "k_norm"):
            yield f"{prefix}.self_attn.{norm}.weight", ones(shape.head)
    for name in ("model.embed_tokens", "lm_head"):
        yield f"{name}.weight", drawn(name, shape.vocab, shape.hidden).cpu()
    yield "model.norm.weight", ones(shape.hidden)


def _config(shape: Shape, form: str) -> dict[str, Any]:
    from qdx.models.demo import QUANTIZATION

    config: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,  # transformers 4 and vLLM read this, transformers 5 the next
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "attention_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": 256,
        "torch_dtype": "float16",
    }
    if shape.experts:
        config |= {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": shape.experts,
            "num_experts_per_tok": shape.active,
            "moe_intermediate_size": shape.mlp,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if form in QUANTIZATION:
        config["quantization_config"] = QUANTIZATION[form]
    elif form in WRITTEN:
        routers = [f"model.layers.{i}.mlp.gate" for i in range(shape.layers)] if shape.experts else []
        config["quantization_config"] = entry(form, ["lm_head", *routers])
    return config


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    core.add_special_tokens([AddedToken("<|end|>", special=True)])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
