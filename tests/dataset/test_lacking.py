"""Files of an earlier schema open, and say in one line what they do not state."""

from __future__ import annotations

import shutil
from pathlib import Path

import netCDF4
import pytest
import xarray as xr

import qdx
from qdx.dataset.lacking import SINCE_2, lacking, missing, versions
from qdx.dataset.write_sweep import merge
from tests.helpers import STATED, write_run, write_sweep

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def earlier(path: Path) -> None:
    """Make a run what schema version 1 wrote: without the new facts."""
    import numpy as np

    from qdx.dataset import layout, writing

    with netCDF4.Dataset(path, "a") as file:
        for name in STATED:
            file.delncattr(name)
            file["provenance"].renameVariable(name, f"x_{name}")
        file.schema_version = np.int64(1)
        file["provenance"].renameVariable("schema_version", "x_schema_version")
        about = layout.Variable("schema_version", ("config",), "str", "1", "version")
        writing.put(file["provenance"], about, {"config": 1}, ["1"])


# The folders of verdicts were written by version 2.
OF_VERSION_1 = sorted(path for path in RESULTS.rglob("sweep.nc") if "verdicts" not in str(path))


@pytest.mark.parametrize("path", OF_VERSION_1, ids=lambda p: str(p.relative_to(RESULTS)))
def test_published_files_of_version_1_open_and_say_what_they_lack(path: Path) -> None:
    with qdx.open(path) as tree:
        known = versions(tree)
        assert known and set(known.values()) == {1}
        (line,) = lacking(tree)
    assert line.startswith(", ".join(known) + " (schema version 1, now 2) does not state sampling parameters")
    assert "cuBLAS" in line and "unequal rows refute nothing" in line and "counts as plain greedy" in line


def test_a_run_that_states_everything_lacks_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "run.nc", "awq", repeats=1)
    with qdx.open(tmp_path / "run.nc") as tree:
        assert versions(tree) == {"awq": 2}
        assert lacking(tree) == [] and missing(tree, "awq") == ()


def test_a_merge_of_both_versions_says_whose_runs_lack_what(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", ["awq", "gptq"], repeats=1)
    earlier(folder / "gptq" / "run.nc")
    merge(folder, folder / "sweep.nc")
    with qdx.open(folder / "sweep.nc") as tree:
        assert int(tree.attrs["schema_version"]) == 2
        assert versions(tree) == {"awq": 2, "gptq": 1}
        (line,) = lacking(tree)
        assert line.startswith("gptq (schema version 1, now 2) does not state ")
        assert missing(tree, "gptq") == tuple(SINCE_2) and missing(tree, "awq") == ()


def test_facts_that_were_taken_out_of_a_file_of_this_version_are_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "run.nc", "awq", repeats=1)
    with netCDF4.Dataset(tmp_path / "run.nc", "a") as file:
        file["provenance"].renameVariable("cublas_version", "nothing")
        file["provenance"]["sampling"][:] = b"\0"
    with qdx.open(tmp_path / "run.nc") as tree:
        assert missing(tree, "awq") == ("sampling", "cublas_version")
        (line,) = lacking(tree)
    assert line.startswith("awq does not state sampling parameters, cuBLAS: ")
    assert "its text confirms nothing" in line and "schema" not in line


def test_a_version_that_is_no_number_is_none() -> None:
    for text in ("x", "99", "-1", "1.0", "", "9" * 400, "²"):
        stored = xr.Dataset({"schema_version": ("config", [text])}, {"config": ["a"]})
        tree = xr.DataTree.from_dict({"provenance": stored})
        assert versions(tree) == {"a": 0}
        assert missing(tree, "a") == tuple(SINCE_2)


def test_a_file_without_provenance_says_that_it_states_nothing() -> None:
    assert lacking(xr.DataTree()) == [
        "the file has no /provenance: it states nothing of the machine and the software"
    ]


def test_a_copy_of_a_run_of_version_1_opens(tmp_path: Path) -> None:
    write_run(tmp_path / "run.nc", "awq", repeats=1)
    shutil.copy(tmp_path / "run.nc", tmp_path / "old.nc")
    earlier(tmp_path / "old.nc")
    with qdx.open(tmp_path / "old.nc") as old, qdx.open(tmp_path / "run.nc") as new:
        for phase in ("prefill", "decode", "replay"):
            xr.testing.assert_equal(old[phase].to_dataset(), new[phase].to_dataset())
