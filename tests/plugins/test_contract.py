"""What a metric may return, what an analysis may; that shipped members pass through the same door."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xarray as xr
import yaml
from torch import Tensor

import qdx
from qdx.distances.pairs import Measure
from qdx.errors import QdxError
from qdx.plugins import build, check, conf_dir, find, from_file, node_of, register
from qdx.report import build as report
from tests.helpers import write_sweep
from tests.plugins.conftest import Write
from tests.sweeping import SMALL, checkpoints
from tests.sweeping import qdx as command

Rows = Callable[[Tensor, Tensor], object]

BAD: dict[str, tuple[Rows, str]] = {
    "wrong shape": (
        lambda p, q: (p - q).abs(),
        r"returned torch.float64 \(2, 50\).*return torch.float64 \(2,\)",
    ),
    "one number": (lambda p, q: (p - q).abs().sum(), r"returned torch.float64 \(\)"),
    "wrong type": (lambda p, q: (p - q).abs().sum(-1).float(), "returned torch.float32"),
    "no tensor": (lambda p, q: [0.0, 0.0], "returned a list: return a tensor"),
    "new NaN": (lambda p, q: (p - q).sum(-1) * torch.nan, "returned NaN for rows without one"),
    "wrong device": (
        lambda p, q: (p - q).abs().sum(-1).to("meta"),
        r"returned torch.float64 \(2,\) on meta for rows .* on cpu",
    ),
    "raises": (lambda p, q: p @ q, "raised RuntimeError"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_metric_returns_is_checked_at_its_first_rows(case: str) -> None:
    function, message = BAD[case]
    member = register("metric", "bad")(lambda p, q: function(p, q))
    with pytest.raises(QdxError, match=f"metric 'bad' {message}"):
        Measure.of("bad", member).rehearse(vocab=50, k=5)


@pytest.mark.slow
def test_a_metric_that_breaks_its_contract_stops_the_sweep_before_the_first_run(
    write: Write, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    write("bad.py", "import qdx\n@qdx.register('metric', 'bad')\ndef bad(p, q):\n    return p - q\n")
    done = command("metric=[bad]", *SMALL, *checkpoints(tiny_models), "hydra.sweep.dir=out", cwd=tmp_path)
    assert done.returncode == 2
    assert "metric 'bad' returned torch.float64 (2, " in done.stderr and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("run.nc*"))


def test_an_analysis_that_returns_no_section_is_named_and_the_others_stand(
    write: Write, tmp_path: Path
) -> None:
    write("bad.py", "import qdx\n@qdx.register('analysis', 'bad')\ndef bad(tree):\n    return 3\n")
    folder = write_sweep(tmp_path / "sweep", ["awq", "gptq"])
    nodes = {"bad": {"_target_": "qdx_plugins.bad.bad"}, "classes": {"_target_": "qdx.analysis.classes"}}
    metrics = {"top1": {"_target_": "qdx.metrics.top1"}}
    done = report(folder, metrics=metrics, analyses=nodes, formats=["txt"], console=False)
    assert done.failed == {"bad": "QdxError: returned a int: return a qdx.analysis.Section"}
    assert "Kernel equivalence classes" in done.text or "classes" in done.summary["analyses"]


@pytest.mark.slow
def test_the_code_of_what_did_not_ship_is_recorded_and_reported(write: Write, tmp_path: Path) -> None:
    metric = "import qdx\n@qdx.register('metric', 'own')\ndef own(p, q):\n    return (p - q).abs().sum(-1)\n"
    path = write("own.py", metric)
    folder = write_sweep(tmp_path / "sweep", ["awq", "gptq"])
    ties = conf_dir().parent / "plugins" / "ties.py"
    nodes = {"ties": {"_target_": "qdx_plugins.ties.ties"}, "classes": {"_target_": "qdx.analysis.classes"}}
    metrics = {"top1": {"_target_": "qdx.metrics.top1"}, "own": {"_target_": "qdx_plugins.own.own"}}
    done = report(folder, metrics=metrics, analyses=nodes, formats=["txt"], console=False)
    assert not done.failed
    own, other = (hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, ties))
    with qdx.open(folder / "sweep.nc") as tree:
        for phase in ("prefill", "decode", "replay"):
            assert tree[f"metrics/own/{phase}"].attrs["plugin_sha256"] == own
            assert "plugin_sha256" not in tree[f"metrics/top1/{phase}"].attrs
        assert tree["analysis/ties"].attrs["plugin_sha256"] == other
        assert "plugin_sha256" not in tree["analysis/classes"].attrs
    told = " ".join(done.text.split())
    assert f"metric own: own.py, sha256 {own}" in told and f"analysis ties: ties.py, sha256 {other}" in told


def test_the_example_of_an_analysis_counts_near_ties(tmp_path: Path) -> None:
    logit_CDRPK = [[[[[2.0, 1.95], [2.0, 1.0], [2.0, 2.0], [5.0, 5.0]]]]]
    axes = ("config", "repeat", "reference", "position")
    captured = (axes, [[[[True, True, True, False]]]])
    data = xr.Dataset(
        {"top_logit": ((*axes, "rank"), logit_CDRPK), "captured": captured}, {"config": ["awq"]}
    )
    section = find("analysis", "ties")(xr.DataTree.from_dict({"replay": data}))
    assert float(section.result["share"].sel(config="awq")) == pytest.approx(2 / 3)
    assert [block.table.rows for block in section.of_phase("replay")] == [[["awq", "0.667"]]]
    (bar,) = section.blocks[0].drawing["data"]["values"]
    assert pytest.approx(2 / 3) in bar.values()


def test_an_example_in_plugins_has_fewer_than_15_lines_and_says_what_it_is() -> None:
    for path in (conf_dir().parent / "plugins").glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) < 15 and text.count('"""') == 2, path


