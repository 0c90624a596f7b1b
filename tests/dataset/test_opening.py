"""qdx.open: every kind of path, lazily, and a clear error for everything that is not one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap

import netCDF4
import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.dataset import layout, opening
from qdx.errors import QdxError
from tests.helpers import CONFIGS, REPEATS, VOCAB, recorder, write_run

LABELS = list(CONFIGS)


def test_run_folder_and_its_file_are_the_same(sweep) -> None:
    folder, file = qdx.open(sweep / "gptq"), qdx.open(str(sweep / "gptq" / "run.nc"))
    assert folder.identical(file)
    assert set(folder.children) == {"provenance", "references", *layout.PHASES, "output"}


def test_sweep_folder_has_the_full_rows_of_every_run(sweep) -> None:
    tree = qdx.open(sweep)
    for phase in layout.PHASES:
        rows = tree[phase]["logit"]
        assert rows.dims == layout.PHASE["logit"].dims and rows.shape[0] == len(LABELS)
        assert rows.attrs == layout.PHASE["logit"].attrs
        for label in LABELS:
            own = qdx.open(sweep / label)[phase]["logit"]
            np.testing.assert_array_equal(rows.sel(config=label).values, own.values[0])


def test_a_sweep_that_is_not_merged_yet_opens_as_the_merged_one(sweep, tmp_path) -> None:
    directory = tmp_path / "s"
    shutil.copytree(sweep, directory)
    (directory / "sweep.nc").unlink()
    one, other = qdx.open(sweep), qdx.open(directory)
    for group in ("provenance", "references", *layout.PHASES, "output"):
        xr.testing.assert_identical(one[group].to_dataset().load(), other[group].to_dataset().load())
    (directory / "sweep.json").unlink()  # runs put into one folder by hand
    assert sorted(qdx.open(directory)["replay"]["config"].values) == sorted(LABELS)


def test_a_result_with_the_name_of_a_full_row_is_a_result(sweep, tmp_path) -> None:
    """What a plug-in calls its variables is its own business."""
    shutil.copy(sweep / "sweep.nc", tmp_path / "sweep.nc")
    result = xr.Dataset({"logit": ("config", np.arange(3.0), {"units": "nat"})})
    result.to_netcdf(tmp_path / "sweep.nc", mode="a", group="/analysis/mine", engine="netcdf4")
    with qdx.open(tmp_path / "sweep.nc") as tree:
        assert tree["analysis/mine/logit"].values.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("group", ["prefill", "output"])
def test_a_run_without_one_of_its_configs_coordinates_is_named(sweep, tmp_path, group) -> None:
    shutil.copytree(sweep / LABELS[0], tmp_path / "run")
    with netCDF4.Dataset(tmp_path / "run" / "run.nc", "r+") as file:
        file[group].renameVariable("simulated", "simulatet")
    with pytest.raises(QdxError, match=f"run.nc is damaged: /{group} has no variable simulated"):
        qdx.open(tmp_path / "run")


def test_sweep_file_alone_opens_without_full_rows(sweep, tmp_path) -> None:
    shutil.copy(sweep / "sweep.nc", tmp_path)
    for path in (tmp_path, tmp_path / "sweep.nc"):
        assert "logit" not in qdx.open(path)["replay"]
        assert "logsumexp" in qdx.open(path)["replay"]


def test_a_logprob_is_logit_minus_logsumexp(sweep) -> None:
    replay = qdx.open(sweep)["replay"].to_dataset().sel(config="awq", repeat=0, reference="ref_0").load()
    logprob = (replay["logit"].astype(float) - replay["logsumexp"]).where(replay["captured"], drop=True)
    np.testing.assert_allclose(np.exp(logprob).sum("vocab"), 1, rtol=1e-12)


def test_opening_reads_no_array(sweep, monkeypatch) -> None:
    read = []
    from xarray.backends.netCDF4_ import NetCDF4ArrayWrapper

    original = NetCDF4ArrayWrapper._getitem
    monkeypatch.setattr(
        NetCDF4ArrayWrapper,
        "_getitem",
        lambda self, key: read.append(self.variable_name) or original(self, key),
    )
    qdx.open(sweep / "awq")
    qdx.open(sweep)
    assert set(read) <= {*layout.INDEX, "layer_type"}, set(read)
    assert "config" in read  # the probe works


def test_dask_chunks_are_whole_chunks_of_the_file(tmp_path, monkeypatch) -> None:
    vocab = 20_000
    monkeypatch.setattr(opening, "_TOGETHER", 3 * 4 * vocab + 7)
    with recorder(tmp_path / "run.nc", repeats=1, vocab=vocab) as record:
        from tests.capture.test_recorder import any_bits, fill, torch

        fill(record, lambda positions: any_bits(torch.float16, len(positions), vocab))
        record.finish()
    rows = qdx.open(tmp_path)["prefill"]["logit"]
    assert rows.data.chunksize == (1, 1, 1, 3, vocab)
    with netCDF4.Dataset(tmp_path / "run.nc") as file:
        assert file["prefill"]["logit"].chunking() == [1, 1, 1, 1, vocab]


TWICE = """
    import sys, xarray as xr, qdx
    kept = []
    for _ in range(8):
        kept = [*kept[-1:], qdx.open(sys.argv[1])]
        for group in ("provenance", "references", "prefill", "output"):
            with xr.open_dataset(sys.argv[1], group=group) as alone:
                alone.load()
    print("alive")
