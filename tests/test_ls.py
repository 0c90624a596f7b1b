"""The catalogue lists what folders state, says that they state it, and no folder of anybody's stops it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from qdx import ls
from qdx.dataset import catalogue, merge
from qdx.errors import QdxError
from tests.helpers import write_sweep
from tests.hostile import making
from tests.sweeping import qdx

LABELS = ["awq", "gptq"]
SWEEP_KEYS = {
    "path", "bytes", "kind", "time", "configs", "labels", "models", "complete", "runs", "failed", "missing",
    "verdicts_stated", "problems",
}  # fmt: skip


def summary(**changed: object) -> dict[str, object]:
    """A small summary.json as a verifier's sweep has it."""
    return {
        "kind": "summary",
        "schema_version": 2,
        "time_utc": "2026-11-28T10:00:00Z",
        "labels": {"expected": LABELS, "failed": {}, "missing": []},
        "configs": {label: {"model": "small"} for label in LABELS},
        **changed,
    }


def judged(*verdicts: str) -> dict[str, object]:
    return {
        "schema_version": 1,
        "claims": [{"producer": f"p{i}", "verdict": v} for i, v in enumerate(verdicts)],
    }


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_sweep(tmp_path_factory.mktemp("ls") / "honest", LABELS, repeats=1)
    merge(folder, folder / "sweep.nc")
    (folder / "summary.json").write_text(json.dumps(summary()))
    return folder


@pytest.fixture
def place(honest: Path, tmp_path: Path) -> Path:
    """A folder with an honest sweep in it, beside which a test puts its own."""
    shutil.copytree(honest, tmp_path / "many" / "honest")
    return tmp_path / "many"


def listed(folder: Path) -> dict[str, catalogue.Entry]:
    """Entries by their path inside the folder."""
    return {os.path.relpath(one.path, folder): one for one in catalogue.catalogue(folder).entries}


def text(folder: Path) -> str:
    """What the command prints, in this process."""
    return ls.render(ls.listing(catalogue.catalogue(folder)), ls.WIDTH, "")


def test_a_sweep_is_listed_with_its_date_model_configs_size_and_state(place: Path) -> None:
    (one,) = listed(place).values()
    there = sum(file.stat().st_size for file in (place / "honest").rglob("*") if file.is_file())
    assert (one.kind, one.configs, one.labels, one.models) == ("sweep", 2, LABELS, ["small"])
    assert (one.complete, one.runs, one.failed, one.missing, one.bytes) == (True, 2, 0, 0, there)
    assert one.problems == [] and re.fullmatch(r"20\d\d-\d\d-\d\dT.*Z", one.time)
    (line,) = [line for line in text(place).splitlines() if "honest" in line]
    assert one.time[:10] in line and "2: awq, gptq" in line and " yes " in line and "small" in line


def test_what_is_missing_failed_or_half_written_is_not_complete(place: Path) -> None:
    (place / "honest" / "gptq" / "run.nc").rename(place / "honest" / "gptq" / "run.nc.part")
    (one,) = listed(place).values()
    assert (one.complete, one.runs, one.failed) == (False, 1, 1) and "1 of 2" in text(place)
    shutil.rmtree(place / "honest" / "gptq")
    (one,) = listed(place).values()
    assert (one.complete, one.runs, one.missing) == (False, 1, 1)
    (place / "honest" / "awq" / "status.json").write_text('{"status": "failed", "error": "no memory"}')
    (one,) = listed(place).values()
    assert (one.runs, one.failed, one.missing) == (0, 1, 1)


def test_sweep_nc_alone_a_run_and_a_file_of_another_name_are_listed(place: Path) -> None:
    (place / "copied").mkdir()
    shutil.copy(place / "honest" / "sweep.nc", place / "copied")
    shutil.copy(place / "honest" / "sweep.nc", place / "received.nc")
    shutil.copytree(place / "honest" / "awq", place / "alone")
    found = listed(place)
    assert set(found) == {"honest", "copied", "received.nc", "alone"} or set(found) == {
        "honest", "copied", "received.nc", ".",
    }  # fmt: skip
    assert found["copied"].complete and found["copied"].labels == LABELS and found["copied"].runs == 0
    assert found["received.nc"].kind == "sweep" and found["received.nc"].models == ["small"]


