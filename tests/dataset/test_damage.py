"""Damage: every flipped byte is found and named or changes nothing, and what is whole goes on."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.commit import commit, main
from qdx.dataset import RunReader, append_all, merge
from qdx.dataset.checked import Stored, find
from qdx.dataset.checksums import DamageError, is_checked, join, load, walk
from qdx.errors import QdxError
from qdx.report import build
from qdx.report.__main__ import main as report
from tests.helpers import VOCAB, write_sweep

LABELS = ["awq", "awq_marlin", "gptq_marlin"]
FILES = ["awq/run.nc", "sweep.nc", "commitments.nc"]
FLIPS = 200
SEED = int(os.environ.get("QDX_SEED", "0"))  # another one draws other damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A sweep with its report and its commitments."""
    folder = write_sweep(tmp_path_factory.mktemp("whole") / "sweep", LABELS, repeats=2)
    plan = json.loads((folder / "sweep.json").read_text())
    plan["metrics"] = {"l2": {"_target_": "qdx.metrics.l2"}}
    plan["analyses"] = {"noise_floor": {"_target_": "qdx.analysis.noise_floor"}}
    (folder / "sweep.json").write_text(json.dumps(plan | {"report": {"formats": ["txt"]}}))
    build(folder, console=False)
    commit(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "sweep"))


def end(path: Path) -> int:
    """Where HDF5's part of a file ends, and its checksums begin."""
    return int.from_bytes(path.read_bytes()[28:36], "little")


def change(path: Path, group: str, name: str, key, value) -> None:
    """Change a value and leave the checksums as they were, as a flipped bit of a chunk does."""
    sums = path.read_bytes()[end(path) :]
    with netCDF4.Dataset(path, "r+") as file:
        variable = file[group][name]
        variable.set_auto_maskandscale(False)
        variable[key] = value
    assert path.stat().st_size == end(path), "HDF5 cuts them off"
    with path.open("ab") as stream:
        stream.write(sums)


def uncheck(path: Path) -> None:
    """Make a file that is like one of a qdx before checksums."""
    netCDF4.Dataset(path, "r+").close()


# Every byte ------------------------------------------------------------------------------------------------


