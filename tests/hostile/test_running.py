"""Nothing of a folder that one only reads is imported, and no command that it offers runs anything else."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from qdx.commands import checked, own_command, quoted
from qdx.plugins import _discovery, folders
from qdx.process import command, spawn
from qdx.report import build
from tests.hostile import making
from tests.slowly import slow_but
from tests.sweeping import SMALL, checkpoints, qdx

# Of packages and of the standard library, imported early and late.
MODULES = (
    "torch",
    "numpy",
    "xarray",
    "netCDF4",
    "h5py",
    "typing",
    "json",
    "argparse",
    "hydra",
    "omegaconf",
    "dask",
)
MARK = (
    "import pathlib\npathlib.Path({mark!r}).touch()\nraise SystemExit('imported from the working folder')\n"
)
PLUGIN = """
import pathlib
import qdx
pathlib.Path({mark!r}).touch()
@qdx.register("metric", "stolen")
def stolen(p, q):
    return (p - q).abs().sum(-1)
"""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return making.honest(tmp_path_factory.mktemp("honest") / "s")


@pytest.fixture
def sweep(honest: Path, tmp_path: Path) -> Path:
    """A stranger's sweep folder with modules and plug-ins in it."""
    folder = Path(shutil.copytree(honest, tmp_path / "s"))
    for name in MODULES:
        (folder / f"{name}.py").write_text(MARK.format(mark=str(tmp_path / "mark")))
    (folder / "plugins").mkdir()
    (folder / "plugins" / "stolen.py").write_text(PLUGIN.format(mark=str(tmp_path / "mark")))
    return folder


def test_the_marks_are_made_when_a_module_is_imported(sweep: Path, tmp_path: Path) -> None:
    done = making.python("-c", "import torch", cwd=sweep)
    assert done.returncode and (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "arguments",
    slow_but(
        [["qdx.report", ".", "--formats", "txt"], ["qdx", "-m", "quant=nonsense"]],
        [
            ["qdx.report", ".", "--formats", "txt"],
            ["qdx.report", "--help"],
            ["qdx.commit", ".", "out.nc"],
            ["qdx.challenge", "--help"],
            ["qdx.open_rows", "--help"],
            ["qdx", "--help"],
            ["qdx", "-m", "quant=nonsense"],
            ["qdx.legacy", "--help"],
        ],
    ),
    ids=" ".join,
)
@pytest.mark.slow
def test_no_module_and_no_plugin_of_the_working_folder_is_imported(
    arguments: list[str], sweep: Path, tmp_path: Path
) -> None:
    done = making.python("-m", *arguments, cwd=sweep)
    assert not (tmp_path / "mark").exists()
    expected = {"nonsense": 2}.get(arguments[-1].rpartition("=")[2], 0)
    assert done.returncode == expected, making.say(done)
    if arguments[0] == "qdx":
        assert "the working folder holds results (sweep.json)" in done.stderr
        assert "its plugins/ are left out" in done.stderr and "stolen" not in done.stdout


def served(arguments: list[str], request: dict[str, str], cwd: Path, **environment: str) -> str:
    """Standard error of a child that gets a request, while its parent lives."""
    with subprocess.Popen(
        arguments,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PATH": "/usr/bin", **environment},
    ) as child:
        assert child.stdin is not None and child.stderr is not None
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
        return child.stderr.read().decode()


def test_the_childs_path_does_not_begin_with_the_working_folder(sweep: Path, tmp_path: Path) -> None:
    request = {"do": "run", "config": "{}", "directory": str(tmp_path / "job"), "command_line": ""}
    (tmp_path / "job").mkdir()
    said = served(command("qdx.sweep.job"), request, cwd=sweep, PYTHONPATH=str(making.ROOT))
    assert not (tmp_path / "mark").exists()
    assert "imported" not in said and "qdx: error" in said, "it came as far as the config, which is empty"
    ended = spawn(request, cwd=str(sweep), environment={"PYTHONPATH": str(making.ROOT)})
    assert ended.startswith("ConfigAttributeError: Missing key label"), ended
    assert not (tmp_path / "mark").exists()


