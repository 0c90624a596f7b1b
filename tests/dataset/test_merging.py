"""The merged file: all of every run but its full rows; what is missing is said and not made up."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.dataset import append, layout, merge
from qdx.errors import QdxError
from tests.helpers import CONFIGS, small_references, write_run, write_sweep

LABELS = list(CONFIGS)


def copy_labels(sweep, target, labels):
    target.mkdir(exist_ok=True)
    for label in labels:
        shutil.copytree(sweep / label, target / label)
    settings = json.loads((sweep / "sweep.json").read_text()) | {"labels": labels}
    (target / "sweep.json").write_text(json.dumps(settings))
    return target


def merged(directory):
    merge(directory, directory / "sweep.nc")
    return qdx.open(directory / "sweep.nc")


@pytest.mark.parametrize("group", [*layout.PHASES, "output"])
def test_every_config_of_the_merged_file_is_its_run(sweep, group) -> None:
    whole = qdx.open(sweep / "sweep.nc")[group].to_dataset().load()
    assert (
        whole["config"].values.tolist() == LABELS
    )  # in the order of sweep.json, which is not that of the alphabet
    assert "logit" not in whole
    for label in LABELS:
        own = qdx.open(sweep / label)[group].to_dataset().drop_vars("logit", errors="ignore").load()
        xr.testing.assert_identical(whole.sel(config=[label]), own)
        for name in own.variables:
            assert whole[name].dtype == own[name].dtype, name


def test_provenance_and_references_are_those_of_the_runs(sweep) -> None:
    tree = qdx.open(sweep / "sweep.nc")
    xr.testing.assert_identical(
        tree["references"].to_dataset().load(), qdx.open(sweep / "gptq")["references"].to_dataset().load()
    )
    provenance = tree["provenance"].to_dataset().load()
    for label in LABELS:
        own = provenance.sel(config=label)
        assert str(own["kernel"].item()) == f"model:{CONFIGS[label][1]}"
        attrs = dict(qdx.open(sweep / label).attrs)
        attrs["config_yaml"] = attrs.pop("config")
        assert {name: str(value) for name, value in attrs.items()} == {
            name: str(own[name].item()) for name in attrs
        }


def test_root_attributes_say_what_was_expected(sweep) -> None:
    attrs = qdx.open(sweep / "sweep.nc").attrs
    assert attrs["kind"] == "sweep" and attrs["schema_version"] == 2
    assert attrs["command_line"] == "tests/helpers.py" and attrs["qdx_version"] == qdx.__version__
    assert json.loads(attrs["labels"]) == LABELS
    assert json.loads(attrs["failed"]) == {} and json.loads(attrs["missing"]) == []


def test_integers_stay_integers_and_only_floats_have_a_fill_value(sweep) -> None:
    tree = qdx.open(sweep / "sweep.nc")
    for group in (*layout.PHASES, "output", "references"):
        for name, variable in tree[group].to_dataset().variables.items():
            if variable.dtype.kind != "f":
                assert "_FillValue" not in variable.encoding, (group, name)
    assert tree["replay/row_hash"].dtype == np.uint64 and tree["replay/top_id"].dtype == np.int32


def test_every_variable_keeps_unit_and_meaning(sweep) -> None:
    tree = qdx.open(sweep / "sweep.nc")
    for node in tree.subtree:
        for name, variable in node.to_dataset().variables.items():
            assert variable.attrs.get("units") and variable.attrs.get("long_name"), (node.path, name)


def test_failed_unfinished_and_missing_jobs_are_listed_and_not_filled(sweep, tmp_path) -> None:
    directory = copy_labels(sweep, tmp_path / "s", LABELS)
    shutil.rmtree(directory / "awq_marlin")
    (directory / "gptq" / "status.json").write_text(
        json.dumps({"status": "failed", "error": "ValueError: no"})
    )
    (directory / "gptq_marlin" / "run.nc").rename(directory / "gptq_marlin" / "run.nc.part")
    tree = merged(directory)
    assert tree["prefill"]["config"].values.tolist() == ["awq"]
    assert json.loads(tree.attrs["missing"]) == ["awq_marlin"]
    failed = json.loads(tree.attrs["failed"])
    assert failed["gptq"] == "ValueError: no" and "run.nc.part" in failed["gptq_marlin"]
    assert json.loads(tree.attrs["labels"]) == LABELS


def test_an_older_run_beside_an_unfinished_newer_one_is_not_believed(sweep, tmp_path) -> None:
    directory = copy_labels(sweep, tmp_path / "s", ["awq", "gptq"])
    shutil.copy(directory / "gptq" / "run.nc", directory / "gptq" / "run.nc.part")
    assert merged(directory)["prefill"]["config"].values.tolist() == ["awq"]


def test_nothing_finished_is_an_error(tmp_path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"labels": ["awq"]}))
    with pytest.raises(QdxError, match="no finished run"):
        merge(tmp_path, tmp_path / "sweep.nc")


def changed(name):
    first, *others = small_references()
    if name == "tokens":
        ids = first.token_ids.copy()
        ids[5] += 1
        return [replace(first, token_ids=ids), *others]
    if name == "continuation":
        return [replace(first, continuation=first.continuation[::-1].copy()), *others]
    if name == "names":
        return [replace(first, name="ref_9"), *others]
    return [first, *others][:2]


@pytest.mark.parametrize("name", ["tokens", "continuation", "names", "number"])
def test_other_references_are_refused_by_the_labels(tmp_path, name) -> None:
    write_sweep(tmp_path, ["awq", "gptq"], repeats=1)
    write_run(tmp_path / "gptq" / "run.nc", "gptq", references=changed(name), repeats=1)
    with pytest.raises(QdxError, match=r"must share the references .*\(awq: .*; gptq: "):
        merge(tmp_path, tmp_path / "sweep.nc")


@pytest.mark.parametrize(
    ("options", "word"),
    [({"attrs": {"tokenizer_sha256": "u" * 64}}, "tokenizer"), ({"components": 8}, "sketch")],
    ids=["tokenizer", "sketch"],
)
def test_runs_that_cannot_be_compared_are_refused_by_the_labels(tmp_path, options, word) -> None:
    write_sweep(tmp_path, ["awq", "gptq"], repeats=1)
    write_run(tmp_path / "awq" / "run.nc", "awq", repeats=1, **options)
    with pytest.raises(QdxError, match=rf"must share the {word}.*\(awq: .*; gptq: "):
        merge(tmp_path, tmp_path / "sweep.nc")


@pytest.mark.parametrize("lazily", [False, True], ids=["sweep.nc", "not merged"])
@pytest.mark.slow
def test_unequal_runs_become_a_union_with_gaps_marked(tmp_path, lazily) -> None:
    write_sweep(tmp_path, ["awq", "gptq"], repeats=1)
    write_run(tmp_path / "awq" / "run.nc", "awq", repeats=2, prefill_positions=2, k=3)
    write_run(tmp_path / "gptq" / "run.nc", "gptq", repeats=1, prefill_positions=6, k=5, mode="topk")
    if not lazily:
        merge(tmp_path, tmp_path / "sweep.nc")
    tree = qdx.open(tmp_path)
    prefill = tree["prefill"].to_dataset().load()
    assert dict(prefill.sizes) | {"vocab": 0} == {
        "config": 2, "repeat": 2, "reference": 3, "position": 12, "rank": 5, "component": 16, "vocab": 0,
    }  # fmt: skip
    for label in ("awq", "gptq"):
        own = qdx.open(tmp_path / label)["prefill"].to_dataset().load()
        index = {name: own[name] for name in ("repeat", "reference", "position")}
        ranks = {"rank": slice(0, own.sizes["rank"])}
        back = prefill.sel(config=[label], **index).isel(ranks)
        for name in set(layout.PHASE) - {"logit"}:
            assert back[name].dtype == own[name].dtype and back[name].identical(
                own[name].assign_coords(back.coords)
            ), name
        assert int(prefill["captured"].sel(config=label).sum()) == int(own["captured"].sum())
    gaps = ~prefill["captured"].values
    for name in ("token_id", "target_rank", "top_id"):
        assert (prefill[name].values[gaps] == -1).all(), name
    for name in ("logit", "sketch", "logsumexp", "target_logit", "top_logit"):
        assert np.isnan(prefill[name].values[gaps]).all(), name
    assert (prefill["top_id"].sel(config="awq").isel(rank=slice(3, None)) == -1).all()
    assert np.isnan(prefill["logit"].sel(config="gptq")).all()  # it kept none
    region = prefill["region"].sel(reference="ref_0").values.tolist()
    assert region == ["prefix"] * 2 + ["content"] * 6 + ["suffix"] * 2 + ["output", ""]
    output = tree["output"].to_dataset().load()
    assert (output["token_id"].sel(config="gptq", repeat=1) == -1).all()
    assert output["text"].sel(config="gptq", repeat=1).values.tolist() == [""] * 3


def test_appended_groups_come_back_and_are_never_written_twice(sweep, tmp_path) -> None:
    path = tmp_path / "sweep.nc"
    shutil.copy(sweep / "sweep.nc", path)
    dataset = xr.Dataset(
        {
            "kl": (
                ("config", "config_b"),
                np.array([[0.0, np.nan], [1e-300, 2.5]]),
                {"units": "nat", "coarse": True},
            ),
            "same": (("config", "config_b"), np.array([[True, False], [False, True]])),
            "count": ("config", np.array([-1, 2**62]), {"units": "1", "note": None, "of": {"a": [1]}}),
            "name": ("config", np.array(["ü", ""], object)),
            "scalar": ((), 0.05),
            "empty": ("nothing", np.zeros(0)),
        },
        coords={"config": ["awq", "gptq"], "config_b": ["awq", "gptq"]},
        attrs={"kinds": ["a", "b"], "exact": False},
    )
    append(path, "/metrics/kl/replay", dataset)
    append(path, "analysis/noise_floor", dataset[["scalar"]])
    tree = qdx.open(path)
    back = tree["metrics/kl/replay"].to_dataset().load()
    for name in dataset.variables:
        xr.testing.assert_equal(back[name], dataset[name])
    assert [back[name].dtype.kind for name in ("kl", "same", "count")] == ["f", "b", "i"]
    assert back["kl"].attrs == {"units": "nat", "coarse": 1}
    assert back["count"].attrs == {"units": "1", "note": "", "of": '{"a": [1]}'}
    assert back.attrs == {"kinds": '["a", "b"]', "exact": 0}
    xr.testing.assert_identical(
        tree["replay"].to_dataset().load(), qdx.open(sweep / "sweep.nc")["replay"].to_dataset().load()
    )
    with pytest.raises(QdxError, match="has a group metrics/kl/replay already"):
        append(path, "metrics/kl/replay", dataset)
    assert dataset["kl"].attrs["coarse"] is True  # the caller's object is not changed


def test_settings_of_a_backend_are_coordinates_and_empty_where_another_has_none(tmp_path) -> None:
    directory = tmp_path / "sweep"
    labels = ["awq", "gptq"]
    write_run(directory / "awq" / "run.nc", "awq", settings={"kv_cache_dtype": "fp8_e4m3", "threads": "2"})
    write_run(directory / "gptq" / "run.nc", "gptq", settings={"threads": "é"})
    (directory / "sweep.json").write_text(json.dumps({"labels": labels}))
    tree = merged(directory)
    for group in (*layout.PHASES, "output"):
        coords = tree[group].to_dataset().coords
        assert coords["backend_kv_cache_dtype"].values.tolist() == ["fp8_e4m3", ""], group
        assert coords["backend_threads"].values.tolist() == ["2", "é"]
        assert coords["backend_threads"].attrs["long_name"] == "backend.threads as the engine settled it"
    opened = qdx.open(directory)["replay"]
    assert opened["logit"].sel(config="awq").coords["backend_kv_cache_dtype"].item() == "fp8_e4m3"


def test_a_setting_cannot_take_the_place_of_a_coordinate(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"settings .*\['backend_version'\]"):
        write_run(tmp_path / "run.nc", "awq", settings={"version": "fast-path"})
