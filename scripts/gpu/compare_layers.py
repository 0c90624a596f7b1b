"""Compare what ``record_layers.py`` recorded on a card with `qdx.kernels`, operation by operation.

    PYTHONPATH=.:scripts/gpu python scripts/gpu/compare_layers.py layers.npz [others.npz] [config …]

Needs no GPU. First each operation gets the inputs that the card's had, and a line says how many of its
outputs are bit-equal. Then the model runs by itself from the token ids; a line says how many rows of logits
are the card's, and the first operation that differs.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import record_layers
import small_model
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdx.backends.emulator.cards import CARDS
from qdx.backends.emulator.llama import HEAD, Cache, Llama, Shape
from qdx.kernels import flash_attention, operations, rotary, triton_attention

SHAPE = Shape(
    layers=small_model.LAYERS,
    hidden=small_model.HIDDEN,
    heads=small_model.HEADS,
    kv_heads=small_model.KV_HEADS,
    vocab=small_model.VOCAB,
    epsilon=7.5e-6,
    theta=100_000.0,
    tied=True,
)
MOST_SEQUENCES = 8
Counts = dict[str, list[int]]  # operation → equal, all


@cache
def embedding() -> Tensor:
    """Return the embedding, which is the head, too, of every format."""
    return small_model.halves("embedding", 1023, -13, SHAPE.vocab, SHAPE.hidden)


def llama(form: str, kernel: str, attention: str = "TRITON_ATTN", card: str = "h200") -> Llama:
    """Build the recorded model as a card computes it."""
    weights: dict[str, Any] = {}
    for layer in range(SHAPE.layers):
        for short in small_model.MATRICES:
            one = small_model.weight(f"{layer}.{short}", "awq" if form == "none" else form)
            whole = one.dequantize().t().contiguous() if form == "none" else one
            weights[f"model.layers.{layer}.{short}"] = whole
    dense = {
        "model.embed_tokens.weight": embedding(),
        "model.norm.weight": small_model.norm_weight("norm"),
    }
    for layer in range(SHAPE.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            dense[f"model.layers.{layer}.{norm}.weight"] = small_model.norm_weight(f"{layer}.{norm}")
    return Llama(
        SHAPE,
        weights,
        dense,
        kernel or "dense",
        sm_count=CARDS[card].sm_count,
        card=card,
        flash_version=3 if CARDS[card].hopper else 2,
        most_sequences=MOST_SEQUENCES,
        attention_backend=attention,
    )


def steps_of(file: Mapping[str, NDArray[Any]], config: str, case: str) -> list[dict[str, NDArray[Any]]]:
    """Return the recorded steps of a case, without one that computes nothing that was kept."""
    found: dict[int, dict[str, NDArray[Any]]] = defaultdict(dict)
    prefix = f"{config}/{case}/"
    for key in file:
        if key.startswith(prefix) and key != f"{prefix}tokens":
            step, name = key.removeprefix(prefix).split("/", 1)
            found[int(step)][name] = file[key]
    return [found[step] for step in sorted(found)]


def equal(own: Tensor, card: NDArray[Any]) -> NDArray[np.bool_]:
    """Compare bits."""
    mine = own.contiguous().view(torch.int16).numpy().reshape(card.shape)
    return np.asarray(mine == card.view(np.int16))


def by_operation(
    model: Llama,
    steps: list[dict[str, NDArray[Any]]],
    counts: Counts,
    attention: str = "TRITON_ATTN",
    firsts: dict[str, str] | None = None,
) -> None:
    """Give each operation the card's inputs and count its outputs; `firsts` gets what differs first."""

    def half(name: str) -> Tensor:
        return torch.from_numpy(step[name])

    def count(name: str, own: Tensor, card: str) -> None:
        same = equal(own, step[card])
        line = counts.setdefault(name, [0, 0])
        line[0] += int(same.sum())
        line[1] += same.size
        if firsts is not None and not same.all() and name not in firsts:
            at = tuple(np.argwhere(~same)[0].tolist())
            number = next(i for i, one in enumerate(steps) if one is step)
            mine = own.contiguous().numpy().reshape(step[card].shape)[at]
            firsts[name] = f"step {number}, {card}, output {at}: {mine} here, {step[card][at]} on the card"

    starts = steps[0]["about.query_start_loc"]
    sequences = len(starts) - 1
    caches: list[Cache] = [Cache.empty(SHAPE, sequences)]
    for step in steps:
        queries = tuple(np.diff(step["about.query_start_loc"]).tolist())
        positions = step["positions"]
        count("embedding", model.embedding[torch.from_numpy(step["ids"]).long()], "embed_tokens")
        table = rotary.table(SHAPE.theta, HEAD, positions, torch.float16)
        previous, residual = "embed_tokens", "embed_tokens"
        for layer in range(SHAPE.layers):
            prefix = f"{layer}.self_attn."
            norms = model.norms[layer]
            if layer == 0:
                count(
                    "rms_norm",
                    operations.rms_norm(half(previous), norms[0], SHAPE.epsilon),
                    "0.input_layernorm",
                )
            else:
                out, added = operations.fused_add_rms_norm(
                    half(previous), half(residual), norms[0], SHAPE.epsilon
                )
                count("fused_add_rms_norm", out, f"{layer}.input_layernorm")
                count("fused_add_rms_norm", added, f"{layer}.input_layernorm.residual")
                residual = f"{layer}.input_layernorm.residual"

            def multiply(name: str, given: str, layer: int = layer) -> None:
                linear = model.linear[layer][name]
                short = name.split(".")[-1]
                count(f"{short}, {linear.name}", linear.exact(half(given)), f"{layer}.{name}")

            multiply("self_attn.qkv_proj", f"{layer}.input_layernorm")
            qkv = half(f"{prefix}qkv_proj").view(len(positions), -1, HEAD)
            q, k, v = qkv.split((SHAPE.heads, SHAPE.kv_heads, SHAPE.kv_heads), dim=1)
            count(
                "rotary_embedding", operations.rotary_embedding(q, table).flatten(1), f"{prefix}rotary_emb.q"
            )
            count(
                "rotary_embedding", operations.rotary_embedding(k, table).flatten(1), f"{prefix}rotary_emb.k"
            )
            cache = caches[0]
            turned = half(f"{prefix}rotary_emb.k").view(len(positions), SHAPE.kv_heads, HEAD)
            for line, new in ((cache.keys[layer], turned), (cache.values[layer], v)):
                for item, part in enumerate(new.split(queries)):
                    line[item] = torch.cat((line[item], part))
            batch = triton_attention.Batch(queries, MOST_SEQUENCES)
            turned_q = half(f"{prefix}rotary_emb.q").view(len(positions), -1, HEAD)
            own, kind = attend(model, attention, turned_q, cache.keys[layer], cache.values[layer], batch)
            count(f"attention, {kind}", own.flatten(1), f"{prefix}attn")
            multiply("self_attn.o_proj", f"{prefix}attn")
            out, added = operations.fused_add_rms_norm(
                half(f"{prefix}o_proj"), half(residual), norms[1], SHAPE.epsilon
            )
            count("fused_add_rms_norm", out, f"{layer}.post_attention_layernorm")
            count("fused_add_rms_norm", added, f"{layer}.post_attention_layernorm.residual")
            residual = f"{layer}.post_attention_layernorm.residual"
            multiply("mlp.gate_up_proj", f"{layer}.post_attention_layernorm")
            count(
                "silu_and_mul",
                operations.silu_and_mul(half(f"{layer}.mlp.gate_up_proj")),
                f"{layer}.mlp.act_fn",
            )
            multiply("mlp.down_proj", f"{layer}.mlp.act_fn")
            previous = f"{layer}.mlp.down_proj"
        out, _ = operations.fused_add_rms_norm(half(previous), half(residual), model.norm, SHAPE.epsilon)
        count("fused_add_rms_norm", out, "norm")
        if "logits" in step:
            count("output head", model.head(half("head_input")), "logits")