def places(path: Path) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Every variable and the (offset, bytes) of what is stored of it."""
    with h5py.File(path, "r") as file:
        found: list[h5py.Dataset] = []
        file.visititems(lambda _, node: found.append(node) if isinstance(node, h5py.Dataset) else None)
        for node in found:
            if node.attrs.get("NAME", b"").startswith(b"This is a netCDF dimension"):
                continue  # a dimension without a variable: HDF5 holds no value of it
            if node.chunks is None:
                offset = node.id.get_offset()
                yield node.name, [] if offset is None else [(offset, node.id.get_storage_size())]
            else:
                chunks = (node.id.get_chunk_info(i) for i in range(node.id.get_num_chunks()))
                yield node.name, [(chunk.byte_offset, chunk.size) for chunk in chunks]


def values(path: Path, name: str) -> bytes:
    """Read a variable by netCDF4 alone."""
    with netCDF4.Dataset(path) as file:
        variable = file[name]
        variable.set_auto_maskandscale(False)
        variable.set_auto_chartostring(False)
        return np.asarray(variable[...]).tobytes()


def outcome(path: Path, name: str, before: bytes) -> str:
    """Read a variable as qdx does: found, or harmless when its values are those of before."""
    try:
        checksums = load(path)
        group = name.rpartition("/")[0]
        with netCDF4.Dataset(path) as file:
            assert checksums is not None
            checksums.check_structure(path, file)
            Stored.of(path, group or "/", file[name], checksums).read()
    except DamageError as error:
        assert str(path) in str(error) and name in str(error)
        return "found"
    return "harmless" if values(path, name) == before else f"silent: {name}"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.slow
def test_a_flipped_byte_of_any_variable_is_found_or_changes_nothing(whole, tmp_path, file) -> None:
    path = tmp_path / "file.nc"
    shutil.copy(whole / file, path)
    drawn, outcomes, without = random.Random(SEED), Counter(), []
    for name, stored in list(places(path)):
        before = values(path, name)
        if not stored:
            without.append(name)
            assert not before or len(set(before)) <= 4, f"{name} has values and no bytes"
            continue
        for offset, size in {stored[0], stored[-1]}:
            at = offset + drawn.randrange(size)
            with path.open("r+b") as stream:
                stream.seek(at)
                byte = stream.read(1)[0]
                stream.seek(at)
                stream.write(bytes([byte ^ (1 << drawn.randrange(8))]))
                stream.flush()
                outcomes[outcome(path, name, before)] += 1
                stream.seek(at)
                stream.write(bytes([byte]))
    assert path.read_bytes() == (whole / file).read_bytes()
    assert set(outcomes) <= {"found", "harmless"}, outcomes
    # A bit that is harmless is one that no value depends on, such as a compressed chunk's header.
    assert outcomes["found"] > 20 * outcomes["harmless"], outcomes
    print(f"{file}: {dict(outcomes)}, nothing stored of {without}")


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_of_any_attribute_is_found(whole, tmp_path, file) -> None:
    path = tmp_path / "file.nc"
    content = (whole / file).read_bytes()
    with netCDF4.Dataset(whole / file) as opened:
        owners = [group for _, group in walk(opened)]
        owners += [variable for group in list(owners) for variable in group.variables.values()]
        texts = {str(owner.getncattr(name)) for owner in owners for name in owner.ncattrs()}
    flipped = 0
    for text in random.Random(SEED).sample(sorted(text for text in texts if len(text) > 8), 20):
        at = content.find(text.encode(), 0, end(whole / file))
        if at >= 0:
            changed = bytearray(content)
            changed[at + 4] ^= 1
            path.write_bytes(changed)
            found = find(path) is not None
            # What HDF5 moved elsewhere since still stands where it was, and nothing reads it.
            assert found or everything(path) == everything(whole / file), text
            flipped += found
    assert flipped > 5


FLIPPING = """
    import json, random, sys
    from collections import Counter
    from pathlib import Path
    from qdx.dataset.checked import find
    from tests.dataset.test_damage import everything

    source, path, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    content, before = source.read_bytes(), everything(source)
    drawn, outcomes = random.Random(int(sys.argv[4])), Counter()
    for _ in range(count):
        at, bit = drawn.randrange(len(content)), drawn.randrange(8)
        changed = bytearray(content)
        changed[at] ^= 1 << bit
        path.write_bytes(changed)
        if find(path) is not None:
            outcomes["found"] += 1
        else:
            outcomes["harmless" if everything(path) == before else f"silent at {at}, bit {bit}"] += 1
    print(json.dumps(outcomes))
"""


def everything(path: Path) -> dict[str, object]:
    """All values, dimensions and attributes of a file."""
    found: dict[str, object] = {}
    with netCDF4.Dataset(path) as file:
        for name, group in walk(file):
            found[name] = repr([(key, group.getncattr(key)) for key in group.ncattrs()])
            for own, variable in group.variables.items():
                variable.set_auto_maskandscale(False)
                variable.set_auto_chartostring(False)
                attrs = repr([(key, variable.getncattr(key)) for key in variable.ncattrs()])
                content = np.asarray(variable[...]).tobytes()
                found[join(name, own)] = (variable.dimensions, str(variable.dtype), attrs, content)
    return found


@pytest.mark.slow
def test_of_two_hundred_random_bits_none_changes_a_value_silently(whole, tmp_path) -> None:
    """HDF5's own structures included; in a process of its own, since a damaged one could end it."""
    import textwrap

    source = tmp_path / "one" / "awq" / "run.nc"
    write_sweep(tmp_path / "one", ["awq"], repeats=1)
    arguments = [str(source), str(tmp_path / "flipped.nc"), str(FLIPS), str(SEED + 11)]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FLIPPING), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    print(outcomes)
    assert set(outcomes) == {"found", "harmless"} and sum(outcomes.values()) == FLIPS
    assert outcomes["found"] > FLIPS / 4