"""


@pytest.mark.parametrize("name", ["awq/run.nc", "sweep.nc"])
def test_a_file_may_be_opened_while_it_is_open(sweep, name) -> None:
    """With NC_STRING variables in it the process dies: netcdf4-python issue 1444."""
    command = [sys.executable, "-c", textwrap.dedent(TWICE), str(sweep / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "alive", f"exit {done.returncode}: {done.stderr[-1000:]}"


@pytest.mark.parametrize("name", ["awq/run.nc", "sweep.nc"])
def test_no_file_has_a_string_variable(sweep, name) -> None:
    with netCDF4.Dataset(sweep / name) as file:
        for group in file.groups.values():
            assert not [v.name for v in group.variables.values() if v.dtype is str]


def test_text_that_is_not_ascii_comes_back(tmp_path) -> None:
    with recorder(tmp_path / "run.nc", repeats=1, attrs={"config": "name: größe ✓"}) as record:
        from tests.capture.test_recorder import any_bits, fill, torch

        fill(record, lambda positions: any_bits(torch.float16, len(positions), VOCAB))
        record.output(0, 0, [0] * 8, '日本 é\n\t"', -1)
        record.output(0, 1, [0] * 8, "x" * 1000, -1)
        record.finish()
    tree = qdx.open(tmp_path)
    assert tree["output"]["text"].values[0, 0].tolist() == ['日本 é\n\t"', "x" * 1000, ""]
    assert tree.attrs["config"] == "name: größe ✓"
    assert tree["provenance"]["config_yaml"].values.tolist() == ["name: größe ✓"]


def test_missing_path_is_named(tmp_path) -> None:
    with pytest.raises(QdxError, match="no such file or folder"):
        qdx.open(tmp_path / "nowhere")


def test_a_folder_without_results_is_an_error(tmp_path) -> None:
    with pytest.raises(QdxError, match=r"holds no run\.nc"):
        qdx.open(tmp_path)


def test_an_unfinished_run_folder_points_to_its_part(sweep, tmp_path) -> None:
    shutil.copy(sweep / "awq" / "run.nc", tmp_path / "run.nc.part")
    with pytest.raises(QdxError, match=r"unfinished run only: open .*run\.nc\.part"):
        qdx.open(tmp_path)
    assert qdx.open(tmp_path / "run.nc.part").attrs["label"] == "awq"


def test_a_sweep_with_nothing_finished_says_why(tmp_path) -> None:
    (tmp_path / "awq").mkdir()
    (tmp_path / "awq" / "status.json").write_text(
        json.dumps({"status": "failed", "error": "ValueError: broken"})
    )
    (tmp_path / "sweep.json").write_text(json.dumps({"labels": ["awq", "gptq"]}))
    with pytest.raises(QdxError, match=r"awq: ValueError: broken; gptq: missing"):
        qdx.open(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_broken_sweep_json_is_named(sweep, tmp_path, text) -> None:
    shutil.copytree(sweep / "awq", tmp_path / "awq")
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(QdxError, match=r"sweep\.json"):
        qdx.open(tmp_path)


def test_a_file_of_another_kind_is_an_error(tmp_path) -> None:
    path = tmp_path / "run.nc"
    for content in (b"", b"hello", b"\x89HDF\r\n\x1a\n" + b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(QdxError, match="not a whole NetCDF-4 file"):
            qdx.open(path)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_an_error(sweep, tmp_path, keep) -> None:
    path = tmp_path / "run.nc"
    shutil.copy(sweep / "awq" / "run.nc", path)
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(QdxError, match="not a whole NetCDF-4 file"):
        qdx.open(path)


def test_foreign_and_future_files_are_told_apart(sweep, tmp_path) -> None:
    path = tmp_path / "x.nc"
    xr.Dataset({"x": ("y", [1])}).to_netcdf(path)
    with pytest.raises(QdxError, match="qdx did not write"):
        qdx.open(path)
    shutil.copy(sweep / "awq" / "run.nc", path)
    with netCDF4.Dataset(path, "a") as file:
        file.schema_version = 7
    with pytest.raises(QdxError, match="schema version 7, this qdx reads 1 and 2"):
        qdx.open(path)


def test_the_helper_keeps_its_promises(sweep) -> None:
    """What the tests of the analyses rely on."""
    tree = qdx.open(sweep)
    for phase in layout.PHASES:
        dataset = tree[phase].to_dataset().load()
        equal = (dataset["row_hash"] == dataset["row_hash"].isel(repeat=0)).all(
            ("repeat", "reference", "position")
        )
        noisy = phase != "prefill"
        assert equal.values.tolist() == [True, True, not noisy, True]
    rows = tree["replay"]["logit"].isel(repeat=0).load()
    near = float(abs(rows.sel(config="awq") - rows.sel(config="awq_marlin")).mean())
    far = float(abs(rows.sel(config="awq") - rows.sel(config="gptq_marlin")).mean())
    assert 0.005 < near < 0.02 and 20 * near < far
    assert tree.sizes == {} and REPEATS == 3


def test_a_run_that_is_replaced_while_open_is_read_anew(tmp_path) -> None:
    write_run(tmp_path / "run.nc", "awq", repeats=1)
    old = qdx.open(tmp_path)
    write_run(tmp_path / "run.nc", "gptq_marlin", repeats=1)
    assert qdx.open(tmp_path)["prefill"]["config"].values.tolist() == ["gptq_marlin"]
    assert int(old["prefill"]["captured"].sum()) == 13 * 3