SHIPPED = [
    (kind, path)
    for kind in ("metric", "analysis", "backend", "prompts")
    for path in (conf_dir() / kind).iterdir()
    # auto takes over another member of its group and names no code; openai asks and runs no model.
    if path.stem not in ("auto", "openai")
]


@pytest.mark.parametrize(("kind", "path"), SHIPPED, ids=lambda value: getattr(value, "stem", value))
def test_a_shipped_member_passes_the_checks_of_a_plug_in(kind: str, path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    node = content[path.stem] if kind in ("metric", "analysis") else content
    plain = {key: value for key, value in node.items() if "${" not in str(value) and value != "???"}
    check(kind, path.stem, plain)
    member = build({"_target_": node["_target_"]}).func  # type: ignore[attr-defined]
    made = node_of(member, node["_target_"])
    if kind in ("metric", "analysis"):  # others state defaults of their own
        assert made == node


SHARES = """
import qdx
from qdx.analysis import Section
from qdx.errors import QdxError

def positive(options):
    if options["share"] <= 0:
        raise QdxError(f"share={options['share']}: must be above 0")

@qdx.register("analysis", "shares", check=positive)
def shares(tree, share: float = 0.5):
    return Section("shares", "Shares", tree["replay"].to_dataset())
"""


def test_a_report_refuses_a_value_that_an_analysis_cannot_use(tmp_path: Path) -> None:
    stored = {"pairs": {"_target_": "qdx.analysis.pairs", "level": 5}}
    with pytest.raises(QdxError, match=r"sweep.json: analysis.pairs.level=5: must be above 0 and below 1"):
        from_file("analysis", stored, tmp_path / "sweep.json")


def test_the_check_of_a_plug_ins_own_options_is_called(write: Write) -> None:
    write("shares.py", SHARES)
    assert qdx.compose(["analysis=[shares]", "analysis.shares.share=0.1"])
    with pytest.raises(QdxError, match=r"^analysis.shares.share=-1: must be above 0$"):
        qdx.compose(["analysis=[shares]", "analysis.shares.share=-1"])


def test_help_and_config_import_neither_torch_nor_vllm_and_are_quick(write: Write) -> None:
    import resource
    import subprocess
    import sys

    code = "\n".join(
        [
            "import sys, atexit",
            "names = ('torch', 'vllm', 'transformers', 'xarray', 'numpy')",
            "atexit.register(lambda: print([n for n in names if n in sys.modules], file=sys.stderr))",
            "from qdx.__main__ import main",
            "main()",
        ]
    )
    for arguments in (
        ["--help"],
        ["--cfg", "job", "metric=[half_l1]", "analysis=[ties]", "prompts=arithmetic"],
    ):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert done.stderr == "[]\n"
        assert "half_l1" in done.stdout and "arithmetic" in done.stdout
        if arguments == ["--help"]:
            for group in ("hydra/launcher", "hydra/sweeper"):
                shipped = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
                assert f"\n{group}: {', '.join(shipped)} (" in done.stdout
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
