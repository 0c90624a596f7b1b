"""Widening with zeros keeps the model's function."""

from __future__ import annotations

import pytest
import torch

from qdx.models import widen
from qdx.models.demo import _config, _halves_together


def llama(hidden: int, heads: int, key_value_heads: int, eps: float) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=widen.MLP,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=widen.HEAD,
        rms_norm_eps=eps,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    torch.manual_seed(3)
    return LlamaForCausalLM(config).to(torch.float32).eval()


def test_widened_model_computes_the_original_function_in_fp32() -> None:
    narrow = llama(widen.HIDDEN, widen.HEADS, widen.KEY_VALUE_HEADS, eps=1e-5)
    with torch.no_grad():
        for name, parameter in narrow.named_parameters():
            # eps must matter and norms must differ from 1, or a wrong factor would pass.
            parameter.copy_(torch.rand_like(parameter) + 0.5 if "norm" in name else parameter * 0.5)
    wide = llama(
        widen.WIDE_HIDDEN, widen.WIDE_HEADS, widen.WIDE_KEY_VALUE_HEADS, eps=_config("none")["rms_norm_eps"]
    )
    state = {
        name: widen.widen(name, tensor)
        for name, tensor in narrow.state_dict().items()
        if name != "lm_head.weight"
    }
    result = wide.load_state_dict(state, strict=False)
    assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_head.weight"}
    ids = torch.arange(40)[None] * 7 % 512
    with torch.no_grad():
        expected, got = narrow(ids).logits, wide(ids).logits
    assert float(expected.std()) > 0.05
    assert float((expected - got).abs().max()) < 5e-5


@pytest.mark.parametrize("heads", [widen.HEADS, widen.KEY_VALUE_HEADS])
def test_rows_come_out_of_llama_cpp_s_order(heads: int) -> None:
    """llama.cpp's converter: reshape(heads, 2, half, columns), swap axes 1 and 2."""
    original = torch.arange(heads * 64 * 3, dtype=torch.float32).view(heads * 64, 3)
    converted = original.view(heads, 2, 32, 3).transpose(1, 2).reshape(heads * 64, 3)
    assert not torch.equal(converted, original)
    assert torch.equal(_halves_together(converted, heads), original)
