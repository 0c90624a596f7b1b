"""A Llama's forward pass as vLLM runs it eagerly on a Hopper card, operation by operation, bit for bit.

The operations are those of vLLM's ``model_executor/models/llama.py`` (0.33.0) in float16: embedding, norms
that add the residual, one product for q, k and v, rotary embedding, attention, output projection, one product
for gate and up, silu and product, down projection, last norm, head. Each is one of `qdx.kernels`. All tokens
of a step go through them together, since their number decides how several kernels divide their sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import (
    KernelModel,
    QuantizedWeight,
    flash_attention,
    make,
    operations,
    rotary,
    triton_attention,
)

HEAD = 64
MERGED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
Listener = Callable[[str, Tensor], None]


def _nothing(_name: str, _value: Tensor) -> None:
    pass


@dataclass(frozen=True)
class Shape:
    """Hold the sizes that a model's config.json states.

    Attributes
    ----------
    layers, hidden, heads, kv_heads, vocab : int
    epsilon : float
        Of the norms.
    theta : float
        Base of the rotary frequencies.
    tied : bool
        Whether the head is the embedding.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vocab: int
    epsilon: float
    theta: float
    tied: bool

    @classmethod
    def read(cls, folder: Path) -> Shape:
        """Read a checkpoint's config.json.

        Raises
        ------
        QdxError
            For another architecture, head size, activation or rotation than those that are known bit for bit.
        """
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads = int(config["num_attention_heads"])
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        asked = {
            "architectures": (config.get("architectures"), ["LlamaForCausalLM"]),
            "head_dim": (config.get("head_dim") or config["hidden_size"] // heads, HEAD),
            "hidden_act": (config.get("hidden_act"), "silu"),
            "attention_bias": (bool(config.get("attention_bias")), False),
            "mlp_bias": (bool(config.get("mlp_bias")), False),
            "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
            "layer_types": (sorted(set(config.get("layer_types") or ["full_attention"])), ["full_attention"]),
        }
        for name, (got, known) in asked.items():
            if got != known:
                raise QdxError(
                    f"backend=emulator: config.json of {folder} has {name} {got}, known bit for bit is "
                    f"{known} alone: use backend=transformers"
                )
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            vocab=int(config["vocab_size"]),
            epsilon=float(config["rms_norm_eps"]),
            theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
            tied=bool(config.get("tie_word_embeddings")),
        )


@dataclass
class Cache:
    """Keys and values of each layer and sequence, float16 (tokens, heads of keys, 64)."""

    keys: list[list[Tensor]]
    values: list[list[Tensor]]
    lengths: list[int] = field(default_factory=list)

    @classmethod
    def empty(cls, shape: Shape, sequences: int) -> Cache:
        """Return the cache of sequences that have no token yet."""
        none = torch.empty(0, shape.kv_heads, HEAD, dtype=torch.float16)
        lines = [[none] * sequences for _ in range(shape.layers)]
        return cls(lines, [list(line) for line in lines], [0] * sequences)

    def copy(self) -> Cache:
        """Return one that grows apart from this: what is in it is never written to."""
        return Cache(
            [list(line) for line in self.keys], [list(line) for line in self.values], [*self.lengths]
        )


