"""Try an architecture before the first job: a small random model of its config, here and in transformers.

transformers maps some two hundred architectures to causal LMs, and each may call its head, its cache or its
attention in a way of its own. Whether a run of one is right is not looked up in a list: a model of the
checkpoint's config with its sizes cut down is computed by both, in float32, and the logits are compared.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qdx.backends import causal_lm
from qdx.errors import QdxError

PROMPTS = ((5, 9, 2, 7, 11, 4, 8, 3, 6), (12, 3, 14, 7, 5))
FOLLOWING = (4, 9, 13)
TOLERANCE = 2e-3  # of the logits' spread: chosen, far above float32 in another order
# What an architecture calls its sizes, and what they are cut down to.
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "d_model": 64,
    "n_embd": 64,
    "dim": 64,
    "embedding_size": 64,
    "word_embed_proj_dim": 64,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "head_dim": 16,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "n_inner": 96,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "max_seq_len": 256,
    "max_sequence_length": 256,
    "rotary_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_ssm": 128,
    "n_mamba_heads": 2,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "mamba_headdim": 16,
    "num_heads": 8,
    "ssm_state_size": 16,
    "state_size": 16,
    "lru_width": 64,
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "kv_channels": 16,
    "d_kv": 16,
    "d_ff": 96,
    "rnn_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 16,
    "image_size": 28,
}
KINDS = ("layer_types", "layers_block_type", "block_types")
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
MOST_LAYERS = 8
MOST_PARAMETERS = 20_000_000
AS_IT_IS = 3_000_000  # parameters of a config that is tried without being cut
_tried: dict[tuple[str, Any, bool], str] = {}  # the formats of one model have one architecture


def rehearse(config: Any, architecture: Any, *, batch_size: int) -> None:
    """Refuse an architecture whose logits do not come out here as transformers computes them.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        Of the checkpoint; it is not changed.
    architecture : type
        The class that runs it.
    batch_size : int
        Above 1 the prompts are also padded into one batch.

    Raises
    ------
    QdxError
        In one line, blaming the architecture.
    """
    key = config.to_json_string(use_diff=False), architecture, batch_size > 1
    if key not in _tried:
        with _quiet():
            _tried[key] = _trouble(config, architecture, padded=batch_size > 1)
    if trouble := _tried[key]:
        raise QdxError(
            f"backend=transformers does not run the architecture {architecture.__name__} "
            f"(model_type {config.model_type!r}): {trouble}; choose another model, or backend=vllm"
        )


def survey() -> Iterator[tuple[str, str, str]]:
    """Try every causal LM that the installed transformers maps, in the default config of each.

    Yields
    ------
    tuple of str
        The model type, the class that runs it, and what is wrong with it: nothing where it is right in
        batches too, else the words of `rehearse`'s error.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    mapping = causal_lm.mapping()
    with _quiet():
        for name, class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
            try:
                config = CONFIG_MAPPING[name]()
                config, architecture = causal_lm.language_model(config, mapping[type(config)])
            except Exception as error:
                yield name, str(class_name), f"it has no default config to try ({_said(error)})"
                continue
            yield name, architecture.__name__, _trouble(config, architecture, padded=True)


def _trouble(config: Any, architecture: Any, *, padded: bool) -> str:
    """Return what is wrong with an architecture's run, or an empty string."""
    try:
        small = config if _is_small(architecture, config) else shrink(config)
        if (size := _parameters(architecture, small)) > MOST_PARAMETERS:
            return f"a small model of its config cannot be made (it still has {size:,} parameters)"
        torch.manual_seed(0)
        with _float32():
            plain = _plain(architecture, small)
            expected = [_expected(plain, prompt) for prompt in PROMPTS]
    except Exception as error:
        return f"a small model of its config cannot be tried ({_said(error)})"
    try:
        ours = _ours(architecture, small, plain.state_dict())
        alone = [_computed(ours, [prompt])[0] for prompt in PROMPTS]
    except Exception as error:
        return _said(error)
    spread = max(float(row.std()) for row in expected) or 1.0
    apart = max(_difference(a, b) for a, b in zip(alone, expected, strict=True)) / spread
    if not apart <= TOLERANCE:  # NaN is wrong, too
        return (
            f"its logits differ from transformers' own by {apart:.1g} of their spread on a small random model"
        )
    if not padded:
        return ""
    try:
        together = _computed(ours, list(PROMPTS))
    except Exception as error:
        return f"in batches of unequal prompts: {_said(error)}: use batch_size=1"
    apart = max(_difference(a, b) for a, b in zip(together, expected, strict=True)) / spread
    if not apart <= TOLERANCE:
        return f"padding changes its logits by {apart:.1g} of their spread: use batch_size=1"
    return ""


