"""No file is written through a link of a stranger's folder, and what is published says nobody's name."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray as xr

import qdx
from qdx import new_file
from qdx.commit import KEPT, commit, contents, publish
from qdx.commit import main as commit_main
from qdx.dataset import merge
from qdx.dataset.join_repeats import join_repeats
from qdx.errors import QdxError
from qdx.locking import locked
from qdx.prompts import Transcripts
from qdx.report import build
from qdx.sweep.job import run, write_status
from qdx.verification import ledger
from qdx.verification.sections import adopt_calibration
from tests.helpers import write_run
from tests.hostile import making
from tests.slowly import slow_but

PACKAGE = Path(qdx.__file__).parent


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.honest(tmp_path_factory.mktemp("honest") / "s")


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A file outside of the folder, which nothing may change."""
    path = tmp_path / "authorized_keys"
    path.write_text("mine")
    return path


def copied(sweep: Path, target: Path) -> Path:
    shutil.copytree(sweep, target)
    return target


FILES = [
    *(f"report.{suffix}{part}" for suffix in ("txt", "html", "md") for part in ("", ".part")),
    "summary.json", "summary.json.part", "sweep.nc.part", "sweep.json.part", "report.lock", "sweep.lock",
    "multirun.yaml", "figures/l2.svg", "producers.nc.part", "calibration/sweep.nc.part",
    "awq/status.json.part", "awq/run.nc.part", "awq/run.nc.new", "awq/run.nc.rows",
]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_report_of_a_folder_with_a_link_writes_nothing_through_it(
    name: str, sweep: Path, mine: Path, tmp_path: Path
) -> None:
    folder = copied(sweep, tmp_path / "s")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(mine)
    with pytest.raises(QdxError, match=r"is a link to .*authorized_keys, out of its folder"):
        build(folder, console=False, formats=["txt", "html", "md"], figures=True)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["figures", "calibration", "awq"])
def test_a_folder_that_is_a_link_is_refused(name: str, sweep: Path, tmp_path: Path) -> None:
    folder, outside = copied(sweep, tmp_path / "s"), tmp_path / "outside"
    if (folder / name).exists():
        shutil.move(folder / name, outside)
    outside.mkdir(exist_ok=True)
    before = sorted(outside.rglob("*"))
    (folder / name).symlink_to(outside)
    with pytest.raises(QdxError, match=f"{name} is a link to"):
        build(folder, console=False, formats=["txt"], figures=True)
    assert sorted(outside.rglob("*")) == before


@pytest.mark.parametrize("name", ["sweep.json", "awq/status.json", "report.lock", "awq/run.nc.rows"])
def test_a_fifo_in_a_folder_is_not_waited_for(name: str, sweep: Path, tmp_path: Path) -> None:
    folder = copied(sweep, tmp_path / "s")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(QdxError, match=f"{name} is a fifo, socket or device"):
        build(folder, console=False, formats=["txt"])


def test_a_list_of_jobs_that_is_not_a_list_is_not_read(sweep: Path, tmp_path: Path) -> None:
    folder = copied(sweep, tmp_path / "s")
    with (folder / "sweep.json").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(QdxError, match="not a regular file of at most 64 MiB"):
        build(folder, console=False, formats=["txt"])


def test_a_label_that_begins_a_line_of_the_report_is_refused(sweep: Path, tmp_path: Path) -> None:
    folder = copied(sweep, tmp_path / "s")
    plan = json.loads((folder / "sweep.json").read_text())
    for label in ("awq\n\nVERDICT  1 claim: 1 confirmed", "awq\x1b[2J", "aw\u202eq"):
        (folder / "sweep.json").write_text(json.dumps({**plan, "labels": [label]}))
        with pytest.raises(QdxError, match="is not a name of a folder"):
            build(folder, console=False, formats=["txt"])


