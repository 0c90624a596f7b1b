"""Encoding, size, provenance, layout and folder: the parts without a file of their own to write."""

from __future__ import annotations

import json
import shutil
import subprocess

import numpy as np
import pytest

from qdx.capture.plan import plan
from qdx.dataset import encoding, folder, layout, provenance, size, writing
from qdx.errors import QdxError
from tests.helpers import small_references, write_run


@pytest.mark.parametrize(
    ("dtype", "portable", "values", "fast"),
    [
        ("float16", False, 49_152, True),
        ("bfloat16", False, 49_152, True),
        ("float32", False, 49_152, False),
        ("float16", True, 49_152, False),
        ("float16", False, 100, False),
    ],
)
def test_blosc_is_taken_only_where_it_cannot_fail(tmp_path, dtype, portable, values, fast) -> None:
    chosen = encoding.choose(tmp_path / "new", portable=portable, dtype=dtype, values=values)
    assert chosen == (encoding.FAST if fast else encoding.PORTABLE)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_filter_that_fails_is_found_by_the_test_write(tmp_path, monkeypatch) -> None:
    """netCDF's blosc filter fails the write of a chunk that does not become smaller: noise in all 32 bits."""
    noise = np.random.default_rng(1).integers(0, 2**32, 4096, dtype=np.uint32).view(np.float32)
    monkeypatch.setattr(encoding, "_widen", lambda bits, dtype: noise)
    assert encoding.choose(tmp_path, portable=False, dtype="float16", values=49_152) == encoding.PORTABLE


def test_an_unwritable_folder_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QdxError, match=r"cannot write to .*file/run"):
        encoding.choose(tmp_path / "file" / "run", portable=False, dtype="float16", values=10)


@pytest.mark.parametrize(("mode", "low", "high"), [("full", 0.6, 1.6), ("topk", 0.5, 2.5)])
@pytest.mark.slow
def test_estimate_is_near_what_a_run_writes(tmp_path, monkeypatch, mode, low, high) -> None:
    monkeypatch.setattr(size, "_FIXED", 150_000)  # of this small file most is fixed
    references = small_references(40)
    write_run(tmp_path / "run.nc", "awq", references=references, mode=mode)
    planned = plan(references, prefill_positions=8, output_tokens=8)
    estimate = size.bytes_per_run(planned, repeats=3, width=300 * (mode == "full"), k=5, components=16)
    assert low < (tmp_path / "run.nc").stat().st_size / estimate < high


def test_estimate_of_the_full_design_case() -> None:
    """8000 positions × 4 references × 152k logits of four configs: about 36 GB at 1.85 bytes."""
    positions = {"prefill": [np.arange(8000)] * 4}
    each = size.bytes_per_run(positions, repeats=1, width=151_936)
    assert 8.9e9 < each < 9.1e9
    assert size.bytes_per_run(positions, repeats=1, width=0) < 0.002 * each


def test_too_small_a_disk_is_an_error_with_both_numbers(tmp_path) -> None:
    size.check_disk(tmp_path / "not" / "yet", 1)
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(QdxError, match=r"will write about .* free there: .*lower capture\.prefill_positions"):
        size.check_disk(tmp_path / "not" / "yet", free * 2)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (7.8e10, "78.0 GB")],
)
def test_readable_sizes(count, text) -> None:
    assert size.readable(int(count)) == text


def test_config_hash_depends_on_content_and_not_on_order() -> None:
    one = provenance.config_hash({"a": 1, "b": [1, 2.5, None], "c": {"x": True, "y": "ü"}}, {"gpu": ""})
    assert one == provenance.config_hash(
        {"c": {"y": "ü", "x": True}, "b": (1, 2.5, None), "a": 1}, {"gpu": ""}
    )
    others = [
        provenance.config_hash({"a": 1, "b": [1, 2.5, None], "c": {"x": True, "y": "u"}}, {"gpu": ""}),
        provenance.config_hash({"a": "1", "b": [1, 2.5, None], "c": {"x": True, "y": "ü"}}, {"gpu": ""}),
        provenance.config_hash({"a": 1, "b": [2.5, 1, None], "c": {"x": True, "y": "ü"}}, {"gpu": ""}),
        provenance.config_hash({"a": 1, "b": [1, 2.5, None], "c": {"x": True, "y": "ü"}}, {"gpu": "H100"}),
    ]
    assert len({one, *others}) == 5 and len(one) == 64
    with pytest.raises(TypeError):
        provenance.config_hash({"a": object()}, {})


