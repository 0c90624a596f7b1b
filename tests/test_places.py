"""Odd places to print to and to write into: one line, the right exit status, and the files are whole.

`tests/test_harsh.py` has Ctrl-C, a disk that fills up while rows are recorded, and paths of odd characters.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import netCDF4
import numpy as np
import pytest

import qdx as package
from tests import warm
from tests.dataset.test_damage import uncheck
from tests.helpers import write_sweep
from tests.slowly import slow_but
from tests.sweeping import PLAIN, SMALL, checkpoints, environment
from tests.test_harsh import SYNCHRONISED, started, until

ASCII = {"PYTHONIOENCODING": "ascii"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
# Python takes UTF-8 where a locale is C, unless it is told not to.
LANG_C = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
QUICK = {
    "metrics": {"l2": {"_target_": "qdx.metrics.l2"}},
    "analyses": {"effects": {"_target_": "qdx.analysis.effects"}},
    "report": {"formats": ["txt"], "figures": False},
}
TINY = [
    *(s for s in SMALL if not s.startswith(("repeats", "prompts.references"))),
    *("prompts.references=1", "repeats=1", *PLAIN),
]


def shell(command: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``python -m …`` with the redirections of a shell; ``{}`` stands for it with its arguments.

    Where neither streams nor environment nor the folder's name are out of the ordinary it is a fork.
    """
    if command == "{}" and not variables and str(cwd).isascii() and str(cwd).isprintable():
        module, *given = arguments
        done = warm.run(module, given, cwd, environment(), timeout=600)
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.encode(), done.stderr.encode()
        )
    line = command.replace("{}", shlex.join([sys.executable, "-m", *arguments]))
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=cwd,
        capture_output=True,
        timeout=600,
        env={**environment(), **variables},
    )


def folder(path: Path, **settings: object) -> Path:
    """A sweep of two configs that is not merged yet and whose report is quick to make."""
    write_sweep(path, ["awq", "gptq"], repeats=1)
    plan = json.loads((path / "sweep.json").read_text())
    (path / "sweep.json").write_text(json.dumps({**plan, **QUICK, **settings}))
    return path


def whole(path: Path, labels: list[str]) -> None:
    """The merged file and the report of a sweep are there."""
    with package.open(path / "sweep.nc") as tree:
        assert tree["replay"].config.values.tolist() == labels and "l2" in tree["metrics"].children
    assert (path / "report.txt").read_text().startswith("qdx report") and (path / "summary.json").exists()
    assert not [*path.rglob("*.part"), *path.rglob("*.lock")]