class Llama:
    """The weights, and how a step of tokens goes through them.

    Parameters
    ----------
    shape : Shape
    weights : Mapping of str to QuantizedWeight or Tensor
        Every projection by its name in the checkpoint, without ``.weight``; a dense one is a float16 matrix
        (out-features, in-features).
    dense : Mapping of str to Tensor
        Norms, embedding and an untied head, by their names in the checkpoint.
    kernel : str
        That computes the projections.
    sm_count : int
        Of the card.
    most_sequences : int
        The engine's ``max_num_seqs``.
    attention_backend : str
        ``TRITON_ATTN`` or ``FLASH_ATTN`` (FlashAttention 3).
    exactly : bool
        Refuse sums that are not known bit for bit; else they are the CPU's.
    """

    def __init__(
        self,
        shape: Shape,
        weights: Mapping[str, QuantizedWeight | Tensor],
        dense: Mapping[str, Tensor],
        kernel: str,
        *,
        sm_count: int,
        most_sequences: int,
        attention_backend: str = "TRITON_ATTN",
        exactly: bool = True,
    ) -> None:
        self.shape = shape
        self._most_sequences, self._exactly = most_sequences, exactly
        self._flash = attention_backend == "FLASH_ATTN"
        self.embedding = dense["model.embed_tokens.weight"]
        head = self.embedding if shape.tied else dense["lm_head.weight"]
        self.norm = dense["model.norm.weight"]
        self.norms = [
            tuple(
                dense[f"model.layers.{layer}.{name}.weight"]
                for name in ("input_layernorm", "post_attention_layernorm")
            )
            for layer in range(shape.layers)
        ]
        self.linear: list[dict[str, KernelModel]] = []
        for layer in range(shape.layers):
            prefix = f"model.layers.{layer}"
            self.linear.append(
                {
                    name: make(
                        kernel, merged([weights[f"{prefix}.{part}"] for part in parts]), sm_count=sm_count
                    )
                    for name, parts in MERGED.items()
                }
            )
        self._head = make("dense", head)

    def step(self, tokens: list[list[int]], cache: Cache, listen: Listener = _nothing) -> Tensor:
        """Feed tokens to each sequence; the cache grows by them.

        Parameters
        ----------
        tokens : list of list of int
            The next ones of each sequence, at least one.
        cache : Cache
        listen : callable
            Gets the name and the output of every operation.

        Returns
        -------
        Tensor
            float16 (tokens, hidden): what the head reads, sequence after sequence.
        """
        shape = self.shape
        counts = tuple(map(len, tokens))
        batch = triton_attention.Batch(counts, self._most_sequences)
        positions = np.concatenate(
            [np.arange(first, first + n) for first, n in zip(cache.lengths, counts, strict=True)]
        )
        cos_sin_TR = rotary.table(shape.theta, HEAD, positions, torch.float16)
        hidden_TH = self.embedding[torch.tensor([one for line in tokens for one in line])]
        listen("embed_tokens", hidden_TH)
        residual_TH: Tensor | None = None
        for layer in range(shape.layers):

            def heard(name: str, value: Tensor, layer: int = layer) -> Tensor:
                listen(f"{layer}.{name}", value)
                return value

            before, after = self.norms[layer]
            hidden_TH, residual_TH = self._normalized(hidden_TH, residual_TH, before)
            heard("input_layernorm", hidden_TH)
            qkv_TN = heard("self_attn.qkv_proj", self._multiply(layer, "self_attn.qkv_proj", hidden_TH))
            attended_TN = self._attend(layer, qkv_TN, cos_sin_TR, cache, batch, heard)
            out_TH = heard("self_attn.o_proj", self._multiply(layer, "self_attn.o_proj", attended_TN))
            hidden_TH, residual_TH = self._normalized(out_TH, residual_TH, after)
            heard("post_attention_layernorm", hidden_TH)
            heard("post_attention_layernorm.residual", residual_TH)
            both_TN = heard("mlp.gate_up_proj", self._multiply(layer, "mlp.gate_up_proj", hidden_TH))
            active_TN = heard("mlp.act_fn", operations.silu_and_mul(both_TN))
            hidden_TH = heard("mlp.down_proj", self._multiply(layer, "mlp.down_proj", active_TN))
        hidden_TH, _ = self._normalized(hidden_TH, residual_TH, self.norm)
        listen("norm", hidden_TH)
        cache.lengths = [first + n for first, n in zip(cache.lengths, counts, strict=True)]
        return hidden_TH

    def head(self, hidden_NH: Tensor) -> Tensor:
        """Return float16 (rows, vocabulary)."""
        return self._head.exact(hidden_NH)

    def _multiply(self, layer: int, name: str, x_TK: Tensor) -> Tensor:
        linear = self.linear[layer][name]
        if self._exactly or linear.exact_known(len(x_TK)):
            return linear.exact(x_TK)
        result: Tensor = linear(x_TK)
        return result

    def _normalized(
        self, x_TH: Tensor, residual_TH: Tensor | None, weight_H: Tensor
    ) -> tuple[Tensor, Tensor]:
        if residual_TH is None:
            return operations.rms_norm(x_TH, weight_H, self.shape.epsilon), x_TH
        return operations.fused_add_rms_norm(x_TH, residual_TH, weight_H, self.shape.epsilon)

    def _attend(
        self,
        layer: int,
        qkv_TN: Tensor,
        cos_sin_TR: Tensor,
        cache: Cache,
        batch: triton_attention.Batch,
        heard: Callable[[str, Tensor], Tensor],
    ) -> Tensor:
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        q_THD, k_THD, v_THD = qkv_TN.view(len(qkv_TN), -1, HEAD).split((heads, kv_heads, kv_heads), dim=1)
        q_THD = operations.rotary_embedding(q_THD, cos_sin_TR)
        k_THD = operations.rotary_embedding(k_THD, cos_sin_TR)
        heard("self_attn.rotary_emb.q", q_THD.flatten(1))
        heard("self_attn.rotary_emb.k", k_THD.flatten(1))
        for line, new_THD in ((cache.keys[layer], k_THD), (cache.values[layer], v_THD)):
            for item, part in enumerate(new_THD.split(batch.queries)):
                line[item] = torch.cat((line[item], part))
        keys, values = cache.keys[layer], cache.values[layer]
        if self._flash:
            out_THD = flash_attention.attention(
                q_THD, keys, values, batch.queries, HEAD**-0.5, exactly=self._exactly
            )
        else:
            out_THD = triton_attention.attention(q_THD, keys, values, batch, HEAD**-0.5)
        return heard("self_attn.attn", out_THD.flatten(1))


def merged(parts: list[QuantizedWeight | Tensor]) -> QuantizedWeight | Tensor:
    """Put projections of the same input beside each other, as vLLM computes them.

    Raises
    ------
    QdxError
        When some are quantized and others not, or in groups of other sizes.
    """
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors)
    weights = [part for part in parts if isinstance(part, QuantizedWeight)]
    if len(weights) < len(parts) or len({one.group_size for one in weights}) > 1:
        raise QdxError(
            "backend=emulator: projections of one input are quantized differently, which vLLM does not "
            "merge: quantize all of a layer alike"
        )
    return QuantizedWeight(
        q_KN=torch.cat([one.q_KN for one in weights], 1),
        zero_GN=torch.cat([one.zero_GN for one in weights], 1),
        scale_GN=torch.cat([one.scale_GN for one in weights], 1),
        group_size=weights[0].group_size,
        symmetric=all(one.symmetric for one in weights),
    )
