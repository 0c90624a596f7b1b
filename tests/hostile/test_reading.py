"""A received file is refused by what it claims to be, before anything of it is read."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest

import qdx
from qdx.commit import commit
from qdx.dataset import guarding
from qdx.dataset.guarding import Limits, allow, guard
from qdx.dataset.structure_check import Refused, check_structure
from qdx.errors import QdxError
from qdx.prompts import Transcripts
from qdx.report import build
from qdx.report.__main__ import main as report_main
from qdx.verification.sections import adopt_calibration
from tests.hostile import making
from tests.slowly import slow_but

LIMITS = asdict(Limits())
QUICK = 1.0  # seconds of processor time; 0.17 for an honest sweep of 950 variables on an idle machine


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.honest(tmp_path_factory.mktemp("honest") / "s")


@pytest.fixture(autouse=True)
def usual_limits() -> None:
    guarding._limits = Limits()


def not_opened(folder: Path) -> Path:
    """A fifo: whoever opens it to read waits for ever."""
    place = folder / "secret"
    if not place.exists():
        os.mkfifo(place)
    return place


# What the file is, what is said, and what it would have done.
HOSTILE: dict[str, tuple[Callable[[Path], Callable[[h5py.File], object]], str]] = {
    "external storage": (lambda at: making.external(not_opened(at)), "/references/text has external storage"),
    "external link": (
        lambda at: lambda f: f.__setitem__("references/x", h5py.ExternalLink(str(not_opened(at)), "/")),
        r"/references/x is a link \(external\)",
    ),
    "soft link": (
        lambda at: lambda f: f.__setitem__("references/x", h5py.SoftLink("/output/token_id")),
        r"/references/x is a link \(soft\)",
    ),
    "virtual dataset": (lambda at: making.virtual(not_opened(at)), "/references/other is virtual"),
    "committed type": (
        lambda at: lambda f: f.__setitem__("references/t", np.dtype([("a", "i4")])),
        "/references/t is a user-defined type",
    ),
    "compound": (
        lambda at: lambda f: f.create_dataset("references/c", (2,), np.dtype([("a", "i4")])),
        "/references/c is of a user-defined type",
    ),
    "list of lists": (
        lambda at: lambda f: f.create_dataset("references/v", (2,), h5py.vlen_dtype("f4")),
        "/references/v is of a user-defined type",
    ),
    "opaque": (
        lambda at: lambda f: f.create_dataset("references/o", (2,), np.dtype("V5")),
        "/references/o is of a user-defined type",
    ),
    "object reference": (
        lambda at: lambda f: f.create_dataset("references/r", (2,), h5py.ref_dtype),
        "/references/r is of a user-defined type",
    ),
    "enumeration as an attribute": (
        lambda at: lambda f: f.attrs.create("e", 1, dtype=h5py.enum_dtype({"a": 1})),
        "user-defined type",
    ),
    "token dimension": (
        lambda at: making.claims((10**9,)),
        "claims a dimension of 1,000,000,000, limit 16,777,216",
    ),
    "claimed bytes": (lambda at: making.claims((2**14, 2**16)), "claim 4,294,967,296 bytes|claim 4,29"),
    "chunk of 4 GiB": (
        lambda at: making.claims((2**16, 2**14), "f4", (2**15, 2**14)),
        "claims chunks of 2,147,483,648 bytes, limit 67,108,864",
    ),
    "8 GiB of packed zeros": (lambda at: making.packed_zeros, "bytes unpacked up to /references/zeros"),
    "texts of 10⁹ characters": (
        lambda at: making.claims((1,), "S1000000000", None),
        "claims texts of 1,000,000,000 bytes, limit 16,777,216",
    ),
    "dimensions": (lambda at: making.claims((1,) * 12), "has 12 dimensions, limit 10"),
    "deep groups": (lambda at: making.deep, "groups lie 9 deep"),
    "a group that contains itself": (lambda at: making.itself, "linked twice, or a group contains itself"),
    "a variable twice": (lambda at: making.twice, "linked twice"),
    "many attributes": (lambda at: making.attributes, "has 130. attributes, limit 1200"),
    "long attributes": (lambda at: making.long_attributes, "its attributes claim .* limit 67,108,864"),
    "one text that many values name": (
        lambda at: making.free_texts,
        "its texts of free length have more than",
    ),
    "unknown filter": (lambda at: making.unknown_filter, "unknown filter 305"),
    "a name that acts": (
        lambda at: lambda f: f.create_group("references/\x1b[2J"),
        "unprintable characters",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_before_it_is_read(case: str, sweep: Path, tmp_path: Path) -> None:
    edit, said = HOSTILE[case]
    path = making.edited(sweep / "sweep.nc", tmp_path / "hostile.nc", edit(tmp_path))
    # As large as what it was made of and its own small part, whatever it claims.
    assert (
        path.stat().st_size < (sweep / "sweep.nc").stat().st_size + 10 * 2**20
        or "text" in case
        or "long" in case
    )
    with pytest.raises(QdxError, match=said) as caught:
        _ = Transcripts(str(path)).file
    assert str(path) in str(caught.value) and "\x1b" not in str(caught.value)
    if case != "one text that many values name":  # its length is known only when it is read, in the child
        started = time.process_time()
        with pytest.raises(Refused, match=said):
            check_structure(str(path), LIMITS)
        assert time.process_time() - started < QUICK


def test_no_case_is_refused_for_another_reason(sweep: Path, tmp_path: Path) -> None:
    """What every case was made of passes, and quickly, also after h5py has written into it."""
    same = making.edited(sweep / "sweep.nc", tmp_path / "same.nc", lambda file: None)
    for path in (same, sweep / "sweep.nc", commit(sweep, tmp_path / "c.nc"), *sweep.glob("*/run.nc")):
        started = time.process_time()
        check_structure(str(path), LIMITS)
        assert time.process_time() - started < QUICK
        guard(path)


def test_recorded_files_of_other_machines_pass() -> None:
    files = list((making.ROOT / "docs/results").rglob("*.nc"))
    assert files
    guard(*files)


def test_what_other_files_hold_is_in_no_message_and_no_record(sweep: Path, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("API_TOKEN=abc" * 100)
    path = making.edited(sweep / "sweep.nc", tmp_path / "h.nc", making.external(secret))
    with pytest.raises(QdxError) as caught:
        Transcripts(str(path)).keep(tmp_path)
    assert "abc" not in str(caught.value)
    assert not (tmp_path / "producers.nc").exists()


def test_limits_are_raised_by_name(sweep: Path, tmp_path: Path) -> None:
    path = making.edited(sweep / "sweep.nc", tmp_path / "l.nc", making.claims((2**25,), "u1", (2**20,)))
    with pytest.raises(QdxError, match="raise max_length if you trust it"):
        guard(path)
    assert Transcripts(str(path), max_length=2**26).file.tokens == 8
    guarding._limits = Limits()
    allow(max_bytes=2**25, max_length=2**26)
    with pytest.raises(QdxError, match="limit 33,554,432: raise max_bytes"):
        guard(path)
    allow(max_bytes=Limits.max_bytes, max_length=2**26, max_objects=20)
    with pytest.raises(QdxError, match="more than 20 groups and variables: raise max_objects"):
        guard(path)
    for wrong in (0, -1, True, "9", 1.5):
        with pytest.raises(QdxError, match=r"max_bytes=.*must be a whole number of at least 1"):
            allow(max_bytes=wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_file_over_which_hdf5_loops_for_ever_ends_the_look_and_not_the_program(
    sweep: Path, tmp_path: Path
) -> None:
    for name in ("sweep.nc", "awq/run.nc"):
        path = making.looping(sweep / name, tmp_path / "loop.nc")
        started = time.monotonic()
        with pytest.raises(QdxError, match=r"took more than 4 s: it is damaged or hostile.*max_seconds"):
            _ = Transcripts(str(path), max_seconds=4).file
        assert time.monotonic() - started < 30


def test_the_watchdog_waits_for_an_honest_file(sweep: Path) -> None:
    assert Transcripts(str(sweep), max_seconds=30).file.tokens == 8


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link to a device"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name is short
    path = Path("x")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("x")
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(QdxError, match="is a fifo, device or socket"):
        _ = Transcripts(str(path)).file
    with pytest.raises(QdxError, match="not a regular file"):
        guard(path)


BOMBS = ("token dimension", "claimed bytes", "8 GiB of packed zeros", "texts of 10⁹ characters",
         "a group that contains itself", "one text that many values name", "chunk of 4 GiB")  # fmt: skip
MEASURE = """
import json, resource, sys
limit = 3 * 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from qdx.errors import QdxError
from qdx.prompts import Transcripts
said = []
for path in sys.argv[1:]:
    try:
        Transcripts(path).file
        said.append("read")
    except QdxError as error:
        said.append(str(error))
