"""Every architecture is right against transformers in float32, or refused before the first job."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdx.backends import causal_lm, rehearsal
from qdx.backends.transformers import TransformersBackend
from qdx.errors import QdxError
from qdx.models import awq, gptq, resolve
from qdx.models.quantize import round_to_nearest
from qdx.schema import Quant
from tests import tiny
from tests.backends.test_transformers import Rows
from tests.prompts.conftest import build_tokenizer

DOCS = Path(__file__).parent.parent.parent / "docs"
PROMPTS = [list(range(5, 45)), list(range(200, 225))]
SMALL = {
    "vocab_size": 1200,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GPT2 = {"vocab_size": 1200, "n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": 256}
OPT = {
    "vocab_size": 1200,
    "hidden_size": 128,
    "ffn_dim": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TOKENS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 2}
GEMMA = {"sliding_window": 16, "query_pre_attn_scalar": 64}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "soft-capped scores": ("Gemma2Config", {**SMALL, **GEMMA, "attn_logit_softcapping": 5.0}),
    "transposed layers": ("GPT2Config", {**GPT2, **TOKENS}),
    "a head on the decoder": ("OPTConfig", {**OPT, "word_embed_proj_dim": 128, **TOKENS}),
    "positions by slope": (
        "BloomConfig",
        {"vocab_size": 1200, "hidden_size": 128, "n_layer": 2, "n_head": 2, **TOKENS},
    ),
    "experts": ("MixtralConfig", {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "sinks and experts with biases": (
        "GptOssConfig",
        {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    ),
    "latent keys": (
        "DeepseekV3Config",
        {
            **{k: v for k, v in SMALL.items() if k not in ("head_dim", "num_key_value_heads")},
            "num_key_value_heads": 2,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 32,
            "v_head_dim": 32,
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
        },
    ),
}


def draw(model: Any) -> None:
    """Give every weight a value that matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 or name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    model.tie_weights()


def write(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def checkpoint(folder: Path, kind: str) -> tuple[Path, Any]:
    """Write a small random checkpoint of a kind; returns it with its model in transformers' eager float32."""
    import transformers

    name, stated = KINDS[kind]
    config = getattr(transformers, name)(**stated)
    model = causal_lm.mapping()[type(config)]._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    draw(model)
    return write(folder, model), model.eval()


def compare(
    folder: Path, model: Any, *, form: str = "none", kernel: str = "dense", tolerance: float = 2e-4
) -> None:
    """Hold a run's rows, prefill and decode, in a padded batch, against the model's own forward pass."""
    found = resolve(str(folder), format=form)
    quant = Quant("x", form, kernel)
    dtype = "float32" if form == "none" else "float16"
    TransformersBackend.rehearse(checkpoint=found, quant=quant, dtype=dtype, batch_size=2)
    engine = TransformersBackend(checkpoint=found, quant=quant, dtype=dtype, threads=1)
    prefill, decode = Rows(PROMPTS), Rows(PROMPTS)
    engine.prefill(PROMPTS, prefill)  # type: ignore[arg-type]
    tokens = engine.generate(PROMPTS, 5, decode)  # type: ignore[arg-type]
    for item, prompt in enumerate(PROMPTS):
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([prompt + tokens[item]]), use_cache=False).logits[0]
        spread = float(expected.std())
        for rows in (prefill, decode):
            own = {position: row for (one, position), row in rows.logits.items() if one == item}
            assert len(own) == (len(prompt) if rows is prefill else 4)
            for position, row in own.items():
                apart = float((row.float() - expected[position - 1]).abs().max())
                assert apart <= tolerance * spread, (item, position, apart, spread)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_architecture_computes_what_transformers_does(tmp_path: Path, kind: str) -> None:
    compare(*checkpoint(tmp_path, kind))


def test_a_multimodal_model_s_language_model_runs(tmp_path: Path) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    seeing = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config={**SMALL, **GEMMA}, vision_config=seeing, mm_tokens_per_image=4)
    config._attn_implementation = "eager"
    model = Gemma3ForConditionalGeneration(config)
    draw(model)
    compare(write(tmp_path, model), model.eval())


def test_head_in_pieces_is_the_head_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdx.backends.transformers.HEAD_ROWS", 7)
    compare(*checkpoint(tmp_path, "soft-capped scores"))


@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_quantized_experts_are_modelled_layers(tmp_path: Path, form: str) -> None:
    """A mixture whose experts are packed one by one, as every published one is."""
    folder, model = checkpoint(tmp_path, "experts")
    packed: dict[str, torch.Tensor] = {}
    dense: dict[str, torch.Tensor] = {}
    layout: Any = {"awq": awq, "gptq": gptq}[form]
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.ndim < 2 or not any(part in name for part in ("_proj", ".w1.", ".w2.", ".w3.")):
            packed[name] = dense[name] = tensor.half()
            continue
        weight = round_to_nearest(tensor.half(), 128, symmetric=form == "gptq")
        dense[name] = weight.dequantize().t().half().contiguous()
        packed |= {name.replace("weight", part): value for part, value in layout.pack(weight).items()}
    stated = json.loads((folder / "config.json").read_text())
    save_file(dense, folder / "model.safetensors")
    plain = type(model).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    save_file(packed, folder / "model.safetensors")
    stated["quantization_config"] = tiny.QUANTIZED[form]
    (folder / "config.json").write_text(json.dumps(stated))
    compare(folder, plain, form=form, kernel="marlin", tolerance=0.05)
    found = resolve(str(folder), format=form)
    facts = TransformersBackend(found, Quant("x", form, "marlin"), "float16", threads=1).observe()
    assert facts.kernel["experts"] == "model:marlin" and "experts" in facts.quantized


