"""What is hashed, computed again by hand; and opened rows that are not rows of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from qdx.commit import write_groups
from qdx.errors import QdxError
from qdx.prompts._reference import Reference
from qdx.prompts._transcript_file import read
from qdx.prompts.challenge import ChallengeFile
from qdx.verification.binding import Row, record_of, record_sha256, row_leaf, rows_of, tokens_sha256
from qdx.verification.commitments import row_bytes
from qdx.verification.exchange import _exact
from tests.protocol.world import Groups, World

NONCE = "a" * 32


def test_a_row_is_hashed_with_what_it_is() -> None:
    data = np.array([1.0, -2.0], "<f2").tobytes()
    line = (
        b'{"config":"awq","dtype":"float16","nonce":"' + NONCE.encode() + b'","phase":"decode","position":7,'
        b'"reference":"ref_0","what":"row"}\n'
    )
    own = row_leaf(NONCE, "awq", Row("ref_0", "decode", 7), "float16", data)
    assert own == hashlib.sha256(b"\0" + line + data).digest()
    others = [
        row_leaf("b" * 32, "awq", Row("ref_0", "decode", 7), "float16", data),
        row_leaf(NONCE, "gptq", Row("ref_0", "decode", 7), "float16", data),
        row_leaf(NONCE, "awq", Row("ref_1", "decode", 7), "float16", data),
        row_leaf(NONCE, "awq", Row("ref_0", "prefill", 7), "float16", data),
        row_leaf(NONCE, "awq", Row("ref_0", "decode", 8), "float16", data),
        row_leaf(NONCE, "awq", Row("ref_0", "decode", 7), "bfloat16", data),
    ]
    assert len({own, *others}) == 7


def test_tokens_are_hashed_with_their_shape() -> None:
    ids_RT = np.arange(6).reshape(2, 3)
    line = b'{"config":"awq","nonce":"' + NONCE.encode() + b'","shape":[2,3],"what":"tokens"}\n'
    assert (
        tokens_sha256(NONCE, "awq", ids_RT)
        == hashlib.sha256(line + ids_RT.astype("<i4").tobytes()).hexdigest()
    )
    assert tokens_sha256(NONCE, "awq", ids_RT) != tokens_sha256(NONCE, "awq", ids_RT.reshape(3, 2))


def test_every_fact_of_a_config_is_in_its_record_and_no_other_config_s() -> None:
    configs = ["awq", "gptq"]
    provenance = xr.Dataset(
        {"cpu": ("config", ["one", "two"]), "kernel": (("config", "layer_type"), [["a", "b"], ["c", "d"]])},
        coords={"config": configs},
    )
    decode = xr.Dataset(coords={"config": configs, "batch_size": ("config", [1, 4]), "position": [5, 6]})
    record = record_of(provenance, decode, "awq")
    assert record == {
        "provenance/cpu": '"one"',
        "provenance/kernel": '["a", "b"]',
        "decode/batch_size": '"1"',
    }
    for change in (
        {"cpu": ("config", ["other", "two"])},
        {"cpu": ("config", np.array([b"one", b"two"]))},  # which a comparison reads as b'one'
        {"layer_type": ("layer_type", ["qkv", "mlp"])},  # names of what the kernels are of
        {"note": ((), "of no config")},
        {"region": ("config", ["a name that means something elsewhere", ""])},
    ):
        changed = record_of(provenance.assign(change), decode, "awq")
        assert record_sha256(NONCE, "awq", record) != record_sha256(NONCE, "awq", changed), change


def test_rows_are_in_the_challenge_s_order_and_the_template_is_not_drawn() -> None:
    def reference(name: str, prefix: int, content: int, suffix: int) -> Reference:
        ids = np.arange(prefix + content + suffix, dtype=np.int32)
        return Reference(name, ids, prefix, content, suffix, ids[:3], "", "", "", 0, "")

    asked = ChallengeFile(
        NONCE, "2026-11-28T01:15:00Z", "b" * 64, "c" * 64, 100, 3, 2,
        [reference("ref_0", 2, 4, 2), reference("ref_1", 0, 2, 1)],
    )  # fmt: skip
    rows = rows_of(asked)
    assert [(r.reference, r.phase, r.position, r.drawable) for r in rows] == [
        ("ref_0", "prefill", 1, False),  # predicts the prefix's second token
        ("ref_0", "prefill", 4, True), ("ref_0", "prefill", 5, True),  # the last two of content
        ("ref_0", "prefill", 6, False), ("ref_0", "prefill", 7, False),
        ("ref_0", "prefill", 8, True),  # predicts the first output token
        ("ref_0", "decode", 9, True), ("ref_0", "decode", 10, True),
        ("ref_1", "prefill", 1, True), ("ref_1", "prefill", 2, False), ("ref_1", "prefill", 3, True),
        ("ref_1", "decode", 4, True), ("ref_1", "decode", 5, True),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_values_that_are_bound_are_those_of_the_model_s_type(dtype: str) -> None:
    import torch

    plain = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    held = plain.to(getattr(torch, dtype)).float().numpy()
    assert (_exact(held, dtype) == held).all()
    assert row_bytes(_exact(held, dtype), dtype).tobytes() == row_bytes(held, dtype).tobytes()


def without_group(groups: Groups) -> None:
    del groups["opened"]


def other(**change: Callable[[xr.DataArray], xr.DataArray]) -> Callable[[Groups], None]:
    def edit(groups: Groups) -> None:
        for name, make in change.items():
            groups["opened"][name] = make(groups["opened"][name])

    return edit


HOSTILE: dict[str, tuple[Callable[[Groups], None], str]] = {
    "no rows": (without_group, "no group /opened"),
    "rows of another vocabulary": (
        lambda g: g.update(opened=g["opened"].isel(vocab=slice(7))),
        "rows of 7 float32 and hashes of 32 bytes, expected 1200 float32 and 32",
    ),
    "hashes of 16 bytes": (lambda g: g.update(opened=g["opened"].isel(byte=slice(16))), "hashes of 16 bytes"),
    "rows of doubles": (other(row_logit=lambda d: d.astype(np.float64)), "rows of 1200 float64"),
    "positions that are texts": (
        other(of_position=lambda d: d.astype(str)),
        "of_position is .*: expected it over row",
    ),
    "names that are numbers": (
        other(of_config=lambda d: d.isnull()),
        "of_config is .*: expected it over row",
    ),
    "a path that is missing": (
        lambda g: g.update(opened=g["opened"].drop_vars("path")),
        "/opened/path is not there",
    ),
    "rows over another dimension": (
        lambda g: g["opened"].update({"of_phase": g["opened"]["of_phase"].rename(row="line")}),
        "of_phase is .*: expected it over row",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.slow
def test_opened_rows_that_are_not_rows_of_the_model_are_refused(
    name: str, exchange: World, tmp_path: Path
) -> None:
    edit, said = HOSTILE[name]
    groups = exchange.copy()
    edit(groups)
    write_groups(tmp_path / "opened.nc", "opened", groups, root="0" * 64, challenge_sha256="0" * 64)
    with pytest.raises(QdxError, match=said):
        read(tmp_path / "opened.nc")