@pytest.mark.slow
def test_a_link_that_stays_in_the_folder_is_replaced_and_not_followed(sweep: Path, tmp_path: Path) -> None:
    folder = copied(sweep, tmp_path / "s")
    kept = folder / "kept.txt"
    kept.write_text("kept")
    names = [
        "report.txt",
        "report.txt.part",
        "report.html.part",
        "summary.json.part",
        "sweep.nc.part",
        "report.lock",
    ]
    for name in names:
        (folder / name).symlink_to("kept.txt")
    report = build(folder, console=False, formats=["txt", "html"])
    assert kept.read_text() == "kept" and not report.failed
    assert [path.name for path in folder.iterdir() if path.is_symlink()] == []


@pytest.mark.slow
def test_the_sweep_folder_itself_may_be_a_link_of_the_users(sweep: Path, tmp_path: Path) -> None:
    copied(sweep, tmp_path / "disk")
    (tmp_path / "s").symlink_to(tmp_path / "disk")
    assert not build(tmp_path / "s", console=False, formats=["txt"]).failed


def _status(folder: Path) -> None:
    write_status(folder, "error", "trace")


def _manifest(folder: Path) -> None:
    from qdx.sweep.callback import _write_manifest

    (folder / "sweep.json").unlink(missing_ok=True)
    _write_manifest(folder, {"labels": ["awq"]})


def _join(folder: Path) -> None:
    one = folder.with_name("one.nc")
    write_run(one, "awq", repeats=1)
    join_repeats([one, one], folder / "run.nc", {})


def _lock(folder: Path) -> None:
    with locked(folder / "some.lock", wait=True):
        assert not (folder / "some.lock").is_symlink()


WRITERS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "status": ("status.json.part", lambda folder, sweep: _status(folder)),
    "status itself": ("status.json", lambda folder, sweep: _status(folder)),
    "plan": ("sweep.json.part", lambda folder, sweep: _manifest(folder)),
    "producers": ("producers.nc.part", lambda folder, sweep: Transcripts(str(sweep)).keep(folder)),
    "commitments": ("commitments.nc.part", lambda folder, sweep: commit(sweep, folder / "commitments.nc")),
    "published": ("published.nc.part", lambda folder, sweep: publish(sweep, folder / "published.nc")),
    "joined repeats": (
        "run.nc.part",
        lambda folder, sweep: _join(folder),
    ),
    "ledger": (
        "c.verifier.json.part",
        lambda folder, sweep: ledger.write(
            folder / "c.verifier.json", ledger.Ledger("a" * 64, "b" * 64, ledger.now())
        ),
    ),
    "lock": ("some.lock", lambda folder, sweep: _lock(folder)),
    "text": ("x.part", lambda folder, sweep: new_file.write_text(folder / "x", "x")),
    "copy": ("x.part", lambda folder, sweep: new_file.copy(sweep / "sweep.json", folder / "x")),
}


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("case", WRITERS)
def test_every_writer_makes_a_new_file(
    case: str, dangling: bool, sweep: Path, mine: Path, tmp_path: Path
) -> None:
    """Each by itself, also where no look at the folder came before."""
    name, write = WRITERS[case]
    folder = tmp_path / "folder"
    folder.mkdir()
    if dangling:
        mine.unlink()
    (folder / name).symlink_to(mine)
    write(folder, sweep)
    assert not mine.exists() if dangling else mine.read_text() == "mine"
    assert [path.name for path in folder.iterdir() if path.is_symlink() or path.name.endswith(".part")] == []


def test_a_fifo_in_the_place_of_a_lock_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "some.lock")
    _lock(tmp_path)


def test_a_calibration_is_not_copied_through_a_link(tmp_path: Path, sweep: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "mine" / "calibration").symlink_to(tmp_path / "outside")
    with pytest.raises(QdxError, match=r"calibration is a link to .*: nothing is written through it"):
        new_file.make_folder(tmp_path / "mine" / "calibration")
    with pytest.raises(QdxError, match="is not a verifier's"):
        folder = copied(sweep, tmp_path / "c")
        shutil.copy(folder / "sweep.nc", folder / "producers.nc")
        adopt_calibration(tmp_path / "mine", folder)
    assert not list((tmp_path / "outside").iterdir())