# What is said, and what goes on ----------------------------------------------------------------------------


def distances(folder: Path, metric: str = "l2") -> xr.DataArray:
    with qdx.open(folder / "sweep.nc") as tree:
        return tree[f"metrics/{metric}/replay"][metric].load()


@pytest.mark.slow
def test_a_damaged_row_is_named_and_all_others_are_measured(whole, folder) -> None:
    run = folder / "awq" / "run.nc"
    change(run, "replay", "logit", (0, 0, 1, 3, 17), np.nan)
    assert report([str(folder)]) == 1
    text = " ".join((folder / "report.txt").read_text(encoding="utf-8").split())
    where = "/replay/logit[config 0, repeat 0, reference 1, position 3]"
    assert f"NOT MEASURED awq/run.nc: {run.resolve()} is damaged: {where} holds other values" in text
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["files_damaged"]) == ["awq/run.nc"] and not summary["metrics_failed"]
    before, after = distances(whole), distances(folder)
    missing = np.isnan(after.values) & ~np.isnan(before.values)
    lost = np.argwhere(missing).tolist()
    assert lost == [[0, 1, 1, 3], [0, 2, 1, 3], [1, 0, 1, 3], [2, 0, 1, 3]]
    np.testing.assert_array_equal(after.values[~missing], before.values[~missing])


def test_a_run_with_a_damaged_number_is_left_out_and_named(whole, folder) -> None:
    change(folder / "awq_marlin" / "run.nc", "prefill", "sketch", (0, 1, 2, 0, 0), 7.0)
    assert report([str(folder)]) == 1
    text = " ".join((folder / "report.txt").read_text(encoding="utf-8").split())
    assert "INCOMPLETE: 2 of 3 configs finished" in text
    assert "/prefill/sketch[config 0, repeat 1, reference 2] holds other values than were written" in text
    assert "remove the file and resume the sweep" in text
    labels = ["awq", "gptq_marlin"]
    before = distances(whole).sel(config=labels, config_b=labels)
    np.testing.assert_array_equal(distances(folder).values, before.values)
    with pytest.raises(DamageError, match=r"/prefill/sketch"):
        merge(folder, folder / "other.nc")


def test_a_sweep_whose_only_run_is_damaged_has_no_report(tmp_path, capsys) -> None:
    write_sweep(tmp_path, ["awq"], repeats=1)
    change(tmp_path / "awq" / "run.nc", "decode", "logsumexp", (0, 0, 0, 2), 1.0)
    assert report([str(tmp_path)]) == 2
    assert "/decode/logsumexp[config 0, repeat 0, reference 0] holds other values" in capsys.readouterr().err


def test_a_damaged_row_is_named_through_xarray_and_dask(folder) -> None:
    run = folder / "gptq_marlin" / "run.nc"
    change(run, "prefill", "logit", (0, 1, 2, 5, 0), 3.25)
    for tree in (qdx.open(folder), qdx.open(run)):
        rows = tree["prefill/logit"].sel(config="gptq_marlin").isel(repeat=1, reference=2)
        named = (
            r"gptq_marlin/run\.nc is damaged: /prefill/logit\[config 0, repeat 1, reference 2, position 5\]"
        )
        with pytest.raises(DamageError, match=named) as caught:
            rows.values  # noqa: B018
        assert caught.value.path == run
        others = tree["prefill/logit"].sel(config="gptq_marlin").isel(repeat=1, reference=[0, 1])
        assert np.isfinite(others.values).any()
        tree.close()
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and again.path == run
    reader = RunReader(run)
    with pytest.raises(DamageError, match=named):
        reader.rows("prefill", 1, 2, slice(None))
    rows_PV, bad_P = reader.marked_rows("prefill", 1, 2, np.array([7, 5, 0]))
    assert bad_P.tolist() == [False, True, False] and np.isnan(rows_PV[1]).all()
    assert reader.rows("prefill", 1, 2, np.array([7, 0])).shape == (2, VOCAB)


