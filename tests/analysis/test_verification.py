"""Claims and attribution on transcripts whose configs are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.analysis.verification import attribution_by_distance, verify
from qdx.analysis.view import stated
from qdx.errors import QdxError
from tests.analysis.replaying import trees
from tests.legacy import files

NOISE = {"awq": 0.0, "marlin": 0.05, "gptq": 1.5}


def test_true_claims_stand_and_a_false_one_falls():
    producers, verifier = trees(NOISE, references=40)
    assert (verify(producers, verifier).result["p_holm"] > 0.05).all()
    known = trees(NOISE, references=40, seed=1)
    section = verify(producers, verifier, claims={"gptq": "marlin"}, calibration=known)
    result = section.result
    assert result["claim"].values.tolist() == ["awq", "marlin", "marlin"]
    assert float(result["p_claim"].sel(producer="gptq")) == pytest.approx(2 / 40)
    assert float(result["p_holm"].sel(producer="gptq")) == pytest.approx(6 / 40)
    assert result["answer"].values.tolist() == ["awq", "marlin", "gptq"]
    assert result.attrs["calibration_references"] == 39
    assert "separate transcripts" in section.text[""]
    assert max(map(len, section.text[""].splitlines())) <= 110


def test_p_counts_the_calibration_references_by_hand():
    producers, verifier = trees({"a": 1.0, "b": 0.5}, references=9, seed=3)
    result = verify(producers, verifier).result
    own = producers["decode/sketch"].values[:, 0].astype(float)
    replay = (
        verifier["replay/sketch"].transpose("producer", "config", "repeat", ...).values[:, :, 0].astype(float)
    )
    energy = ((own[:, None] - replay) ** 2).mean((-1, -2))  # producer, config, reference
    for c, other in ((0, 1), (1, 0)):
        for judged, reference in ((c, 4), (other, 4)):  # an honest claim and a false one
            x = np.log(energy[c])
            x[:, reference] = np.log(energy[judged, :, reference])
            x = np.vstack([x, x[c] - x[other]])
            deviation = np.abs(x - np.median(x, 1, keepdims=True))
            score = (deviation / np.median(deviation, 1, keepdims=True)).max(0)
            expected = (score >= score[reference]).sum() / 9
            assert float(result["p"].values[judged, c, reference]) == pytest.approx(expected)


def test_a_producer_that_was_never_in_calibration_is_unknown():
    noise = {**NOISE, "stranger": 0.3}
    producers, verifier = trees(noise, configs=list(NOISE), references=60)
    answers = verify(producers, verifier).result["answer"]
    assert str(answers.sel(producer="stranger").values) == "unknown"


def test_exact_test_needs_one_environment_and_repeats():
    producers, verifier = trees(NOISE)
    section = verify(producers, verifier)
    exact = section.result["exact"].values
    assert exact[0, 0] == ""
    assert exact[1, 1] == exact[0, 2] == "the config does not repeat here"
    assert exact[2, 0] == "", "a producer that does not repeat cannot escape the claim of one that does"
    rows = section.result
    assert (rows["rows_equal"].sel(producer="awq", config="awq") == 16).all()
    assert (rows["rows_equal"].sel(producer="awq", config="marlin") == 0).all()
    # the verifier reran 12 references of each of 3 producers once
    assert float(rows["exact_error"].values[0, 0]) == pytest.approx(1 - 0.05 ** (1 / 36))
    producers, verifier = trees(NOISE, verifier_facts={"sm_count": 114})
    assert verify(producers, verifier).result["exact"].values[0, 0] == "other environment class"
    on_cpu = {"compute_capability": "", "sm_count": 132}
    producers, verifier = trees(NOISE, producer_facts=on_cpu, verifier_facts=on_cpu)
    assert verify(producers, verifier).result["exact"].values[0, 0] == ""
    stored = xr.Dataset({"cpu": ("config", ["other"] * 3)}, {"config": list(NOISE)})
    verifier = change(verifier, "provenance", stored)
    assert verify(producers, verifier).result["exact"].values[0, 0] == "other environment class"
    producers, verifier = trees(NOISE, repeats=1)
    assert verify(producers, verifier).result["exact"].values[0, 0] == "the verifier ran once"


@pytest.mark.parametrize("theirs", ["FLASHINFER", ""])
def test_nothing_is_refuted_across_engine_settings_that_differ_or_are_not_stated(theirs):
    same = {"backend_attention_backend": "FLASH_ATTN", "backend_max_num_batched_tokens": "4096"}
    other = {**same, "backend_max_num_batched_tokens": "8192"}  # which cuts nothing
    for facts, exact in ((other, ""), ({"backend_attention_backend": theirs}, "other environment class")):
        producers, verifier = trees(NOISE, producer_facts=facts, verifier_facts=same)
        result = verify(producers, verifier, claims={"marlin": "awq"}).result
        assert result["exact"].sel(producer="marlin", config="awq").item() == exact
        verdict = result["verdict"].sel(producer="marlin").item()
        assert (verdict == "refuted") == (exact == "")


def test_settings_in_files_of_the_first_version_are_found():
    stored = {"vllm_kv_cache_dtype": "auto", "vllm_enforce_eager": "1"}
    provenance = xr.Dataset({k: ("config", [v]) for k, v in stored.items()}, {"config": ["awq"]})
    rows = xr.Dataset(coords={"config": ["awq"], "backend_kv_cache_dtype": ("config", [""])})
    assert stated(rows, provenance, "backend_kv_cache_dtype", "awq") == "auto"
    assert stated(rows, provenance, "backend_enforce_eager", "awq") == "True"
    assert stated(rows, provenance, "backend_attention_backend", "awq") == ""


def test_calibration_of_other_machines_gives_no_p():
    producers, verifier = trees(NOISE, references=30)
    known = trees(NOISE, references=30, seed=1, verifier_facts={"sm_count": 114})
    section = verify(producers, verifier, calibration=known)
    assert np.isnan(section.result["p"]).all()
    assert np.isnan(section.result["p_margin"]).all()
    assert np.isfinite(section.result["log_likelihood"]).all()
    assert (section.result["answer"] == "not calibrated").all()
    assert "Calibration of other machines" in section.text[""]
    assert "Calibration of other machines" not in verify(producers, verifier).text[""]


def test_tokens_alone_reject_a_false_claim():
    producers, verifier = trees(NOISE, references=40)
    known = trees(NOISE, references=40, seed=1)
    result = verify(producers, verifier, claims={"gptq": "marlin"}, calibration=known).result
    assert float(result["p_margin_claim"].sel(producer="gptq")) == pytest.approx(2 / 40)
    assert float(result["p_margin_claim"].sel(producer="awq")) == 1.0  # margins of 0 tie with the null


def test_too_little_calibration_is_said_and_gives_no_verdict():
    producers, verifier = trees(NOISE, references=4)
    section = verify(producers, verifier)
    assert "Too little calibration" in section.text[""]
    assert "at least" not in section.text[""]
    assert str(section.result["answer"].values[0]).startswith("one of")


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
        ("decode", lambda d: d.assign_coords(dtype=("config", ["int8"] * 3)), "logits of dtype 'int8'"),
    ],
)
def test_unfit_files_are_refused_by_what_is_wrong(group, edit, said):
    producers, verifier = trees(NOISE)
    tree = producers if group == "decode" else verifier
    changed = change(tree, group, edit(tree[group].to_dataset()))
    with pytest.raises(QdxError, match=said):
        verify(*((changed, verifier) if group == "decode" else (producers, changed)))


def test_claim_of_a_config_that_was_not_replayed_is_refused():
    producers, verifier = trees(NOISE)
    with pytest.raises(QdxError, match="claims 'exl', which was not replayed"):
        verify(producers, verifier, claims={"awq": "exl"})


def test_missing_rows_are_left_out():
    producers, verifier = trees(NOISE)
    data = verifier["replay"].to_dataset().copy(deep=True)
    data["captured"].loc[{"config": "awq", "reference": "ref_3"}] = False
    section = verify(producers, change(verifier, "replay", data))
    assert np.isnan(section.result["p"].sel(config="awq", reference="ref_3")).all()
    assert (section.result["rows_compared"].sel(config="awq", reference="ref_3") == 0).all()
    assert np.isfinite(section.result["p"].sel(config="awq", reference="ref_2")).all()


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
    assert "Too little calibration" in section.text["prefill"]
    with pytest.raises(QdxError, match="/metrics/kl/prefill is not in the file"):
        attribution_by_distance(tree, "kl", "prefill")


def test_the_verifiers_own_repeats_refute_without_trusting_a_label():
    producers, verifier = trees(NOISE, references=130)
    # every transcript of gptq is called marlin: no other transcript of the file can show that
    relabelled = producers["decode"].to_dataset().sel(config=["awq", "gptq", "gptq"])
    relabelled = relabelled.assign_coords(config=list(NOISE))
    lies = change(producers, "decode", relabelled)
    own = change(verifier, "replay", verifier["replay"].to_dataset().sel(producer=["awq", "gptq", "gptq"]))
    own["replay"] = own["replay"].to_dataset().assign_coords(producer=list(NOISE))
    result = verify(lies, own).result
    assert result["verdict"].values.tolist() == ["confirmed", "refuted", "not refuted"]
    assert float(result["p_claim"].sel(producer="marlin")) > 0.5, "by its own label it is honest"
    assert "this machine's own repeats" in str(result["because"].sel(producer="marlin").values)
    honest = verify(producers, verifier).result["p_repeat"]
    assert (honest.sel(producer="gptq", config="gptq") <= 0.1).mean() < 0.2
    assert (honest.sel(producer="gptq", config="marlin") <= 1 / 130).all()
    producers, verifier = trees(NOISE, verifier_facts={"sm_count": 114})
    assert np.isnan(verify(producers, verifier).result["p_repeat"]).all()


def test_a_false_claim_of_an_exact_config_is_refuted_by_fishers_p():
    producers, verifier = trees({"a": 0.0, "b": 0.0, "c": 0.0}, references=4)
    result = verify(producers, verifier, claims={"a": "b"}).result
    assert result["verdict"].values.tolist() == ["refuted", "confirmed", "confirmed"]
    # 4 of 4 differ; the verifier reran 4 references of each of 3 producers
    assert float(result["exact_p"].sel(producer="a", config="b")) == pytest.approx(1 / math.comb(16, 4))
    assert float(result["p_test_holm"].sel(producer="a")) == pytest.approx(3 / math.comb(16, 4))
    assert result.attrs["headline"] == "3 claims: 2 confirmed, 1 refuted"


def test_one_differing_reference_of_many_is_no_refutation_when_little_was_rerun():
    producers, verifier = trees({"a": 0.0}, references=6)
    data = producers["decode"].to_dataset().copy(deep=True)
    data["row_hash"].loc[{"reference": "ref_2", "repeat": [0, 1]}] += np.uint64(1)
    result = verify(change(producers, "decode", data), verifier).result
    assert float(result["exact_p"].values[0, 0]) == pytest.approx(6 / 12)
    assert result["verdict"].values.tolist() == ["undecided"]
    assert "1 of 6 references differ where none of 6 reruns did" in str(result["because"].values[0])


def test_fishers_p_is_the_hypergeometric_tail():
    from scipy.stats import hypergeom

    from qdx.analysis.verification.exact import equality_p

    for differ, judged, reruns in ((0, 5, 7), (1, 5, 7), (3, 5, 7), (5, 5, 0), (2, 9, 100)):
        tail = hypergeom(judged + reruns, differ, judged).sf(differ - 1)
        assert equality_p(differ, judged, reruns) == pytest.approx(tail)
    assert math.isnan(equality_p(0, 0, 9))