def test_a_job_in_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "awq").symlink_to(tmp_path / "outside")
    with pytest.raises(QdxError, match="awq is a link to"):
        run("{}", str(tmp_path / "awq"), "")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["multirun.yaml", "awq"], ["multirun.yaml", "awq/qdx.log", "sweep.lock", "awq/run.nc.new", "awq"]
    ),
)
def test_a_sweep_that_is_resumed_in_a_strangers_folder_writes_nothing_through_links(
    name: str, sweep: Path, mine: Path, tmp_path: Path
) -> None:
    folder = copied(sweep, tmp_path / "s")
    if (folder / name).is_dir():
        shutil.rmtree(folder / name)
    (folder / name).symlink_to(mine)
    done = making.python(
        "-m", "qdx", "-m", "quant=awq", f"hydra.sweep.dir={folder}", "model=synthetic", cwd=tmp_path
    )
    assert done.returncode == 2 and "is a link to" in done.stderr, making.say(done)
    assert mine.read_text() == "mine"


# Writing by other means, and why each is not into a folder that may be a stranger's.
ELSEWHERE = {
    "new_file.py": "it is the means",
    "models/": "checkpoints, in the cache or in a folder that the call makes",
    "dataset/encoding.py": "a test file in a temporary folder that it makes",
    "capture/recorder.py": "unlinks the name before; its folder was made by qdx.sweep.job",
    "dataset/journal.py": "unlinks the name, then O_EXCL",
    "locking.py": "O_NOFOLLOW",
    "sweep/launchers.py": "a fifo in a temporary folder that it makes",
    "program.py": "/dev/null",
    "legacy/convert.py": "a name that its user gave",
    "dataset/write_sweep.py": "a name that its caller made new",
    "dataset/checksums.py": "behind the end of a file that its caller made new",
    "dataset/join_repeats.py": "after new_file.create",
    "commit.py": "within new_file.replacing",
    "challenge.py": "within new_file.replacing",
    "verification/ledger.py": "within new_file.replacing",
    "prompts/_record_file.py": "within new_file.replacing",
    "report/runtime.py": "a new temporary file in the cache, renamed",
    "backends/": "a scratch file of the engine's",
}
MEANS = (
    "write_text",
    "write_bytes",
    "copyfile",
    "copy2",
    "copytree",
    "copyfileobj",
    "to_netcdf",
    "touch",
    "symlink_to",
)


def writers(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        mode = any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts)
        opens = (called.endswith("open") and mode) or called == "os.open"
        netcdf = called.endswith("Dataset") and mode
        named = called.rpartition(".")[2] in MEANS and not called.startswith("new_file.")
        if opens or netcdf or named:
            found.append(f"line {node.lineno}: {called}")
    return found


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.relative_to(PACKAGE).as_posix()
)
def test_no_source_writes_by_other_means(file: Path) -> None:
    name = file.relative_to(PACKAGE).as_posix()
    if not any(name == place or (place.endswith("/") and name.startswith(place)) for place in ELSEWHERE):
        reading = ("dataset/structure_check.py",)
        assert name in reading or not writers(file.read_text(encoding="utf-8"))


def test_the_search_finds_what_it_forbids() -> None:
    lines = ["p.write_text('x')", "open(p, 'w')", "p.open('a')", "netCDF4.Dataset(p, 'r+')", "open(p)"]
    source = "\n".join([*lines, "new_file.write_text(p, 'x')"])
    assert [line.partition(":")[0] for line in writers(source)] == ["line 1", "line 2", "line 3", "line 4"]


SECRETS = ("secret-host", "secret-kernel", "/home/secret", "secret_config", "content 0")


def texts(path: Path) -> str:
    """Every text and every name of a file."""
    with qdx.open(path) as tree:
        found = [str(tree.attrs)]
        for node in tree.subtree:
            dataset = node.to_dataset()
            found += [str(dataset.attrs)]
            for name, variable in dataset.variables.items():
                found += [str(name), str(variable.attrs)]
                found += [str(v) for v in variable.values.flat] if variable.dtype.kind in "OUST" else []
    return "\n".join(found)


