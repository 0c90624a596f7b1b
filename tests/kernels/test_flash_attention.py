"""FlashAttention 3 against a card: an H200, vLLM 0.33.0, where keys are cut and where they are not.

``h200_flash.npz`` is a part of what ``scripts/gpu/record_layers.py`` recorded there: outputs, or 64-bit
hashes of their rows, and log-sum-exps. What was attended to follows from the names.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qdx.errors import QdxError
from qdx.kernels import flash_attention
from qdx.kernels.logarithm import lg2_approx_ftz

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "gpu"))
import record_layers

with np.load(Path(__file__).with_name("h200_flash.npz")) as _file:
    RECORDED = dict(_file)
CASES = sorted(key.removeprefix("lse/") for key in RECORDED if key.startswith("lse/"))
FROM_ONE = "7fd9be9a924e40a0ee18ba20e7f5158135112947597c8dd86131d3d4d8f9dbfa"
BELOW_ONE = "f4a1a4647345051df34d303afe6e48e94cb87b9a68f72bca90365b951af24a76"


def sizes(name: str) -> tuple[tuple[int, int, int], tuple[int, ...], tuple[int, ...]]:
    """Return heads, queries and keys of each sequence."""
    kind, heads, lengths = name.split("/")
    if kind == "extend":
        new, _, length = lengths.partition(" of ")
        return ast.literal_eval(heads), (int(new),), (int(length),)
    keys = ast.literal_eval(lengths)
    return ast.literal_eval(heads), keys if kind == "prefill" else (1,) * len(keys), keys


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_log_sum_exps_are_the_cards_bit_for_bit(name: str) -> None:
    heads, queries, lengths = sizes(name)
    q, k, v = record_layers.attention_inputs(heads, queries, lengths)
    out, lse = flash_attention.with_lse(q, k, v, queries, 0.125)
    if f"out/{name}" in RECORDED:
        assert np.array_equal(out.numpy().view(np.int16), RECORDED[f"out/{name}"].view(np.int16))
    else:
        assert np.array_equal(record_layers.hashes(out.numpy()), RECORDED[f"hash/{name}"])
    assert np.array_equal(lse.numpy().view(np.int32), RECORDED[f"lse/{name}"].view(np.int32))


def test_the_recorded_cases_cut_keys_into_up_to_19_parts() -> None:
    """Or else no case would show how parts are joined: 16 of them, and more, are joined differently."""
    found = {flash_attention.parts_of(q, k, *heads[:2], 132)[0] for heads, q, k in map(sizes, CASES)}
    assert found == {1, 6, 19}


def test_parts_follow_the_schedulers_rule() -> None:
    """By hand, of ``num_splits_heuristic`` and ``flash_prepare_scheduler.cu``."""
    one = (12, 4, 132)
    # 5 blocks of 192 keys: 4 thread blocks fill 20 of 132 SMs at most, so 5 parts are the best
    assert flash_attention.parts_of((1,), (769,), *one) == (5, (5,))
    assert flash_attention.parts_of((1,), (768,), *one) == (1, (1,))
    # 32 sequences of 6 blocks: 192 blocks · 1.1 · 4 heads / 132 SMs = 6.4, so 7 blocks an SM: none is cut
    assert flash_attention.parts_of((1,) * 32, (1100,) * 32, *one) == (6, (1,) * 32)
    # 10 blocks: 9 parts fill at least 0.85 of what 10 would; 16 blocks · 1.1 · 4 / 132 = 0.53, one an SM
    assert flash_attention.parts_of((1, 1), (1900, 1000), *one) == (9, (9, 6))


def test_cut_keys_that_no_card_was_asked_about_are_refused() -> None:
    q, k, v = record_layers.attention_inputs((6, 2, 64), (600,), (600,))
    with pytest.raises(QdxError, match=r"cuts 600 keys of a step of 600 queries, which was not compared"):
        flash_attention.attention(q, k, v, (600,), 0.125)
    out, exact = flash_attention.attention(q, k, v, (600,), 0.125, exactly=False), torch.empty(600, 6, 64)
    for head in range(6):
        score = (q[:, head].double() @ k[0][:, head // 3].double().t()) * 0.125
        score += torch.full((600, 600), -torch.inf, dtype=torch.float64).triu(1)
        exact[:, head] = score.softmax(1) @ v[0][:, head // 3].double()
    assert (out.float() - exact).abs().max() < 2e-3 * exact.abs().max()


def test_logarithms_are_the_cards_bit_for_bit() -> None:
    """All 2^23 from 1 to 2, and the 2^16 next below 1, of an H200."""
    x = (np.arange(1 << 23, dtype=np.int32) + 0x3F800000).view(np.float32)
    assert hashlib.sha256(lg2_approx_ftz(x).tobytes()).hexdigest() == FROM_ONE
    below = lg2_approx_ftz(x[-1 << 16 :] * np.float32(0.5))
    assert hashlib.sha256(below.tobytes()).hexdigest() == BELOW_ONE
    with pytest.raises(QdxError, match=r"known from 1/2 on, got 0\.25"):
        lg2_approx_ftz(np.array([1.0, 0.25], np.float32))
