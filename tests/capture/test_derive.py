"""What is computed of each row, against sorting in plain Python, numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from qdx.capture import Sketcher, greedy, row_hash, top_k
from qdx.capture.derive import derive, finite

FEW = st.lists(st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.5, 2.0, 7.0]), min_size=1, max_size=30)


@settings(max_examples=200, deadline=None)
@given(FEW, st.integers(1, 40), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_top_k_and_greedy_give_ties_to_the_lowest_id(values, k, dtype) -> None:
    row = torch.tensor([values], dtype=dtype)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    ids, logits = top_k(row, k)
    assert ids[0].tolist() == expected
    assert logits[0].tolist() == [values[i] for i in expected]
    assert greedy(row).tolist() == expected[:1]


def test_top_k_of_many_long_rows_with_ties() -> None:
    rows_PV = (torch.randn(30, 49_152, generator=torch.Generator().manual_seed(0)) * 3).half()
    ids_PK, logits_PK = top_k(rows_PV, 20)
    expected = np.argsort(-rows_PV.double().numpy(), axis=1, kind="stable")[:, :20]
    assert (
        np.diff(logits_PK.double().numpy()) == 0
    ).any()  # float16 has ties here, or this would show nothing
    assert np.array_equal(ids_PK.numpy(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_derived_numbers_are_those_of_scipy_and_numpy(dtype) -> None:
    rows_PV = (torch.randn(9, 400, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    targets = torch.tensor([3, -1, 0, 399, -1, 7, 8, 9, 10])
    derived = derive(rows_PV, targets, k=6, sketcher=Sketcher(400, 8))
    exact_PV = rows_PV.double().numpy()
    tokens = np.where(targets.numpy() < 0, exact_PV.argmax(1), targets.numpy())
    target_P = exact_PV[np.arange(9), tokens]
    assert derived["token_id"].tolist() == tokens.tolist()
    assert np.array_equal(derived["target_logit"].numpy().astype(float), target_P)
    assert derived["target_rank"].tolist() == (exact_PV > target_P[:, None]).sum(1).tolist()
    assert derived["logsumexp"].dtype == torch.float64
    np.testing.assert_allclose(derived["logsumexp"].numpy(), logsumexp(exact_PV, axis=1), rtol=1e-14)
    assert torch.equal(derived["row_hash"], row_hash(rows_PV))


def test_rank_of_a_tied_target_counts_strictly_greater_logits_only() -> None:
    row = torch.tensor([[1.0, 5.0, 5.0, 5.0, 9.0]], dtype=torch.float16)
    ranks = [
        int(derive(row, torch.tensor([t]), k=2, sketcher=Sketcher(5, 2))["target_rank"][0])
        for t in (3, 1, 4, 0)
    ]
    assert ranks == [1, 1, 0, 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_row_with_nan_or_infinity_is_not_finite_and_every_other_is(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    row_V = torch.tensor([0.0, -0.0, largest, -largest, torch.finfo(dtype).tiny, 1e-40], dtype=dtype)
    odd = torch.tensor([float("nan"), float("-nan"), float("inf"), float("-inf")], dtype=dtype)
    rows_PV = torch.stack([torch.cat([row_V, one[None]]) for one in [*odd, row_V[0]]])
    assert finite(rows_PV).tolist() == [False] * 4 + [True]
    assert finite(rows_PV[:, ::2]).tolist() == torch.isfinite(rows_PV[:, ::2]).all(1).tolist()