def test_a_chunk_that_hdf5_refuses_to_read_is_named_by_its_row(tmp_path) -> None:
    write_sweep(tmp_path, ["awq"], repeats=1, portable=True)
    run = tmp_path / "awq" / "run.nc"
    with h5py.File(run, "r") as file:
        rows = file["replay/logit"]
        index = next(
            i for i in range(rows.id.get_num_chunks()) if rows.id.get_chunk_info(i).chunk_offset[2] == 1
        )
        offset = rows.id.get_chunk_info(index).byte_offset
    with run.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff\xff")  # of zlib
    with pytest.raises(DamageError, match=r"/replay/logit\[config 0, repeat 0, reference 1, position 0\]"):
        RunReader(run).rows("replay", 0, 1, slice(None))
    assert RunReader(run).marked_rows("replay", 0, 1, slice(None))[1].any()
    with pytest.raises(DamageError, match=r"/replay/logit\[.*reference 1, .* cannot be read"):
        qdx.open(run)["replay/logit"].values  # noqa: B018


def test_nobody_commits_to_a_damaged_row(folder, capsys) -> None:
    before = (folder / "commitments.nc").read_bytes()
    change(folder / "awq" / "run.nc", "decode", "logit", (0, 0, 0, 1, 4), 0.5)
    assert main([str(folder)]) == 2
    assert "/decode/logit[config 0, repeat 0, reference 0, position 1]" in capsys.readouterr().err
    assert (folder / "commitments.nc").read_bytes() == before


@pytest.mark.slow
def test_a_flipped_row_of_an_old_file_is_found_by_its_hash(whole, folder) -> None:
    run = folder / "awq" / "run.nc"
    with netCDF4.Dataset(run, "r+") as file:  # cuts the checksums off
        file["decode/logit"][0, 0, 0, 1, 4] = 0.5
        file["replay/logit"][0, 0, 0, 1, 4] = 0.5
    assert not is_checked(run)
    with pytest.raises(DamageError, match=r"/decode/logit\[config 0, repeat 0, reference 0, position 1\]"):
        commit(folder)
    assert report([str(folder)]) == 1
    text = " ".join((folder / "report.txt").read_text(encoding="utf-8").split())
    assert "NOT MEASURED awq/run.nc" in text and "/decode/logit[config 0, repeat 0, ref" in text
    assert "UNCHECKED awq/run.nc: read unchecked" in text
    after = distances(folder)
    assert np.isnan(after.values[0, 1, 0, 1]) and np.isfinite(after.values[0, 1, 0, 2])


@pytest.mark.parametrize("file", ["sweep.nc", "commitments.nc"])
def test_transcripts_of_a_damaged_file_are_refused_before_a_model_runs(folder, file) -> None:
    from qdx.prompts import Transcripts

    path = folder / file
    assert len(Transcripts(str(path)).producers) == len(LABELS)
    assert "read unchecked" not in Transcripts(str(path)).describe(1)
    name = "sketch" if file == "sweep.nc" else "commitment"
    change(path, "decode", name, (2, 0, 1, 3, 2), 77)
    named = rf"{file} is damaged: /decode/{name}\[config 2, repeat 0, reference 1\] holds other values"
    with pytest.raises(DamageError, match=named):
        Transcripts(str(path)).load(None)
    uncheck(path)
    assert f"NOTE: {path} is read unchecked" in Transcripts(str(path)).describe(1)