def test_stamp_has_only_what_an_attribute_can_hold() -> None:
    stamp = provenance.stamp()
    assert {"qdx_version", "torch_version", "host", "git_commit", "time_utc", "gpu", "sm_count"} <= set(stamp)
    assert all(isinstance(value, str | int) and not isinstance(value, bool) for value in stamp.values())
    assert stamp["torch_version"].startswith("2.")


def test_commit_is_that_of_the_sources_and_says_dirty(tmp_path) -> None:
    def git(*arguments: str) -> str:
        command = [
            "git",
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.com",
            "-C",
            str(tmp_path),
            *arguments,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    package = tmp_path / "qdx"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1\n")
    assert provenance.git_commit(package) == ""  # no repository, or one that does not track it
    git("init", "-q")
    assert provenance.git_commit(package) == ""
    git("add", ".")
    git("commit", "-qm", "x")
    commit = git("rev-parse", "HEAD")
    assert provenance.git_commit(package) == commit
    (package / "__init__.py").write_text("a = 2\n")
    assert provenance.git_commit(package) == f"{commit}-dirty"


@pytest.mark.parametrize(
    ("name", "vocab", "positions", "chunk"),
    [
        ("logit", 49_152, 130, [1, 1, 1, 1, 49_152]),
        ("logit", 300, 130, [1, 1, 1, 130, 300]),
        ("logit", 16_000, 8000, [1, 1, 1, 65, 16_000]),  # 64 000 bytes a row: 4 MiB in a chunk at most
        ("sketch", 300, 130, [1, 1, 1, 130, 64]),
        ("token_id", 300, 8000, [1, 1, 1, 8000]),
    ],
)
def test_one_large_row_is_a_chunk_and_small_rows_share_one(name, vocab, positions, chunk) -> None:
    sizes = {
        "config": 1,
        "repeat": 3,
        "reference": 4,
        "position": positions,
        "component": 64,
        "rank": 20,
        "vocab": vocab,
    }
    assert layout.chunk_sizes(layout.PHASE[name], sizes) == chunk


@pytest.mark.parametrize(
    ("indices", "expected"), [([], []), ([3], [(3, 4)]), ([0, 1, 2, 5, 7, 8], [(0, 3), (5, 6), (7, 9)])]
)
def test_runs_of_indices(indices, expected) -> None:
    pairs = list(writing.runs_of(np.array(indices, int)))
    assert [(axis.start, axis.stop) for axis, _ in pairs] == expected
    assert [i for _, values in pairs for i in range(values.start, values.stop)] == list(range(len(indices)))


def test_scan_without_a_list_of_labels_takes_what_is_there(tmp_path) -> None:
    for label, name in (("b", "run.nc"), ("a", "run.nc.part"), ("c", "status.json")):
        (tmp_path / label).mkdir()
        (tmp_path / label / name).write_text(
            json.dumps({"status": "failed", "error": "E"}) if name == "status.json" else ""
        )
    state = folder.scan(tmp_path)
    assert (state.labels, list(state.runs), sorted(state.failed), state.missing) == (
        ["a", "b", "c"],
        ["b"],
        ["a", "c"],
        [],
    )
    with pytest.raises(QdxError, match="not a sweep folder"):
        folder.scan(_empty(tmp_path))
    with pytest.raises(QdxError, match="no such folder"):
        folder.scan(tmp_path / "nowhere")


def _empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"
