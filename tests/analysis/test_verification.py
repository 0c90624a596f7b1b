"""Claims and attribution on transcripts whose configs are known."""

from __future__ import annotations

import json

import pytest
import xarray as xr

import qdx
from qdx.analysis.view import stated
from qdx.errors import QdxError
from qdx.verification import attribution_by_distance, verify
from tests.analysis.replaying import trees, words
from tests.legacy import files

NOISE = {"awq": 0.0, "marlin": 0.05, "gptq": 1.5}


def test_settings_in_files_of_the_first_version_are_found():
    stored = {"vllm_kv_cache_dtype": "auto", "vllm_enforce_eager": "1"}
    provenance = xr.Dataset({k: ("config", [v]) for k, v in stored.items()}, {"config": ["awq"]})
    rows = xr.Dataset(coords={"config": ["awq"], "backend_kv_cache_dtype": ("config", [""])})
    assert stated(rows, provenance, "backend_kv_cache_dtype", "awq") == "auto"
    assert stated(rows, provenance, "backend_enforce_eager", "awq") == "True"
    assert stated(rows, provenance, "backend_attention_backend", "awq") == ""


def change(tree: xr.DataTree, group: str, dataset: xr.Dataset) -> xr.DataTree:
    return xr.DataTree.from_dict({**{k: v.to_dataset() for k, v in tree.children.items()}, group: dataset})


@pytest.mark.parametrize(
    ("group", "edit", "said"),
    [
        ("replay", lambda d: d.isel(producer=0, drop=True), "no dimension producer"),
        ("replay", lambda d: d.assign(token_id=d["token_id"] + 1), "fed other tokens than the transcript"),
        ("replay", lambda d: d.assign_coords(producer=["x", "y", "z"]), "lacks config 'x'"),
        ("replay", lambda d: d.assign_coords(position=d["position"] + 99), "share no position"),
        ("replay", lambda d: d.drop_vars("sketch"), "verifier's file has no sketch"),
        ("replay", lambda d: d.isel(component=slice(4)), "8 and 4 components"),
        ("decode", lambda d: d.isel(reference=slice(5)), "lacks reference 'ref_5'"),
        ("replay", lambda d: d.assign_coords(dtype=("config", ["int8"] * 3)), "logits of dtype 'int8'"),
    ],
)
def test_unfit_files_are_refused_by_what_is_wrong(group, edit, said):
    producers, verifier = trees(NOISE)
    tree = producers if group == "decode" else verifier
    changed = change(tree, group, edit(tree[group].to_dataset()))
    with pytest.raises(QdxError, match=said):
        verify(*((changed, verifier) if group == "decode" else (producers, changed)))


def test_an_imported_verification_file_is_attributed(tmp_path):
    from qdx.legacy import convert

    (tmp_path / "v.json").write_text(json.dumps(files.verification()))
    convert(tmp_path / "v.json", tmp_path / "v.nc")
    with qdx.open(tmp_path / "v.nc") as tree:
        section = attribution_by_distance(tree, "seed_l2", "prefill")
    result = section.result
    assert result["nearest_right"].sel(producer="awq") == 4
    assert result["nearest_right"].sel(producer="gptq") == 0  # its own distance 2.0, gptq_marlin's 1.0
    assert result["likeliest_right"].sel(producer="gptq") == 4
    assert (result["confusion"].sel(answer="one of") == 4).all()  # 3 calibration references reject nothing
    assert "Too little calibration" in words(section)
    with pytest.raises(QdxError, match="/metrics/kl/prefill is not in the file"):
        attribution_by_distance(tree, "kl", "prefill")