# Files without checksums -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_old_file_opens_and_is_said_to_be_unchecked(whole, folder, capsys) -> None:
    for path in folder.glob("*/run.nc"):
        uncheck(path)
    with pytest.warns(UserWarning, match=r"awq/run\.nc and 2 further files: read unchecked: no checksums"):
        tree = qdx.open(folder)
    np.testing.assert_array_equal(tree["replay/logit"].values, qdx.open(whole)["replay/logit"].values)
    assert report([str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "UNCHECKED awq/run.nc, awq_marlin/run.nc, gptq_marlin/run.nc: read unchecked" in out
    np.testing.assert_array_equal(distances(folder).values, distances(whole).values)


def test_a_file_that_another_program_changed_is_unchecked_and_not_damaged(folder) -> None:
    path = folder / "sweep.nc"
    with netCDF4.Dataset(path, "r+") as file:
        file["replay/logsumexp"][0, 0, 0, 0] = 5.0
    assert find(path) is None
    with pytest.warns(UserWarning, match="changed by another program"):
        assert qdx.open(path)["replay/logsumexp"].values[0, 0, 0, 0] == 5.0


def test_every_file_that_qdx_writes_is_checked_and_opens_without_a_warning(folder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for file in FILES:
            assert is_checked(folder / file) and find(folder / file) is None
            qdx.open(folder / file)
        qdx.open(folder)


def test_a_group_that_is_added_is_checked_with_the_others(folder) -> None:
    path = folder / "sweep.nc"
    own = xr.Dataset({"x": ("y", [1.0, 2.0])}, attrs={"title": "own"})
    append_all(path, {"analysis/own": own, "analysis/other": own})
    assert find(path) is None
    change(path, "analysis/own", "x", 1, 3.0)
    named = r"sweep\.nc is damaged: /analysis/own/x holds other values"
    with qdx.open(path) as tree, pytest.raises(DamageError, match=named):
        tree["analysis/own/x"].values  # noqa: B018
    change(path, "analysis/own", "x", 1, 2.0)
    change(path, "prefill", "captured", (0, 0, 0, 0), 0)
    assert "/prefill/captured[config 0, repeat 0, reference 0]" in str(find(path))


@pytest.mark.parametrize("how", ["cut", "changed"])
def test_damaged_checksums_are_an_error_with_a_way_out(whole, folder, how) -> None:
    path = folder / "awq" / "run.nc"
    content = path.read_bytes()
    at = (end(path) + len(content)) // 2
    path.write_bytes(content[:at] + (b"" if how == "cut" else bytes([content[at] ^ 4]) + content[at + 1 :]))
    with pytest.raises(QdxError, match="not a whole NetCDF-4 file: the checksums at its end") as caught:
        qdx.open(path)
    command = str(caught.value).partition("python -c ")[2].strip('"')
    subprocess.run([sys.executable, "-c", command], check=True)
    with pytest.warns(UserWarning, match="read unchecked"):
        after = qdx.open(path)["replay/logsumexp"].values
    np.testing.assert_array_equal(after, qdx.open(whole / "awq")["replay/logsumexp"].values)


def test_a_missing_or_renamed_part_is_named(folder) -> None:
    for action, named in (
        (lambda file: file["replay"].renameVariable("sketch", "skitch"), "/replay/skitch"),
        (lambda file: file.renameGroup("output", "outpux"), "group /output is missing"),
        (
            lambda file: file["prefill"]["logsumexp"].setncattr("units", "mat"),
            "/prefill/logsumexp has another",
        ),
        (lambda file: file.setncattr("vocab", 301), "group / has other attributes"),
    ):
        path = folder / "awq" / "run.nc"
        content = path.read_bytes()
        sums = content[end(path) :]
        with netCDF4.Dataset(path, "r+") as file:
            action(file)
        with path.open("ab") as stream:
            stream.write(sums)
        # The heap may have moved: then that is found before.
        assert named in str(find(path)) or "global heap" in str(find(path)), find(path)
        path.write_bytes(content)
