"""Repeats of separate processes, joined, are one run."""

from __future__ import annotations

import pytest
import xarray as xr

import qdx
from qdx.dataset import layout
from qdx.dataset.join_repeats import join_repeats
from qdx.errors import QdxError
from tests.helpers import write_run


@pytest.mark.parametrize("options", [{}, {"portable": True}, {"mode": "topk"}], ids=str)
@pytest.mark.slow
def test_joined_repeats_are_the_run_of_one_process(tmp_path, options) -> None:
    write_run(tmp_path / "whole" / "run.nc", "awq", repeats=3, **options)
    parts = [tmp_path / f"{i}.nc" for i in range(3)]
    for part in parts:
        write_run(part, "awq", repeats=1, **options)
    join_repeats(parts, tmp_path / "joined.nc", {"command_line": "joined"})
    one, other = qdx.open(tmp_path / "whole"), qdx.open(tmp_path / "joined.nc")
    for group in ("references", *layout.PHASES, "output"):
        xr.testing.assert_identical(one[group].to_dataset().load(), other[group].to_dataset().load())
        assert one[group].to_dataset().data_vars.keys() == other[group].to_dataset().data_vars.keys()
    assert other.attrs == {**one.attrs, "command_line": "joined", "repeat_processes": 3}
    assert other["provenance"]["command_line"].values.tolist() == ["joined"]
    assert other["provenance"]["kernel"].values.tolist() == [["model:awq_gemm"]]
    assert not list(tmp_path.glob("*.part"))


def test_joined_texts_keep_their_own_length(tmp_path) -> None:
    from tests.capture.test_recorder import any_bits, fill, recorder, torch
    from tests.helpers import TOKENS, VOCAB

    texts = ["short", "x" * 500, "é"]
    for i, text in enumerate(texts):
        with recorder(tmp_path / f"{i}.nc", repeats=1) as record:
            fill(record, lambda positions: any_bits(torch.float16, len(positions), VOCAB))
            record.output(0, 1, [0] * TOKENS, text)
            record.finish()
    join_repeats([tmp_path / f"{i}.nc" for i in range(3)], tmp_path / "joined.nc", {})
    assert qdx.open(tmp_path / "joined.nc")["output"]["text"].values[0, :, 1].tolist() == texts


def test_repeats_whose_libraries_differ_are_not_one_config(tmp_path) -> None:
    for repeat, version in enumerate(("13.1.0", "13.1.0", "12.8.4")):
        write_run(tmp_path / f"{repeat}.nc", "awq", repeats=1, attrs={"cublas_version": version})
    parts = [tmp_path / f"{repeat}.nc" for repeat in range(3)]
    with pytest.raises(QdxError, match=r"repeat 2 ran with cublas_version 12\.8\.4, repeat 0 with 13\.1\.0"):
        join_repeats(parts, tmp_path / "joined.nc", {})
    join_repeats(parts[:2], tmp_path / "joined.nc", {})
    assert qdx.open(tmp_path / "joined.nc").attrs["repeat_processes"] == 2


def test_starts_for_which_compiling_chose_other_kernels_are_repeats_and_all_choices_are_stated(
    tmp_path,
) -> None:
    for repeat, chosen in enumerate(("9 kernels, b", "9 kernels, a", "9 kernels, b")):
        write_run(tmp_path / f"{repeat}.nc", "awq", repeats=1, attrs={"compiled_kernels": chosen})
    parts = [tmp_path / f"{repeat}.nc" for repeat in range(3)]
    join_repeats(parts, tmp_path / "joined.nc", {})
    assert qdx.open(tmp_path / "joined.nc").attrs["compiled_kernels"] == "9 kernels, a | 9 kernels, b"
    join_repeats([parts[0], parts[2]], tmp_path / "alike.nc", {})
    assert qdx.open(tmp_path / "alike.nc").attrs["compiled_kernels"] == "9 kernels, b"


def test_one_repeat_whose_replay_is_not_exact_is_enough(tmp_path) -> None:
    for repeat, exact in enumerate((True, False)):
        write_run(tmp_path / f"{repeat}.nc", "awq", repeats=1, attrs={"replay_exact": exact})
    join_repeats([tmp_path / "0.nc", tmp_path / "1.nc"], tmp_path / "joined.nc", {})
    assert qdx.open(tmp_path / "joined.nc").attrs["replay_exact"] == 0


def test_repeats_with_other_kernels_are_refused(tmp_path) -> None:
    write_run(tmp_path / "0.nc", "awq", repeats=1)
    write_run(tmp_path / "1.nc", "awq", repeats=1, layers={"self_attn.q_proj": ("Other", "other")})
    with pytest.raises(QdxError, match=r"repeat 1 loaded kernels .*Other"):
        join_repeats([tmp_path / "0.nc", tmp_path / "1.nc"], tmp_path / "joined.nc", {})