def _parameters(architecture: Any, config: Any) -> int:
    with torch.device("meta"):
        return sum(one.numel() for one in architecture(copy.deepcopy(config)).parameters())


def _is_small(architecture: Any, config: Any) -> bool:
    """Return whether a config can be tried as it is; one that leaves sizes open is filled in by `shrink`."""
    try:
        return _parameters(architecture, config) <= AS_IT_IS
    except Exception:
        return False


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def _plain(architecture: Any, config: Any) -> Any:
    """Return a small model as transformers runs it, every weight drawn so that each matters."""
    model = architecture._from_config(copy.deepcopy(config), attn_implementation="eager", dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                fan = parameter.shape[-1]
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * (0.5 if fan > 512 else 0.2)
                )
            elif name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.tie_weights()
    return model.eval()


def _ours(architecture: Any, config: Any, state: dict[str, Tensor]) -> causal_lm.CausalLM:
    model = architecture._from_config(
        copy.deepcopy(config),
        attn_implementation=causal_lm.attention_of(architecture),
        experts_implementation=causal_lm.EXPERTS,
        dtype=torch.float32,
    )
    model.load_state_dict(state)
    model.tie_weights()
    return causal_lm.CausalLM(model.eval(), {}, "dense")


@torch.inference_mode()
def _expected(model: Any, prompt: tuple[int, ...]) -> Tensor:
    ids = torch.tensor([[*prompt, *FOLLOWING]])
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.clone()


@torch.inference_mode()
def _computed(model: causal_lm.CausalLM, prompts: list[tuple[int, ...]]) -> list[Tensor]:
    """Prefill and step as a job does; returns (tokens, vocabulary) for each prompt."""
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    ids_BT = torch.tensor([[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)])
    mask_BT = torch.arange(longest) >= torch.tensor(pads)[:, None]
    rows = torch.cat([torch.arange(pad, longest) + i * longest for i, pad in enumerate(pads)])
    logits_NV, cache = model.run(ids_BT, mask_BT, rows)
    if cache is None:
        raise QdxError("it gives back no cache that its next call takes")
    parts = [[part.clone()] for part in logits_NV.split([len(prompt) for prompt in prompts])]
    hidden = model.hidden_BTH.flatten(0, 1)[rows[-1:]]
    if not torch.allclose(model.head(hidden), logits_NV[-1:], atol=1e-5, rtol=1e-4):
        raise QdxError("its head does not read its body's last hidden state")
    kept = copy.deepcopy(cache)
    for again in (False, True):  # a replay starts from a copy of the cache, as this does
        cache = copy.deepcopy(kept) if again else cache
        mask = mask_BT
        for step, token in enumerate(FOLLOWING):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            tokens = torch.full((len(prompts), 1), token)
            logits_BV, cache = model.run(tokens, mask, torch.arange(len(prompts)), cache)
            for item, part in enumerate(parts):
                if not again:
                    part.append(logits_BV[item : item + 1].clone())
                elif not torch.equal(part[1 + step], logits_BV[item : item + 1]):
                    raise QdxError("a copy of its cache does not give the same rows again")
    return [torch.cat(part) for part in parts]


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")


