"""A record's tables have a line for every captured row or measured value, with its unit; so has Parquet."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import qdx
from qdx import tables
from qdx.dataset import merge
from qdx.distances.measure import compute
from qdx.errors import QdxError
from qdx.plugins import build
from tests.helpers import write_sweep


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    folder = write_sweep(tmp_path_factory.mktemp("tables") / "s", ["awq", "gptq"], repeats=2)
    merge(folder, folder / "sweep.nc")
    compute(folder, folder / "sweep.nc", {"l2": build({"_target_": "qdx.metrics.l2"})})
    return qdx.open(folder, trust=True)


@pytest.mark.parametrize("phase", ["prefill", "replay", "decode"])
def test_a_phase_has_a_line_for_every_captured_row_with_its_own_values(tree: xr.DataTree, phase: str) -> None:
    frame = tree.qdx.table(phase)
    data = tree[phase].to_dataset()
    assert len(frame) == int(data["captured"].sum()) > 0
    index = ["config", "repeat", "reference", "position"]
    assert not frame.duplicated(index).any() and list(frame.columns[:5]) == [*index, "region"]
    for line in frame.sample(20, random_state=0).to_dict("records"):
        at = data.sel({name: line[name] for name in index})
        assert bool(at["captured"])
        for name in ("token_id", "target_logit", "target_rank", "logsumexp", "row_hash", "region"):
            assert line[name] == at[name].item()
        assert line["logprob"] == np.float64(at["target_logit"].item()) - at["logsumexp"].item()
        assert line["observed_kernel"] == data["observed_kernel"].sel(config=line["config"]).item()
    assert frame["row_hash"].dtype == np.uint64  # a float would lose the last bits
    assert frame.attrs["columns"]["logsumexp"]["units"] == frame.attrs["columns"]["logprob"]["units"] == "nat"
    assert not {"captured", "logit", "sketch", "top_id"} & set(frame.columns)


def test_distances_have_a_line_for_every_value_that_was_measured(tree: xr.DataTree) -> None:
    frame = tree.qdx.table("distances")
    for phase in ("prefill", "replay", "decode"):
        stored = tree[f"metrics/l2/{phase}/l2"]
        of = frame[frame["phase"] == phase]
        assert len(of) == int(np.isfinite(stored).sum()) > 0
        mean = of[(of["config"] == "awq") & (of["config_b"] == "gptq")]["value"].mean()
        assert mean == pytest.approx(float(stored.sel(config="awq", config_b="gptq").mean()), rel=1e-12)
    assert set(frame["units"]) == {"nat"} and set(frame["higher_means"]) == {"less alike"}
    floor = tree.qdx.table("noise_floor")
    assert set(floor["repeat_pair"]) == set(tree["metrics/l2/replay"].to_dataset()["repeat_pair"].values)
    assert floor[floor["config"] == "awq"]["value"].max() == 0 < floor["value"].max()


def test_configs_and_references_have_a_line_each(tree: xr.DataTree) -> None:
    configs, references = tree.qdx.table("configs"), tree.qdx.table("references")
    assert list(configs["config"]) == ["awq", "gptq"] and set(configs["cpu_capability"]) == {"AVX2"}
    assert list(references["length"]) == list(tree["references/length"].values)
    assert list(references["text"]) == ["content 0", "content 1", "content 2"]


@pytest.mark.parametrize("what", tables.WHAT)
def test_parquet_holds_the_same_table_with_units_in_its_metadata(
    what: str, tree: xr.DataTree, tmp_path: Path
) -> None:
    import pandas as pd
    import pyarrow.parquet as pq

    path = tree.qdx.to_parquet(tmp_path / "t.parquet", what)
    frame = tree.qdx.table(what)
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame, check_dtype=False)
    schema = pq.read_schema(path)
    assert json.loads(schema.metadata[b"qdx"])["what"] == what
    for name, about in frame.attrs["columns"].items():
        stored = {k.decode(): v.decode() for k, v in (schema.field(name).metadata or {}).items()}
        assert {k: stored[k] for k in about} == {k: str(v) for k, v in about.items()}
    if what == "replay":
        assert str(schema.field("row_hash").type) == "uint64" and str(schema.field("config").type) == "string"
        # Streamed: a row group for every config and prompt, not one of all rows.
        assert pq.ParquetFile(path).num_row_groups == 2 * 3


def test_no_more_than_a_config_and_a_prompt_are_read_at_once(
    tree: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    parts = tables._parts

    def counted(data: xr.Dataset, dims: tuple[str, str]):  # type: ignore[no-untyped-def]
        for part in parts(data, dims):
            sizes.append((part.sizes["config"], part.sizes["reference"]))
            yield part

    monkeypatch.setattr(tables, "_parts", counted)
    tree.qdx.to_parquet(tmp_path / "t.parquet", "replay")
    assert sizes == [(1, 1)] * 6


def test_what_is_not_there_is_named(tree: xr.DataTree, tmp_path: Path) -> None:
    with pytest.raises(QdxError, match=r"table of 'distance': one of .*did you mean 'distances'"):
        tree.qdx.table("distance")
    bare = xr.DataTree.from_dict({"/replay": tree["replay"].to_dataset()})
    with pytest.raises(QdxError, match="no distances: run the sweep with metric"):
        bare.qdx.table("distances")
    with pytest.raises(QdxError, match="no /references, only replay"):
        bare.qdx.table("references")


def test_a_file_that_was_there_stays_where_the_new_one_cannot_be_made(
    tree: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"earlier")

    def broken(*_: object) -> None:
        raise QdxError("damaged")

    monkeypatch.setattr(tables, "_values", broken)
    with pytest.raises(QdxError, match="damaged"):
        tree.qdx.to_parquet(path, "replay")
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


def test_without_pyarrow_the_extra_is_named(
    tree: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(QdxError, match=r"pip install 'qdx\[tables\]'"):
        tree.qdx.to_parquet(tmp_path / "t.parquet")
    assert len(tree.qdx.table("replay"))  # which needs none
