"""The verdicts that a GPU's records get: real kernels, an H200, ``scripts/gpu/verdicts.sh``."""

from __future__ import annotations

from pathlib import Path

import pytest

import qdx
from qdx.verification import verify

RECORDS = Path(__file__).parents[2] / "docs" / "results" / "h200_vllm_0_20_2" / "verdicts" / "base"
CONFIGS = ("awq", "awq_marlin", "awq_machete", "gptq", "gptq_marlin")
TRUE = {**dict.fromkeys(CONFIGS, "confirmed"), "gptq": "confirmed in prefill"}


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (0, TRUE),
        # gptq's decode does not repeat, so that no other config's rows are all its own: refuted by Fisher
        (1, {**dict.fromkeys(CONFIGS, "other config"), "gptq": "refuted"}),
    ],
)
def test_true_claims_of_real_kernels_stand_and_false_ones_fall(turn: int, expected: dict[str, str]) -> None:
    claims = {label: CONFIGS[(c + turn) % len(CONFIGS)] for c, label in enumerate(CONFIGS)}
    with qdx.open(RECORDS / "producers.nc") as producers, qdx.open(RECORDS / "sweep.nc") as verifier:
        result = verify(producers, verifier, claims=claims).result
    assert dict(zip(CONFIGS, result["verdict"].sel(producer=list(CONFIGS)).values, strict=True)) == expected
