"""What `benchmarks/evidence.py` computes: levels of honest records, power, and laws of what it draws."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[2] / "benchmarks"
PLACES, VOCAB = 96, 64


@pytest.fixture(scope="module")
def evidence() -> Any:
    spec = importlib.util.spec_from_file_location("evidence", FOLDER / "evidence.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evidence"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(evidence: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A world in which the honest kernel is near and the other format far."""
    folder = tmp_path_factory.mktemp("rows")
    generator = np.random.default_rng(0)
    base = generator.normal(0, 2.5, (PLACES, VOCAB))
    for label, spread in (("claim", 0.0), ("near", 0.01), ("beside", 0.012), ("far", 0.7)):
        np.save(folder / f"{label}.npy", (base + generator.normal(0, spread, base.shape)).astype(np.float16))
    pair = evidence.Pair("far", "claim", "near", "far", ("beside",))
    (found,) = evidence.places(evidence.Rows(folder), [pair], 256, 2, 0)
    results, held = evidence.evaluate(found, pair, 200, 0, [1, 4, 16, 64, 256], 0.5)
    return {"found": found, "results": results, "held": held}


def test_honest_records_are_refuted_no_more_often_than_the_level(results: dict[str, Any]) -> None:
    most = stats.binom.ppf(0.999, 200, 0.01) / 200
    assert all(one.level <= most for one in results["results"].values()), results["results"]
    assert all(share <= most for _, share in results["held"])


def test_another_format_is_found_and_more_evidence_takes_fewer_tokens(results: dict[str, Any]) -> None:
    tokens = {name: one.tokens for name, one in results["results"].items()}
    assert tokens["top-5"] == tokens["top-20"] == tokens["sketch"] == 1
    assert tokens["sampled ids: e-value"] and tokens["greedy ids"]
    assert tokens["greedy ids"] <= 96 and 1 < tokens["sampled ids: e-value"] < 200
    assert tokens["text: e-value"] == 2 * tokens["sampled ids: e-value"], "half of the tokens are lost"


def test_drawn_tokens_have_the_probability_before_them_that_the_rows_say(results: dict[str, Any]) -> None:
    found = results["found"]
    own, ids = found.drawn["own"][0], found.token["own"]
    uniform = own.before + np.exp(own.logprob) * np.random.default_rng(1).random(ids.shape)
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    assert np.isclose(np.exp(found.rank["own"]) - 1, np.round(np.exp(found.rank["own"]) - 1)).all()