@pytest.mark.parametrize("make", [commit, publish])
def test_a_published_file_says_no_name_and_keeps_what_a_verdict_needs(
    make: Callable[[Path, Path], Path], sweep: Path, tmp_path: Path
) -> None:
    whole = texts(sweep / "sweep.nc")
    assert all(secret in whole for secret in SECRETS), "the test looks for what is there"
    path = make(sweep, tmp_path / "p.nc")
    said = texts(path)
    assert [secret for secret in SECRETS if secret in said] == []
    with qdx.open(path) as tree, qdx.open(sweep / "sweep.nc") as original:
        stated, before = tree["provenance"].to_dataset(), original["provenance"].to_dataset()
        for name in (
            "torch_version",
            "cpu",
            "cuda_version",
            "code_sha256",
            "tokenizer_sha256",
            "references_sha256",
        ):
            assert stated[name].values.tolist() == before[name].values.tolist(), name
        assert json.loads(str(stated["weights_sha256"].values[0])) == {"model.safetensors": "a" * 64}
        assert set(map(str, stated.data_vars)) <= {*KEPT, "kernel_class", "kernel"}
        assert "time_utc" not in tree.attrs and "history" not in tree.attrs
    assert Transcripts(str(path)).file.sha256 == Transcripts(str(sweep)).file.sha256


def test_the_facts_of_an_environment_class_are_all_kept() -> None:
    """Named by hand, not taken from the code: a fact that is dropped turns a refutation into "undecided"."""
    from qdx.commit import KEPT_PREFIXES, kept_provenance

    facts = [
        "compute_capability",
        "sm_count",
        "gpu",
        "cpu",
        "threads",
        "engine",
        "engine_version",
        "torch_version",
        "cuda_version",
        "cuda_runtime",
        "cublas_version",
        "cublaslt_version",
        "cudnn_version",
        "cpu_capability",
        "blas",
        "kernel_environment",
        "torch_switches",
        "model_runner",
        "compiled_kernels",
        "batch_layout",
        "sampling",
        "weights_sha256",
        "tokenizer_sha256",
        "references_sha256",
        "code_sha256",
        "dtype",
        "observed_kernel",
        "requested_kernel",
        "backend_block_size",
        "sketch_seed",
        "vocab",
        "repeat_processes",
        "schema_version",
        "qdx_version",
    ]
    names = (
        "host",
        "platform",
        "command_line",
        "config_yaml",
        "git_commit",
        "prompts",
        "model_source",
        "python_version",
    )
    stored = xr.Dataset({name: ("config", ["x"]) for name in (*facts, *names)}, {"config": ["awq"]})
    assert set(map(str, kept_provenance(stored).data_vars)) == set(facts)
    assert "backend_" in KEPT_PREFIXES


def test_rows_of_a_published_sweep_are_the_sweeps(sweep: Path, tmp_path: Path) -> None:
    path = publish(sweep, tmp_path / "p.nc")
    with qdx.open(path) as tree, qdx.open(sweep / "sweep.nc") as original:
        for phase in ("prefill", "decode", "replay"):
            for name in ("row_hash", "sketch", "top_logit", "captured"):
                xr.testing.assert_identical(
                    tree[phase][name].drop_attrs(), original[phase][name].drop_attrs()
                )


def test_the_command_lists_what_it_keeps(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(sweep, tmp_path / "s")
    merge(folder, folder / "sweep.nc")
    assert commit_main([str(folder), "--sweep"]) == 0
    said = capsys.readouterr().out
    assert "it holds, and nothing else:" in said and contents(folder / "published.nc") in said
    assert "/provenance: " in said and "torch_version" in said and ", host" not in said
    assert commit_main([str(folder), str(folder / "sweep.nc"), "--sweep"]) == 2
    assert "is the file to read" in capsys.readouterr().err