@pytest.mark.parametrize(
    ("name", "stated", "reason"),
    [
        ("MambaConfig", {"vocab_size": 1200, "hidden_size": 128, "num_hidden_layers": 2}, "differ"),
        ("BertConfig", {**SMALL, "head_dim": None}, "gives back no cache"),
        (
            "RwkvConfig",
            {"vocab_size": 1200, "hidden_size": 128, "num_hidden_layers": 2},
            "gives back no cache",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_its_architecture_s_name(
    tmp_path: Path, name: str, stated: dict[str, Any], reason: str
) -> None:
    import transformers

    config = getattr(transformers, name)(**{k: v for k, v in stated.items() if v is not None})
    model = causal_lm.mapping()[type(config)](config)
    found = resolve(str(write(tmp_path, model)), format="none")
    with pytest.raises(QdxError, match=rf"does not run the architecture {type(model).__name__} .*{reason}"):
        TransformersBackend.rehearse(
            checkpoint=found, quant=Quant("none", "none", "dense"), dtype="float16", batch_size=1
        )


def wrong_scale(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    kwargs["scaling"] = 1.1 * (kwargs.get("scaling") or query.shape[-1] ** -0.5)
    return causal_lm.attention(module, query, key, value, mask, **kwargs)


def ignores_padding(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    rows, columns = query.shape[2], key.shape[2]
    causal = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)[None, None]
    return causal_lm.attention(module, query, key, value, causal, **kwargs)


@pytest.mark.parametrize(
    ("attention", "batch_size", "message"),
    [
        (wrong_scale, 1, "its logits differ"),
        (ignores_padding, 2, "padding changes its logits .* batch_size=1"),
    ],
)
def test_rehearsal_sees_a_wrong_attention(
    monkeypatch: pytest.MonkeyPatch, attention: Callable[..., Any], batch_size: int, message: str
) -> None:
    from transformers import AttentionInterface, LlamaConfig

    config = LlamaConfig(rms_norm_eps=1.25e-6)  # a config that nothing else has tried
    mapping = causal_lm.mapping()
    rehearsal.rehearse(config, mapping[LlamaConfig], batch_size=batch_size)
    monkeypatch.setattr(rehearsal, "_tried", {})
    AttentionInterface.register(causal_lm.ATTENTION, attention)
    try:
        with pytest.raises(QdxError, match=message):
            rehearsal.rehearse(config, mapping[LlamaConfig], batch_size=batch_size)
    finally:
        causal_lm.mapping()  # registers the right one


def test_tensor_that_nothing_reads_is_refused_before_the_first_job(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "extra"
    folder.mkdir()
    for file in tiny_models["none"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    state = load_file(folder / "model.safetensors")
    quant, asked = Quant("none", "none", "dense"), {"dtype": "float16", "batch_size": 1}
    harmless = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32)}
    save_file(state | harmless, folder / "model.safetensors")
    TransformersBackend.rehearse(checkpoint=resolve(str(folder), format="none"), quant=quant, **asked)  # type: ignore[arg-type]
    save_file(state | {"model.layers.0.mlp.up_proj.bias": torch.ones(512)}, folder / "model.safetensors")
    found = resolve(str(folder), format="none")
    with pytest.raises(QdxError, match=r"1 tensors are read by nothing in LlamaForCausalLM, such as \S+bias"):
        TransformersBackend.rehearse(checkpoint=found, quant=quant, **asked)  # type: ignore[arg-type]
    with pytest.raises(QdxError, match="are read by nothing"):
        TransformersBackend(checkpoint=found, quant=quant, dtype="float16")


@pytest.mark.slow
def test_every_causal_lm_of_transformers_is_right_or_refused_and_the_page_says_which() -> None:
    build = importlib.util.spec_from_file_location("build_architectures", DOCS / "build_architectures.py")
    assert build is not None and build.loader is not None
    module = importlib.util.module_from_spec(build)
    build.loader.exec_module(module)
    found = list(rehearsal.survey())
    assert len(found) > 150
    for _, _, trouble in found:
        assert "\n" not in trouble
    right = {name for name, _, trouble in found if not trouble}
    families = (
        "llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 gpt2 gpt_neox opt bloom falcon mixtral"
    )
    families += " qwen3_moe deepseek_v3 gpt_oss olmo2 granite cohere starcoder2 glm4 smollm3"
    assert set(families.split()) <= right
    text = (DOCS / "architectures.md").read_text(encoding="utf-8")
    if f"that transformers {version('transformers')} maps" in text:
        assert text == module.page(found, version("transformers"))