# ru_maxrss of this process itself would count what its parent held when it forked.
own = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
peak = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(json.dumps([said, peak / 2**10]))
"""


def test_bombs_take_no_memory(sweep: Path, tmp_path: Path) -> None:
    """In a process that may have 3 GiB of addresses, with its children; the files took 7 to 9 GiB."""
    paths = []
    for number, case in enumerate(BOMBS):
        edit = HOSTILE[case][0](tmp_path)
        paths.append(str(making.edited(sweep / "sweep.nc", tmp_path / f"{number}.nc", edit)))
    done = making.python("-c", MEASURE, *paths, str(sweep / "sweep.nc"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said, peak = json.loads(done.stdout)
    assert said.pop() == "read", "the honest file, under the same limit"
    for case, line in zip(BOMBS, said, strict=True):
        assert re.search(HOSTILE[case][1], line), (case, line)
    assert peak < 700, f"{peak:.0f} MiB"


def test_a_calibration_folder_is_guarded(sweep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    making.edited(sweep / "sweep.nc", folder / "sweep.nc", making.external(not_opened(tmp_path)))
    making.edited(sweep / "sweep.nc", folder / "producers.nc", lambda file: None)
    with pytest.raises(QdxError, match="external storage"):
        adopt_calibration(tmp_path / "mine", folder)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    "name",
    slow_but(["producers.nc"], ["awq/run.nc", "sweep.nc", "producers.nc", "calibration/sweep.nc"]),
)
def test_the_report_of_a_strangers_folder_is_guarded(
    name: str, sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = making.honest(tmp_path / "s")
    (folder / "calibration").mkdir()
    source = folder / name if (folder / name).exists() else folder / "sweep.nc"
    made = making.edited(source, tmp_path / "h.nc", making.external(not_opened(tmp_path)))
    made.replace(folder / name)
    assert report_main([str(folder)]) == 2
    assert "external storage" in capsys.readouterr().err
    assert not (folder / "report.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awq/run.nc", "sweep.nc"])
def test_what_python_opens_is_guarded_unless_it_is_trusted(name: str, sweep: Path, tmp_path: Path) -> None:
    folder = making.honest(tmp_path / "s")
    made = making.edited(folder / name, tmp_path / "h.nc", making.claims((2**25,), "u1", (2**20,)))
    made.replace(folder / name)
    for path in (folder, folder / name):
        with pytest.raises(QdxError, match="claims a dimension of 33,554,432, limit 16,777,216"):
            qdx.open(path)
    with pytest.raises(QdxError, match="claims a dimension"):
        build(folder, console=False)
    assert not (folder / "report.txt").exists()
    qdx.open(folder, trust=True).close()
    assert build(folder, console=False, trust=True, formats=["txt"]).paths


def test_what_python_opens_leads_nowhere_else(sweep: Path, tmp_path: Path) -> None:
    place = not_opened(tmp_path)
    path = making.edited(sweep / "sweep.nc", tmp_path / "h.nc", making.external(place))
    with pytest.raises(QdxError, match="external storage"):
        qdx.open(path)
    folder = making.honest(tmp_path / "s")
    (folder / "gptq" / "run.nc").unlink()
    (folder / "gptq" / "run.nc").symlink_to(place)
    with pytest.raises(QdxError, match="is a link to"):
        qdx.open(folder)


def test_one_process_looks_at_file_after_file_until_it_has_refused_one(sweep: Path, tmp_path: Path) -> None:
    paths = [making.edited(sweep / "sweep.nc", tmp_path / f"{n}.nc", lambda file: None) for n in range(3)]
    guard(paths[0])
    first = guarding._child
    guard(paths[1])
    assert guarding._child is first and first is not None and first.lives
    bad = making.edited(sweep / "sweep.nc", tmp_path / "bad.nc", making.twice)
    with pytest.raises(QdxError, match="linked twice"):
        guard(bad)
    assert not first.lives, "what a damaged file does to its memory concerns no other file"
    guard(paths[2])
    assert guarding._child is not first


@pytest.mark.slow
def test_the_report_raises_limits_by_name(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = making.honest(tmp_path / "s")
    assert report_main([str(folder), "--max-objects", "5"]) == 2
    assert "more than 5 groups and variables" in capsys.readouterr().err
    assert report_main([str(folder), "--max-objects", "30000", "--formats", "txt"]) == 0


@pytest.mark.slow
def test_the_guard_costs_an_honest_report_little(sweep: Path, tmp_path: Path) -> None:
    folder = making.honest(tmp_path / "s")
    paths = [folder / "sweep.nc", *folder.glob("*/run.nc")]
    started = time.monotonic()
    guard(*paths)
    once = time.monotonic() - started
    started = time.monotonic()
    guard(*paths)
    assert time.monotonic() - started < min(once, 0.05), "a file that passed is not looked at again"
    os.utime(paths[0], (1, 1))
    allow(max_objects=3)
    with pytest.raises(QdxError):
        guard(paths[0])
    build(folder, console=False, formats=["txt"], trust=True)