def attend(
    model: Llama,
    attention: str,
    q: Tensor,
    keys: list[Tensor],
    values: list[Tensor],
    batch: triton_attention.Batch,
) -> tuple[Tensor, str]:
    """Return what an attention backend gives, and which of its kernels."""
    if attention == "FLASH_ATTN":
        block = model.flash_block or flash_attention.keys_at_once(
            max(batch.queries), SHAPE.heads // SHAPE.kv_heads
        )
        kind = f"FlashAttention, {block}"
    else:
        kind = "Triton, segments" if batch.in_segments(SHAPE.heads, SHAPE.kv_heads) else "Triton, whole"
    return model.attention(q, keys, values, batch), kind


def by_itself(model: Llama, steps: list[dict[str, NDArray[Any]]]) -> tuple[int, int, str]:
    """Run the model from the ids; returns equal rows of logits, all, and the first difference."""
    cache = Cache.empty(SHAPE, len(steps[0]["about.query_start_loc"]) - 1)
    same, rows, first = 0, 0, ""
    for number, step in enumerate(steps):
        starts = step["about.query_start_loc"]
        tokens = [step["ids"][a:b].tolist() for a, b in pairwise(starts)]

        def listen(name: str, value: Tensor, number: int = number, step: Any = step) -> None:
            nonlocal first
            if first:
                return
            if name in step and not (here := equal(value, step[name])).all():
                first = f"step {number}, {name}: {int((~here).sum())} of {here.size} outputs"
            elif f"{name}.hash" in step:
                other = record_layers.hashes(value.numpy()) != step[f"{name}.hash"]
                if other.any():
                    first = f"step {number}, {name}: {int(other.sum())} of {other.size} rows"

        hidden = model.step(tokens, cache, listen)
        logits = model.head(hidden[torch.from_numpy(starts[1:] - 1).long()])
        listen("logits", logits)
        if "logits" in step:
            here = equal(logits, step["logits"]).all(1)
        else:
            here = record_layers.hashes(logits.numpy()) == step["logits.hash"]
        same, rows = same + int(here.sum()), rows + here.size
    return same, rows, first


def main() -> None:
    """Print the table."""
    paths = [Path(one) for one in sys.argv[1:] if one.endswith(".npz")]
    chosen = [one for one in sys.argv[1:] if not one.endswith(".npz")]
    for path in paths:
        with np.load(path) as file:
            configs = [name for name in record_layers.CONFIGS if f"{name}/about" in file.files]
            for name in configs:
                if chosen and name not in chosen:
                    continue
                config = record_layers.CONFIGS[name]
                model = llama(config["form"], config["kernel"], config["attention"])
                counts: Counts = {}
                for case in record_layers.CASES:
                    steps = steps_of(file, name, case)
                    if steps and "logits" in steps[0]:
                        by_operation(model, steps, counts, config["attention"])
                print(name)
                for operation, (good, total) in counts.items():
                    print(f"  {operation:32} {good:9} of {total:9} outputs equal", flush=True)
                for case in record_layers.CASES:
                    if steps := steps_of(file, name, case):
                        good, total, first = by_itself(model, steps)
                        print(f"  by itself, {case:6} {good} of {total} rows equal {first}", flush=True)


if __name__ == "__main__":
    main()