def lines(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """What a command said on standard error, without warnings of libraries."""
    said = done.stderr.decode("utf-8", "replace")
    assert "Traceback" not in said, said
    return [line for line in said.splitlines() if line.startswith("qdx")]


# What a shell makes of the streams, and what the environment says of their encoding.
STREAMS: dict[str, tuple[str, dict[str, str]]] = {
    "ascii": ("{}", ASCII),
    "latin-1": ("{}", LATIN),
    "LANG=C": ("{}", LANG_C),
    "no standard output": ("{} >&-", {}),
    "no standard error": ("{} 2>&-", {}),
    "no standard streams": ("{} <&- >&- 2>&-", {}),
    "head": ("{} | head -1", {}),
    "head of both": ("{} 2>&1 | head -c 1", {}),
}


@pytest.mark.parametrize("case", slow_but(["ascii", "no standard streams"], STREAMS))
@pytest.mark.slow
def test_a_report_is_made_whatever_it_is_printed_to(case: str, tmp_path: Path) -> None:
    line, variables = STREAMS[case]
    path = folder(tmp_path / "s", labels=["awq", "gptq"])
    done = shell(line, "qdx.report", str(path), "--print", "full", cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert lines(done) == []
    whole(path, ["awq", "gptq"])
    text = (path / "report.txt").read_text()
    if "head" not in case and "output" not in case and "streams" not in case:
        coding = {"ascii": "ascii", "LANG=C": "ascii", "latin-1": "latin-1"}.get(case, "utf-8")
        printed = done.stdout.decode(coding)
        assert len(printed.splitlines()) == len(text.splitlines())
        assert printed.count("?") == text.count("?"), (
            "every character of qdx's own has another way to be written"
        )


COMMANDS = {
    "plan": ["qdx.plan"],
    "plan --help": ["qdx.plan", "--help"],
    "commit": ["qdx.commit", "s", "c.nc"],
    "qdx --help": ["qdx", "--help"],
    "a mistake": ["qdx", "quant=nonsensé–"],
}


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a merged sweep ``s`` in it."""
    at = tmp_path_factory.mktemp("merged")
    done = shell("{}", "qdx.report", str(folder(at / "s")), cwd=at)
    assert done.returncode == 0, done.stderr
    return at


@pytest.mark.parametrize("name", slow_but(["qdx --help", "a mistake"], COMMANDS))
def test_every_command_can_print_to_a_terminal_of_ascii_and_to_nothing(name: str, merged: Path) -> None:
    expected = 2 if name == "a mistake" else 0
    for line, variables in (("{}", ASCII), ("{}", LANG_C), ("{} <&- >&- 2>&-", {}), ("{} | head -c 1", {})):
        done = shell(line, *COMMANDS[name], cwd=merged, **variables)
        assert done.returncode == expected, (line, done.stdout, done.stderr)
        assert len(lines(done)) == (1 if expected and "2>" not in line else 0), (line, done.stderr)
        if variables:
            done.stdout.decode("ascii")
            done.stderr.decode("ascii")


@pytest.mark.slow
def test_what_a_full_disk_does_not_print_is_said_and_the_files_are_there(tmp_path: Path) -> None:
    path = folder(tmp_path / "s")
    done = shell("{} > /dev/full", "qdx.report", str(path), cwd=tmp_path)
    assert done.returncode == 1
    (said,) = lines(done)
    assert said.startswith("qdx: error: standard output: ") and "No space left" in said
    whole(path, ["awq", "gptq"])
    assert shell("{} 2> /dev/full", "qdx.report", str(path), cwd=tmp_path).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("line", ["{} >&-", "{} 2>&-", "{} | head -1", "{} > /dev/full"])
def test_a_sweep_is_whole_whatever_it_is_printed_to(
    line: str, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    arguments = ["qdx", *TINY, *checkpoints(tiny_models), "hydra.sweep.dir=out"]
    done = shell(line, *arguments, cwd=tmp_path, **(ASCII if "-" in line else {}))
    assert done.returncode == (1 if "full" in line else 0), done.stderr
    assert len(lines(done)) == done.returncode, done.stderr
    whole(tmp_path / "out", ["awq"])
    with package.open(tmp_path / "out" / "awq") as tree:
        assert tree.attrs["status"] == "complete"


@pytest.mark.slow
def test_no_bar_is_drawn_into_a_file_whatever_colours_are_asked_for(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    arguments = ["qdx", *TINY, *checkpoints(tiny_models), "hydra.sweep.dir=out"]
    done = shell("{}", *arguments, cwd=tmp_path, NO_COLOR="1", FORCE_COLOR="1", TTY_INTERACTIVE="1")
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"awq: running" in done.stderr


@pytest.mark.slow
def test_a_folder_whose_name_is_not_text_is_refused_before_anything_runs(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff"))
    odd.mkdir()
    folder(tmp_path / "s").rename(odd / "s")
    for arguments in (["qdx", "model=local", "model.checkpoint.awq=/no/model"], ["qdx.report", "s"]):
        done = shell("{}", *arguments, cwd=odd)
        assert done.returncode == 2, done.stderr
        (said,) = lines(done)
        assert "is not UTF-8 text" in said and "choose another" in said and "\ufffd" in said
    assert sorted(path.name for path in odd.iterdir()) == ["s"]
    assert not (odd / "s" / "sweep.nc").exists()


@pytest.mark.slow
def test_a_folder_whose_name_acts_on_a_terminal_is_printed_without_that(tmp_path: Path) -> None:
    odd = tmp_path / "esc\x1b[31m"
    path = folder(odd / "s")
    done = shell("{}", "qdx.report", str(path), cwd=odd)
    assert done.returncode == 0, done.stderr
    whole(path, ["awq", "gptq"])
    assert b"\x1b" not in done.stdout + done.stderr + (path / "report.txt").read_bytes()
    assert "esc\ufffd[31m" in done.stdout.decode()
    refused = shell("{}", "qdx", "model=local", "model.checkpoint.awq=./no", cwd=odd)
    assert refused.returncode == 2 and b"\x1b" not in refused.stdout + refused.stderr
    (odd / "out").touch()
    refused = shell("{}", "qdx", "hydra.sweep.dir=out", cwd=odd)
    assert refused.returncode == 2 and len(lines(refused)) == 1
    assert (
        b"\x1b" not in refused.stdout + refused.stderr and "esc\ufffd[31m/out is a file" in lines(refused)[0]
    )


def taken_file(at: Path) -> Path:
    (at / "out").touch()
    return at / "out"


def below_a_file(at: Path) -> Path:
    (at / "out").touch()
    return at / "out" / "deeper"


def dangling(at: Path) -> Path:
    (at / "out").symlink_to(at / "nowhere")
    return at / "out"


def holds_folder(name: str) -> Callable[[Path], Path]:
    def make(at: Path) -> Path:
        (at / "out" / name).mkdir(parents=True)
        return at / "out"

    return make


PLACES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file": (taken_file, "out is a file and no folder"),
    "below a file": (below_a_file, "out is a file and no folder"),
    "a link to nothing": (dangling, "nowhere, which is not there"),
    "sweep.nc is a folder": (holds_folder("sweep.nc"), "sweep.nc is a folder"),
    "sweep.lock is a folder": (holds_folder("sweep.lock"), "sweep.lock is a folder"),
    "sweep.json is a folder": (holds_folder("sweep.json"), "sweep.json is a folder"),
    "report.txt.part is a folder": (holds_folder("report.txt.part"), "report.txt.part is a folder"),
}


@pytest.mark.parametrize("case", slow_but(["a file", "sweep.nc is a folder"], PLACES))
def test_a_place_where_no_sweep_can_be_is_named_before_anything_runs(case: str, tmp_path: Path) -> None:
    make, expected = PLACES[case]
    path = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    nowhere = ["model=local", "model.checkpoint.awq=/no/model"]
    done = shell("{}", "qdx", *nowhere, f"hydra.sweep.dir={path}", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (said,) = lines(done)
    assert said.startswith("qdx: error: ") and expected in said, said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", slow_but(["sweep.nc"], ["sweep.nc", "report.lock", "report.txt", "summary.json"])
)
def test_a_folder_in_the_place_of_a_reports_file_is_named(name: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "s")
    (path / name).mkdir()
    done = shell("{}", "qdx.report", str(path), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (said,) = lines(done)
    assert f"{name} is a folder, and qdx writes a file of that name: rename it" in said


def test_a_file_in_the_place_of_a_jobs_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "awq").touch()
    nowhere = ["model=local", "model.checkpoint.awq=/no/model"]
    done = shell("{}", "qdx", *nowhere, "hydra.sweep.dir=out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (said,) = lines(done)
    assert f"{tmp_path / 'out' / 'awq'} is a file, and the results of config 'awq' go there" in said


REMOVING = """
import pathlib, qdx
from qdx.analysis import effects

@qdx.register("{kind}", "removing")
def removing({arguments}):
    \"\"\"Removes a run while the report is made.\"\"\"
    pathlib.Path("s/{what}").unlink(missing_ok=True)
    {rest}
"""
MOMENTS = {
    "measuring": ("metric", "p, q", "return (p - q).abs().sum(-1)"),
    "analysing": ("analysis", "tree", "return effects(tree)"),
}


@pytest.mark.parametrize("what", slow_but(["gptq/run.nc"], ["gptq/run.nc", "awq/run.nc"]))
@pytest.mark.parametrize("moment", slow_but(["measuring"], MOMENTS))
@pytest.mark.slow
def test_a_run_that_is_deleted_while_its_report_is_made_is_named(
    moment: str, what: str, tmp_path: Path
) -> None:
    kind, arguments, rest = MOMENTS[moment]
    (tmp_path / "plugins").mkdir()
    text = REMOVING.format(kind=kind, arguments=arguments, rest=rest, what=what)
    (tmp_path / "plugins" / "removing.py").write_text(text)
    node = {"removing": {"_target_": "qdx_plugins.removing.removing"}}
    key = {"metric": "metrics", "analysis": "analyses"}[kind]
    path = folder(tmp_path / "s", **{key: node})
    done = shell("{}", "qdx.report", "s", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert not (path / what).exists(), "the plug-in ran"
    lines(done)
    text = " ".join((path / "report.txt").read_text().split())
    assert f"{what}: was deleted while this report was made" in text, text
    with package.open(path / "sweep.nc") as tree:
        assert tree["replay"].config.values.tolist() == ["awq", "gptq"]


@pytest.mark.slow
def test_a_run_that_is_deleted_before_it_is_merged_is_missing(tmp_path: Path) -> None:
    path = folder(tmp_path / "s")
    (path / "gptq" / "run.nc").unlink()
    done = shell("{}", "qdx.report", "s", cwd=tmp_path)
    assert done.returncode == 1 and "gptq" in (path / "report.txt").read_text()


def fill(path: Path, left: int = 0) -> Path:
    """Fill a disk up to some bytes that are left."""
    filler = path / "filler"
    with filler.open("wb", buffering=0) as stream, pytest.raises(OSError):
        while True:
            stream.write(bytes(4096))
    os.truncate(filler, max(0, filler.stat().st_size - left))
    return filler


@pytest.mark.parametrize("left", slow_but([40_960], [0, 40_960, 204_800]))
@pytest.mark.slow
def test_a_disk_that_is_full_when_the_report_is_made_is_named(left: int, small_disk: Path) -> None:
    path = folder(small_disk / "s")
    fill(small_disk, left)
    done = shell("{}", "qdx.report", str(path), cwd=small_disk.parent)
    assert done.returncode == 1, done.stderr
    (said,) = lines(done)
    assert said.startswith("qdx: error: ") and str(path) in said and "free" in said, said
    assert not list(path.rglob("*.part"))
    (small_disk / "filler").unlink()
    assert shell("{}", "qdx.report", str(path), cwd=small_disk.parent).returncode == 0
    whole(path, ["awq", "gptq"])


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["engine", "process"])
def test_a_disk_that_fills_up_while_a_job_runs_is_named_last(
    scope: str, small_disk: Path, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    arguments = [*TINY, *checkpoints(tiny_models), f"repeat_scope={scope}", "repeats=2"]
    log = tmp_path / "log"
    process = started(*arguments, f"hydra.sweep.dir={small_disk}/s", cwd=tmp_path, log=log)
    # The last moment that is the same on every machine: the model is loaded, and no row is written.
    until(lambda: "loading the model" in log.read_text(), process, log)
    fill(small_disk)
    assert process.wait() == 1, log.read_text()
    said = [line for line in log.read_text().splitlines() if line.startswith("qdx")]
    assert "Traceback" not in log.read_text(), log.read_text()
    assert "No space left" in "\n".join(said) or "free some" in said[-1], said
    assert "child process exited" not in "\n".join(said), said
    assert not list(small_disk.rglob("run.nc"))


def children(process: int) -> list[int]:
    """Processes of a group that are there and no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == process and fields[0] != "Z" and int(path.parent.name) != process:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whom"), [("SIGTERM", "parent"), ("SIGTERM", "group"), ("SIGHUP", "parent")]
)
def test_a_signal_that_asks_to_end_leaves_one_line_and_no_child(
    number: str, whom: str, tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    arguments = [*TINY, *checkpoints(tiny_models), "hydra.sweep.dir=out"]
    log = tmp_path / "log"
    process = started(*arguments, "repeats=5000", cwd=tmp_path, log=log)
    until(lambda: bool(re.search(SYNCHRONISED, log.read_text())), process, log)
    (os.killpg if whom == "group" else os.kill)(process.pid, getattr(signal, number))
    assert process.wait(60) == 128 + getattr(signal, number)
    said = [line for line in log.read_text().splitlines() if line.startswith("qdx")]
    assert said == [
        f"qdx: ended by {number}: what is finished is kept, and the same command goes on from there"
    ]
    assert "Traceback" not in log.read_text()
    limit = time.monotonic() + 10
    while children(process.pid):
        assert time.monotonic() < limit, "a child outlives its parent"
        time.sleep(0.05)
    with package.open(tmp_path / "out" / "awq" / "run.nc.part") as tree:
        assert tree.attrs["status"] != "complete" and tree["replay"]["captured"].values.any()
    assert not list((tmp_path / "out").glob("*.lock"))


@pytest.mark.slow
def test_a_child_that_a_signal_ends_is_a_failed_job(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    arguments = [*TINY, *checkpoints(tiny_models), "hydra.sweep.dir=out"]
    log = tmp_path / "log"
    process = started(*arguments, "repeats=5000", cwd=tmp_path, log=log)
    until(lambda: bool(re.search(SYNCHRONISED, log.read_text())), process, log)
    for child in children(process.pid):
        os.kill(child, signal.SIGTERM)
    assert process.wait(120) == 1
    assert log.read_text().splitlines()[-1] == "qdx: failed: awq: child process killed by SIGTERM"


@pytest.mark.slow
def test_a_report_that_a_signal_ends_leaves_the_earlier_one(tmp_path: Path) -> None:
    path = folder(tmp_path / "s")
    assert shell("{}", "qdx.report", "s", cwd=tmp_path).returncode == 0
    before = (path / "sweep.nc").read_bytes()
    (tmp_path / "plugins").mkdir()
    waiting = (
        'import time, qdx\n@qdx.register(\'metric\', \'waiting\')\ndef waiting(p, q):\n    """Waits."""\n'
        "    print('waiting', flush=True)\n    time.sleep(1)\n"
    )
    (tmp_path / "plugins" / "waiting.py").write_text(waiting)
    plan = json.loads((path / "sweep.json").read_text())
    metrics = {"waiting": {"_target_": "qdx_plugins.waiting.waiting"}}
    (path / "sweep.json").write_text(json.dumps({**plan, "metrics": metrics}))
    with subprocess.Popen(
        [sys.executable, "-m", "qdx.report", "s"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "waiting\n"
        process.terminate()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 143
    assert said.splitlines()[-1].startswith("qdx: ended by SIGTERM: ") and "Traceback" not in said, said
    assert (path / "sweep.nc").read_bytes() == before
    assert not [*path.rglob("*.part"), *path.rglob("*.lock")]


@pytest.mark.parametrize("name", slow_but(["logsumexp"], ["top_logit", "logsumexp"]))
@pytest.mark.slow
def test_a_value_that_became_nan_is_blamed_on_its_row(name: str, tmp_path: Path) -> None:
    metrics = {key: {"_target_": f"qdx.metrics.{key}"} for key in ("l2", "margin", "top1")}
    path = folder(tmp_path / "s", metrics=metrics)
    run = path / "gptq" / "run.nc"
    uncheck(run)  # with checksums the block is found to be another one, and named
    key: tuple[int, ...] = (0, 0, 1, 4) if name == "logsumexp" else (0, 0, 1, 4, 0)
    with netCDF4.Dataset(run, "r+") as file:
        variable = file["replay"][name]
        variable.set_auto_maskandscale(False)
        assert np.isfinite(variable[key])
        variable[key] = np.nan
        position = int(file["replay"]["position"][4])
    done = shell("{}", "qdx.report", "s", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    lines(done)
    text = " ".join((path / "report.txt").read_text().split())
    said = f"/replay/top_logit or logsumexp of repeat 0, reference ref_1, position {position} is not a number"
    assert said in text and "gptq/run.nc" in text
    assert "register nan_when" not in text and "metric 'margin'" not in text
    with package.open(path / "sweep.nc") as tree:
        for metric in metrics:
            values = tree[f"metrics/{metric}/replay"][metric].sel(config="awq", config_b="gptq")
            row = values.sel(reference="ref_1", position=position)
            others = values.sel(reference="ref_0", position=position)
            assert bool(row.isnull()) and bool(others.notnull()), metric
