"""Logits from hidden states."""

from __future__ import annotations

import json

import dask
import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import save_file

import qdx
from qdx.errors import QdxError


@pytest.fixture
def tree() -> xr.DataTree:
    shape = (2, 1, 3, 5, 16)
    hidden = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    hidden[1, 0, 2, 4] = np.nan  # not captured
    dims = ("config", "repeat", "reference", "position", "element")
    data = xr.Dataset({"hidden": (dims, hidden)}, {"position": np.arange(10, 15)})
    return xr.DataTree.from_dict({"/replay": data, "/references": xr.Dataset()})


WEIGHT = np.random.default_rng(1).normal(size=(40, 16)).astype(np.float32)


def test_logits_are_products_computed_when_they_are_read(tree: xr.DataTree) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("computed while the result was only described")

    with dask.config.set(scheduler=refuse):
        logit = qdx.expand(tree, WEIGHT)["replay/logit"]
    assert logit.chunks is not None and logit.dims[-1] == "vocab" and logit.dtype == np.float32
    assert "never compared by hash" in logit.attrs["recomputed"] and logit.attrs["units"] == "nat"
    expected = np.einsum("...h,vh->...v", tree["replay/hidden"].values.astype(float), WEIGHT.astype(float))
    np.testing.assert_allclose(logit.values, expected, rtol=1e-4, atol=1e-4)
    assert np.isnan(logit.values[1, 0, 2, 4]).all() and "logit" not in tree["replay"]


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_gives_its_head(tree, tmp_path, tied) -> None:  # type: ignore[no-untyped-def]
    other = torch.zeros(40, 16, dtype=torch.bfloat16)
    mine = torch.from_numpy(WEIGHT).to(torch.bfloat16)
    tensors = {"model.embed_tokens.weight": mine if tied else other}
    tensors |= {} if tied else {"lm_head.weight": mine}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    got = qdx.expand(tree, tmp_path)["replay/logit"].values
    np.testing.assert_array_equal(got, qdx.expand(tree, mine)["replay/logit"].values)
    (tmp_path / "config.json").write_text(json.dumps({"final_logit_softcapping": 30.0}))
    with pytest.raises(QdxError, match=r"final_logit_softcapping=30\.0"):
        qdx.expand(tree, tmp_path)


def test_what_cannot_be_expanded_is_named(tree: xr.DataTree, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(QdxError, match=r"lm_head has shape \(16, 40\), hidden states have 16 elements"):
        qdx.expand(tree, WEIGHT.T)
    with pytest.raises(QdxError, match=r"lm_head has shape \(16,\)"):
        qdx.expand(tree, WEIGHT[0])
    with pytest.raises(QdxError, match=r"is not a checkpoint.*config\.json"):
        qdx.expand(tree, tmp_path / "nowhere")
    with pytest.raises(QdxError, match="no phase holds hidden states"):
        qdx.expand(xr.DataTree.from_dict({"/replay": xr.Dataset()}), WEIGHT)