def shrink(config: Any) -> Any:
    """Return a config of the same kind with few, narrow layers.

    Every kind of layer that the config lists stays; all but sizes (activation, scaling, capping, windows,
    the kind of rotation) stays as it is.
    """
    small = copy.deepcopy(config)
    for one in _parts(small):
        own = _overrides(one)
        _shrink(one)
        if own:  # Gemma 4 gives some layers sizes of their own
            count = next(getattr(one, name) for name in LAYERS if isinstance(_value(one, name), int))
            one.per_layer_config = {
                layer: {name: _cut(name, value) for name, value in sizes.items()}
                for layer, sizes in own.items()
                if layer < count
            }
    return small


def _overrides(config: Any) -> dict[int, dict[str, Any]]:
    """Take from a config what it states for single layers, and return it."""
    spec = getattr(config, "_heterogeneity_spec", None)
    if spec is None:
        return {}
    found = copy.deepcopy(dict(spec.per_layer_overrides))
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = None
    return found


def _cut(name: str, value: Any) -> Any:
    """Cut a layer's own size to twice what other layers have: it stays another one."""
    return min(value, 2 * SIZES[name]) if name in SIZES and isinstance(value, int) else value


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None and not isinstance(inner, dict):
            yield from _parts(inner)


def _value(config: Any, name: str) -> Any:
    """Return a setting; None where the config has none, or none for all layers alike."""
    try:
        return getattr(config, name, None)
    except (AttributeError, RuntimeError):  # a setting that differs between layers may not be asked for
        return None


def _at_most(config: Any, name: str, size: int) -> None:
    value = _value(config, name)
    if isinstance(value, int) and not isinstance(value, bool) and value > size:
        setattr(config, name, size)


def _shrink(config: Any) -> None:
    shared, heads = (_value(config, name) for name in ("num_key_value_heads", "num_attention_heads"))
    latent = isinstance(_value(config, "qk_rope_head_dim"), int)
    for name, size in SIZES.items():
        _at_most(config, name, size)
    if latent:
        config.head_dim = config.qk_rope_head_dim  # the width that is rotated
    elif hasattr(config, "head_dim") and _value(config, "head_dim") is None:
        config.head_dim = SIZES["head_dim"]
    if isinstance(heads, int) and heads == 3:
        config.num_attention_heads = 2
    fewer = _value(config, "num_attention_heads")
    fewer = fewer if isinstance(fewer, int) else SIZES["num_attention_heads"]
    ratio = heads // shared if isinstance(heads, int) and isinstance(shared, int) and shared else 1
    for name in ("num_key_value_heads", "multi_query_group_num", "num_kv_heads"):
        value = _value(config, name)
        if hasattr(config, name) and (value is None or isinstance(value, int)):
            setattr(config, name, 1 if shared == 1 else fewer if ratio == 1 else max(1, fewer // 2))
    for name in TOKENS:
        value = _value(config, name)
        if isinstance(value, int) and value >= SIZES["vocab_size"]:
            setattr(config, name, TOKENS.index(name))
        elif isinstance(value, list | tuple):
            setattr(config, name, [TOKENS.index(name)])
    _fewer_layers(config)


def _fewer_layers(config: Any) -> None:
    name = next((one for one in LAYERS if isinstance(_value(config, one), int)), None)
    if name is None:
        return
    kinds = next(
        (list(_value(config, one)) for one in KINDS if isinstance(_value(config, one), list | tuple)), []
    )
    order = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    if not order:
        count, kept = 2, []
    else:  # from the first layer on, where that holds every kind soon: some kinds follow from the number
        count = max(max(order) + 1, 2)
        kept = kinds[:count] if count <= MOST_LAYERS else [kinds[i] for i in order]
        count = len(kept)
    for one in LAYERS:
        _at_most(config, one, count)
    for one in KINDS:
        if kept and isinstance(_value(config, one), list | tuple):
            with contextlib.suppress(AttributeError):  # computed from the number of layers
                setattr(config, one, kept)


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries say of the small model from the terminal: it would look like the run's."""
    from transformers.utils import logging as of_transformers

    before = of_transformers.get_verbosity()
    of_transformers.set_verbosity(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            of_transformers.set_verbosity(before)