def test_a_verdict_is_printed_as_stated_and_never_alone(place: Path) -> None:
    lying = summary(verdict="all confirmed", verdicts=judged("confirmed", "confirmed", "refuted"))
    (place / "honest" / "summary.json").write_text(json.dumps(lying))
    printed = text(place)
    assert "stated: 2 confirmed, 1 refuted" in printed and "Nothing was judged here" in printed
    for line in printed.splitlines():
        assert "confirmed" not in line or "stated" in line
    (one,) = json.loads(ls.as_json(catalogue.catalogue(place)))["sweeps"]
    assert one["verdicts_stated"] == [{"by": "summary.json", "counts": {"confirmed": 2, "refuted": 1}}]
    assert set(one) == SWEEP_KEYS  # no field says "verdict" without saying who states it


def test_a_summary_that_contradicts_sweep_nc_is_named(place: Path) -> None:
    def verify(file: h5py.File) -> None:
        group = file.require_group("analysis/verify")
        group.create_dataset("verdict", data=np.array([b"refuted", b"confirmed"]))

    making.edited(place / "honest" / "sweep.nc", place / "new.nc", verify)
    (place / "new.nc").rename(place / "honest" / "sweep.nc")
    lying = summary(configs={"other": {}}, verdicts=judged("confirmed", "confirmed"))
    (place / "honest" / "summary.json").write_text(json.dumps(lying))
    printed = text(place)
    assert "its files state different verdicts" in printed and "believe neither" in " ".join(printed.split())
    assert "one of them is of another sweep" in " ".join(printed.split())
    assert "stated: 2 confirmed" not in printed


ACTING = "\x1b]0;owned\x07\x1b[2J\u202eevil\r\nqdx: all confirmed"


def test_nothing_in_names_and_texts_acts_on_the_terminal(place: Path) -> None:
    hostile = place / ACTING.replace("/", "")
    shutil.copytree(place / "honest", hostile)
    (hostile / "sweep.json").write_text(json.dumps({"labels": [ACTING, "awq"], "started": ACTING}))
    (hostile / "summary.json").write_text(
        json.dumps(summary(configs={ACTING: {"model": ACTING}}, verdicts=judged(ACTING)))
    )
    for arguments in ((), ("--json",)):
        done = qdx(str(place), *arguments, cwd=place, module="qdx.ls")
        assert done.returncode == 0, done.stderr
        printed = done.stdout + done.stderr
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", printed)
        assert not any(line.startswith("qdx: all confirmed") for line in printed.splitlines())
    json.loads(done.stdout)