def test_the_child_finds_qdx_where_its_parent_did(tmp_path: Path) -> None:
    """Also where only the working folder made it importable, as in a checkout."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from qdx.process import command; "
        "print(*command('qdx.sweep.job'), sep='\\0')"
    )
    kept = making.python("-P", "-c", code, str(making.ROOT), cwd=tmp_path, PYTHONPATH="").stdout.rstrip("\n")
    said = served(kept.split("\0"), {}, cwd=tmp_path)
    assert "KeyError: 'do'" in said, said


@pytest.mark.parametrize(
    ("arguments", "environment"), [(["--no-plugins"], {}), ([], {"QDX_NO_PLUGINS": "1"})]
)
def test_plugins_can_be_left_out(arguments: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "stolen.py").write_text(PLUGIN.format(mark=str(tmp_path / "mark")))
    done = making.python("-m", "qdx", "--help", *arguments, cwd=tmp_path, **environment)
    assert done.returncode == 0 and "stolen" not in done.stdout and not (tmp_path / "mark").exists()
    done = making.python("-m", "qdx", "--help", cwd=tmp_path)
    assert "stolen" in done.stdout and (tmp_path / "mark").exists(), "a folder of one's own"


@pytest.mark.slow
def test_a_sweep_is_resumed_as_it_was_started_and_says_what_verifiers_will_refuse(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    """A plug-in that would be read stops nothing, and a label with a space is named before the run."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "stolen.py").write_text(PLUGIN.format(mark=str(tmp_path / "mark")))
    arguments = [*SMALL, *checkpoints(tiny_models), "label='my awq'", "metric=[l2]", "analysis=[effects]"]
    done = qdx("--no-plugins", *arguments, "report.formats=[txt]", "hydra.sweep.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "mark").exists()
    note, resume = (
        next(i for i, line in enumerate(done.stdout.splitlines()) if line.startswith(start))
        for start in ("NOTE: a verifier will refuse this sweep's file: label: 'my awq'", "resume: ")
    )
    assert note < resume, "before the first job"
    assert done.stdout.splitlines()[resume].startswith("resume: python -m qdx --no-plugins ")
    plan = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert "--no-plugins" not in plan["arguments"], "a verifier decides that for himself"
    assert own_command(plan["resume"], tmp_path / "out") == plan["resume"]


def test_discovery_of_results_are_left_out_and_named_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugins").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(_discovery.LEFT_OUT, raising=False)
    assert tmp_path / "plugins" in folders()
    (tmp_path / "received.nc").touch()
    (tmp_path / "sweep.nc").touch()
    assert tmp_path / "plugins" in folders(), "a verifier's own folder, with a file that he received"
    for name in ("sweep.json", "run.nc", "awq/run.nc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert tmp_path / "plugins" not in folders(), name
        (tmp_path / name).unlink()
    assert capsys.readouterr().err.count("left out") == 1, "said once"
    (tmp_path / "sweep.json").touch()
    monkeypatch.setattr(_discovery, "_also", [tmp_path / "plugins"])
    assert tmp_path / "plugins" in folders(), "--plugins names it"


EVIL = [
    "hydra.callbacks.x._target_=os.system",
    "+hydra.callbacks.x._target_=os.system",
    "++hydra.job_logging.handlers.x.class=os.system",
    "hydra.sweeper._target_=x.y",
    "hydra/callbacks=x",
    "hydra/launcher=../x",
    "hydra.run.dir=/home",
    "hydra.searchpath=[file:///tmp]",
]
UNSHOWN = [
    "prompts._target_=os.system",
    "+x={_target_:os.system}",
    "model.name=${oc.env:API_TOKEN}",
    "--config-dir=/tmp",
    "--config-path",
    "-cd",
    "quant=awq\nrm -r x",
    "quant=awq\x1b[2J",
    "quant",
    "a b=c",
    ";reboot=",
    "$(reboot)=x",
]


@pytest.mark.parametrize("argument", EVIL)
def test_what_concerns_hydra_is_left_out_of_a_command(argument: str) -> None:
    assert checked(["-m", "quant=awq", argument, "repeats=2"]) == ["-m", "quant=awq", "repeats=2"]


@pytest.mark.parametrize("argument", UNSHOWN)
def test_a_command_with_what_cannot_be_shown_is_not_shown(argument: str) -> None:
    assert checked(["-m", argument]) is None
    import shlex

    assert own_command(shlex.join(["python", "-m", "qdx", "-m", argument]), Path("x")) == ""


def test_an_honest_command_is_shown_as_it_was() -> None:
    honest = [
        "-m",
        "quant=awq,gptq",
        "metric=[l2,kl]",
        "+model.checkpoint.awq=/a b",
        "~prompts.path",
        "hydra/launcher=joblib",
        "prompts.instruction='Sum up: \"this\"'",
    ]
    assert checked(honest) == honest


def test_a_folder_in_a_command_is_the_folder_that_is_reported(tmp_path: Path) -> None:
    stated = "python -m qdx -m quant=awq hydra.sweep.dir=/home/you/.ssh && python -m qdx -m quant=gptq"
    here = tmp_path / "with space"
    assert own_command(stated, here) == (
        f"""python -m qdx -m quant=awq 'hydra.sweep.dir='"'"'{here}'"'"'' && python -m qdx -m quant=gptq"""
    )
    assert quoted(str(here)) == f"'{here}'"
    assert own_command("python -m qdx " + "a=b " * 10_000, here) == ""


@pytest.mark.slow
def test_pages_show_no_command_that_hydra_would_run(sweep: Path) -> None:
    plan = json.loads((sweep / "sweep.json").read_text())
    evil = "python -m qdx -m quant=awq hydra.callbacks.x._target_=os.system +hydra.callbacks.x.command=reboot"
    arguments = ["-m", "quant=awq", *EVIL, *UNSHOWN]
    (sweep / "sweep.json").write_text(
        json.dumps(
            {
                **plan,
                "labels": ["awq", "gptq", "none"],
                "resume": evil,
                "command_line": evil,
                "arguments": arguments,
            }
        )
    )
    report = build(sweep, console=False, formats=["txt", "html", "md"])
    for name, path in report.paths.items():
        if name.startswith("report.") or name == "summary.json":
            text = path.read_text()
            for word in ("hydra.callbacks", "_target_", "os.system", "reboot", "oc.env", "config-dir"):
                assert word not in text, (name, word)
    assert "python -m qdx -m prompts=transcripts prompts.path=sweep.nc quant=awq,gptq" in report.text
