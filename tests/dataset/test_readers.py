"""A portable run and every sweep file are read by programs that are not ours."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest

import qdx
from qdx.dataset import layout
from tests.helpers import write_run
from tests.programs import program


@pytest.fixture(scope="module")
def files(sweep, tmp_path_factory):
    path = tmp_path_factory.mktemp("portable") / "run.nc"
    write_run(path, "awq", portable=True)
    return {"run": path, "sweep": sweep / "sweep.nc"}


@pytest.fixture(scope="module")
def ncdump():
    return program("ncdump", "netcdf-bin")


READ = """
import sys, numpy as np, xarray as xr
assert "netCDF4" not in sys.modules
arrays = {}
for group in sys.argv[3:]:
    with xr.open_dataset(sys.argv[1], group=group, engine="h5netcdf") as dataset:
        for name, variable in dataset.variables.items():
            values = variable.values
            arrays[f"{group}/{name}"] = values.astype(str) if values.dtype == object else values
assert "netCDF4" not in sys.modules
np.savez(sys.argv[2], **arrays)
"""


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_h5netcdf_reads_every_value(files, kind, tmp_path) -> None:
    groups = ["provenance", "references", *layout.PHASES, "output"]
    done = subprocess.run(
        [sys.executable, "-c", READ, str(files[kind]), str(tmp_path / "a.npz"), *groups],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    tree = qdx.open(files[kind])
    with np.load(tmp_path / "a.npz") as arrays:
        names = {f"{group}/{name}" for group in groups for name in tree[group].to_dataset().variables}
        assert set(arrays) == names and ("prefill/logit" in names) == (kind == "run")
        for name in names:
            own = tree[name].values
            np.testing.assert_array_equal(
                arrays[name], own.astype(str) if own.dtype == object else own, err_msg=name
            )


@pytest.mark.parametrize("kind", ["run", "sweep"])
def test_ncdump_prints_every_value(files, kind, ncdump) -> None:
    header = subprocess.run(
        [ncdump, "-h", str(files[kind])], capture_output=True, text=True, check=True
    ).stdout
    for group in ("provenance", "references", *layout.PHASES, "output"):
        assert f"group: {group} {{" in header
    assert 'logsumexp:units = "nat"' in header and ":schema_version = 2" in header
    dump = subprocess.run(
        [ncdump, "-p", "9,17", str(files[kind])], capture_output=True, text=True, check=True
    ).stdout
    tree = qdx.open(files[kind])
    for name in ("logsumexp", "row_hash") + (("logit",) if kind == "run" else ()):
        section = dump[dump.index("group: replay {") :]
        printed = re.search(rf"\n\s*{name} =(.*?);", section[section.index("data:") :], re.S)[1]
        values = [word.strip() for word in printed.replace("\n", " ").split(",")]
        own = tree["replay"][name].values.ravel()
        assert len(values) == own.size
        read = np.array(
            [
                own.dtype.type(np.nan) if v in ("_", "NaN", "NaNf") else own.dtype.type(v.rstrip("fUL"))
                for v in values
            ]
        )
        np.testing.assert_array_equal(read, own)
    assert '"content 0"' in dump and '"ref_2"' in dump