BAD_JSON = {
    "not JSON": "{",
    "a list": "[]",
    "deep": "[" * 200_000,
    "a long number": '{"kind": "summary", "schema_version": ' + "9" * 100_000 + "}",
    "other types": json.dumps(summary(labels=[1], configs=[2], verdicts={"claims": {"a": 1}}, time_utc=3)),
    "not a number": '{"kind": "summary", "labels": {"expected": [NaN, Infinity]}, "configs": {"a": NaN}}',
    "another kind": '{"kind": "invoice"}',
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_a_broken_summary_costs_its_own_line_only(name: str, place: Path) -> None:
    shutil.copytree(place / "honest", place / "broken")
    (place / "broken" / "summary.json").write_text(BAD_JSON[name])
    found = listed(place)
    assert found["honest"].problems == [] and found["broken"].labels == LABELS
    told = found["broken"].problems
    assert len(told) == (name != "other types"), told
    assert all(problem.startswith("summary.json") for problem in told)


def test_a_huge_summary_is_not_read(place: Path) -> None:
    with (place / "honest" / "summary.json").open("wb") as stream:
        stream.truncate(40 * 2**20)
    (one,) = listed(place).values()
    assert one.problems == ["summary.json is not read: 41,943,040 bytes, limit 33,554,432"]
    assert one.labels == LABELS and one.complete


@pytest.mark.parametrize("how", ["cut", "fifo", "zeros", "text", "empty", "foreign"])
def test_a_file_that_is_none_of_qdxs_is_named_or_left_out(how: str, place: Path) -> None:
    (place / "bad").mkdir()
    file = place / "bad" / "sweep.nc"
    data = (place / "honest" / "sweep.nc").read_bytes()
    if how == "fifo":
        os.mkfifo(file)
        os.mkfifo(place / "bad" / "summary.json")
        (place / "bad" / "awq").mkdir()
        os.mkfifo(place / "bad" / "awq" / "run.nc")
    elif how == "foreign":
        with h5py.File(file, "w") as new:
            new["temperature"] = [1.0]
    else:
        file.write_bytes({"cut": data[:5000], "zeros": bytes(9000), "text": b"hello", "empty": b""}[how])
    found = listed(place)
    assert found["honest"].problems == []
    if how == "fifo":
        assert "bad" not in found
    else:
        (problem,) = found["bad"].problems
        assert problem.startswith("sweep.nc is ") and "\n" not in problem


def test_damaged_heaps_and_links_in_a_file_are_not_followed(place: Path) -> None:
    making.looping(place / "honest" / "sweep.nc", place / "looping.nc")
    secret = place / "secret"
    os.mkfifo(secret)

    def links(file: h5py.File) -> None:
        del file["prefill"]
        file["prefill"] = h5py.ExternalLink(str(secret), "/")
        file["analysis"] = h5py.SoftLink("/replay")

    making.edited(place / "honest" / "sweep.nc", place / "linked.nc", links)
    found = listed(place)
    assert found["looping.nc"].labels == found["linked.nc"].labels == LABELS


def test_links_between_folders_are_counted_and_not_followed(place: Path) -> None:
    (place / "honest" / "loop").symlink_to(place)
    (place / "other").symlink_to(place / "honest")
    (place / "dangling").symlink_to(place / "nothing")
    found = catalogue.catalogue(place)
    assert len(found.entries) == 1 and found.links == 2
    assert "2 links to other folders not followed" in text(place)


def test_a_label_that_leads_out_of_the_folder_is_not_looked_up(place: Path) -> None:
    stated = {"labels": ["../honest/awq", "..", "/etc", "a\0b", 3, "awq"]}
    (place / "honest" / "sweep.json").write_text(json.dumps(stated))
    (one,) = listed(place).values()
    assert one.labels == ["awq"] and one.complete


def test_a_file_that_kills_or_never_ends_the_reader_costs_its_own_line_only(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a_kills", "b_hangs", "c_fine"):
        (place / name).mkdir()
        shutil.copy(place / "honest" / "sweep.nc", place / name)
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time, json\n"
        f"sys.path.insert(0, {str(catalogue.SCRIPT.parent)!r})\n"
        "import catalogue_entry as real\n"
        "def entry(path, limits, own=real.entry):\n"
        "    if 'a_kills' in path: os.abort()\n"
        "    if 'b_hangs' in path: time.sleep(60)\n"
        "    return own(path, limits)\n"
        "real.entry = entry\n"
        "real.main()\n"
    )
    monkeypatch.setattr(catalogue, "SCRIPT", script)
    monkeypatch.setattr(catalogue, "SECONDS", 5.0)
    found = listed(place)
    assert "crashes on it (SIGABRT)" in found["a_kills"].problems[0]
    assert "took more than 5 s" in found["b_hangs"].problems[0]
    assert found["c_fine"].labels == found["honest"].labels == LABELS


def test_hundreds_of_sweeps_are_read_by_one_process(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(300):
        folder = tmp_path / "all" / f"s{i:03}"
        folder.mkdir(parents=True)
        for name in ("sweep.nc", "summary.json"):
            os.link(honest / name, folder / name)
    started = []

    class Counted(catalogue.Child):
        def __init__(self, script: Path) -> None:
            started.append(script)
            super().__init__(script)

    monkeypatch.setattr(catalogue, "Child", Counted)
    found = catalogue.catalogue(tmp_path / "all")
    assert len(found.entries) == 300 and all(one.complete and not one.problems for one in found.entries)
    assert len(started) == 1


def test_limits_of_folders_and_depth_are_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = place.joinpath(*(["d"] * 14))
    deep.mkdir(parents=True)
    assert any("12 deep" in said for said in catalogue.catalogue(place).problems)
    monkeypatch.setattr(catalogue, "MOST_FOLDERS", 1)
    assert any("not everything is listed" in said for said in catalogue.catalogue(place).problems)


def test_the_command_ends_as_documented(tmp_path: Path) -> None:
    empty = qdx(cwd=tmp_path, module="qdx.ls")
    assert empty.returncode == 0 and "no sweep here" in empty.stdout
    none = qdx("nowhere", cwd=tmp_path, module="qdx.ls")
    assert none.returncode == 2 and none.stderr.count("\n") == 1 and "no such folder" in none.stderr
    with pytest.raises(QdxError, match="no such folder"):
        catalogue.catalogue(tmp_path / "nowhere")


def test_the_reader_imports_nothing_of_the_folder_or_of_qdx() -> None:
    source = catalogue.SCRIPT.read_text()
    assert "import qdx" not in source and "from qdx" not in source
