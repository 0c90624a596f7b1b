"""Whole layers and whole rows against a card: an H200, vLLM 0.33.0, eager, the model of ``small_model``.

``h200_layers.npz`` is a part of what ``scripts/gpu/record_layers.py`` recorded there; of rows of logits it
has 64-bit hashes. ``scripts/gpu/compare_layers.py`` compares all of it; its table is in docs/results.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdx.kernels import flash_attention, rotary, triton_attention

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "gpu"))
import compare_layers
import record_layers

LAYERS = Path(__file__).with_name("h200_layers.npz")
FREQUENCIES = Path(__file__).with_name("h200_frequencies.npz")
TABLE = "15627cf3e6b970818c0b73cc64568e0cdb78b9c5d0f299223ec14f5630a0a05c"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(LAYERS) as file:
        return dict(file)


def steps(recorded: dict[str, np.ndarray], config: str, case: str) -> list[dict[str, Any]]:
    return compare_layers.steps_of(recorded, config, case)


@pytest.mark.parametrize("case", ["short", "one"])
@pytest.mark.parametrize("attention", ["triton", "flash"])
def test_attention_is_the_cards_bit_for_bit(
    recorded: dict[str, np.ndarray], case: str, attention: str
) -> None:
    """Prefills of 6 and 23 tokens and two to four decode steps each: both kernels of either backend."""
    keys, values, seen = [], [], set()
    for step in steps(recorded, f"awq_marlin_{attention}", case):
        tokens = len(step["positions"])
        q, k, qkv = (
            torch.from_numpy(step[f"1.self_attn.{name}"]).view(tokens, -1, 64)
            for name in ("rotary_emb.q", "rotary_emb.k", "qkv_proj")
        )
        keys.append(k)
        values.append(qkv[:, 16:])
        given = q, [torch.cat(keys)], [torch.cat(values)]
        if attention == "flash":
            seen.add(flash_attention.keys_at_once(tokens, 3))
            out = flash_attention.attention(*given, (tokens,), 0.125)
        else:
            batch = triton_attention.Batch((tokens,), compare_layers.MOST_SEQUENCES)
            seen.add(batch.in_segments(12, 4))
            out = triton_attention.attention(*given, batch, 0.125)
        assert compare_layers.equal(out.flatten(1), step["1.self_attn.attn"]).all()
    assert len(seen) == (2 if case == "one" else 1)


def test_frequencies_and_the_rotary_table_are_the_cards() -> None:
    with np.load(FREQUENCIES) as file:
        for key in file.files:
            _, base, size = key.split("/")
            assert np.array_equal(rotary.inverse_frequencies(float(base), int(size)), file[key]), key
    table = rotary.table(100_000.0, 64, np.arange(8192), torch.float16)
    assert hashlib.sha256(table.numpy().tobytes()).hexdigest() == TABLE


@pytest.mark.slow
def test_every_operation_is_the_cards_bit_for_bit(recorded: dict[str, np.ndarray]) -> None:
    counts: compare_layers.Counts = {}
    model = compare_layers.llama("awq", "marlin")
    compare_layers.by_operation(model, steps(recorded, "awq_marlin_triton", "short"), counts)
    assert {name: line for name, line in counts.items() if line[0] < line[1]} == {}
    assert sum(total for _, total in counts.values()) > 200_000 and len(counts) == 10


@pytest.mark.slow
@pytest.mark.parametrize("config", list(record_layers.CONFIGS))
def test_whole_rows_are_the_cards_bit_for_bit(recorded: dict[str, np.ndarray], config: str) -> None:
    """From token ids to logits: rows of a prefill and of decode steps, by their hashes."""
    chosen = record_layers.CONFIGS[config]
    model = compare_layers.llama(chosen["form"], chosen["kernel"], chosen["attention"])
    cases = {"short": 3, "one": 5} if config == record_layers.FIRST else {"short": 3}
    for case, rows in cases.items():
        assert compare_layers.by_itself(model, steps(recorded, config, case)) == (rows, rows, "")
