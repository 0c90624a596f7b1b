"""RunReader: the same rows as xarray gives, whatever the order, with few files open."""

from __future__ import annotations

import numpy as np
import pytest

import qdx
from qdx.dataset import RunReader, layout, run_reader
from qdx.errors import QdxError
from tests.helpers import VOCAB, write_run


@pytest.mark.parametrize("phase", layout.PHASES)
def test_small_arrays_are_those_of_the_file(sweep, phase) -> None:
    own = RunReader(sweep / "gptq").phase(phase)
    dataset = qdx.open(sweep / "gptq")[phase].to_dataset().load()
    for name in ("captured", "token_id", "target_logit", "logsumexp", "row_hash", "top_id", "top_logit"):
        values = getattr(own, name)
        assert values.dtype == dataset[name].dtype and not isinstance(values, np.ma.MaskedArray)
        np.testing.assert_array_equal(values, dataset[name].values[0])
    np.testing.assert_array_equal(own.positions, dataset["position"].values)
    assert own.has_rows


@pytest.mark.parametrize(
    "indices",
    [slice(None), slice(2, 9, 3), np.array([5, 1, 1, 9, 2]), np.array([], int), np.array([-1, 0])],
    ids=["all", "step", "any order, twice", "none", "negative"],
)
def test_rows_are_those_of_xarray(sweep, indices) -> None:
    reader = RunReader(sweep / "awq" / "run.nc")
    own = qdx.open(sweep / "awq")["prefill"]["logit"].values[0, 1, 2]
    back = reader.rows("prefill", 1, 2, indices)
    assert back.dtype == np.float32 and not isinstance(back, np.ma.MaskedArray)
    np.testing.assert_array_equal(back, own[indices])
    np.testing.assert_array_equal(RunReader(sweep / "awq").rows("prefill", 1, 2, indices), back)


def test_facts_of_the_run(sweep) -> None:
    reader = RunReader(sweep / "awq")
    assert (reader.label, reader.dtype, reader.vocab, reader.repeats) == ("awq", "float16", VOCAB, 3)
    assert reader.references == ["ref_0", "ref_1", "ref_2"]


def test_a_run_without_full_rows_says_so(tmp_path) -> None:
    write_run(tmp_path / "run.nc", "awq", mode="topk", repeats=1)
    reader = RunReader(tmp_path)
    assert not reader.phase("replay").has_rows
    with pytest.raises(QdxError, match="capture=topk"):
        reader.rows("replay", 0, 0, slice(None))
    with pytest.raises(QdxError, match="not a phase"):
        reader.phase("warmup")
    with pytest.raises(QdxError, match="No such file"):
        RunReader(tmp_path / "x.nc")


def test_many_readers_keep_few_files_open(sweep, monkeypatch) -> None:
    monkeypatch.setattr(run_reader, "_OPEN_FILES", 2)
    readers = [RunReader(sweep / label) for label in ("awq", "awq_marlin", "gptq", "gptq_marlin")]
    first = [reader.rows("replay", 0, 0, slice(0, 2)) for reader in readers]
    assert len(run_reader._handles) == 2
    again = [reader.rows("replay", 0, 0, slice(0, 2)) for reader in readers]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for reader in readers:
        reader.close()
    assert not run_reader._handles or all(str(sweep) not in str(key[0]) for key in run_reader._handles)


def test_a_replaced_file_is_read_anew(tmp_path) -> None:
    write_run(tmp_path / "run.nc", "awq", repeats=1)
    assert RunReader(tmp_path).label == "awq"
    write_run(tmp_path / "run.nc", "gptq", repeats=1)
    assert RunReader(tmp_path).label == "gptq"
