"""Where plug-ins come from: files, entry points; and each way in which one is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.core.config_store import ConfigStore

import qdx
from qdx.errors import QdxError
from qdx.plugins import build, find, load
from tests.plugins.conftest import Write
from tests.sweeping import qdx as command

METRIC = """
import qdx
@qdx.register("metric", "{name}")
def function({signature}):
    return (p - q).abs().sum(-1)
"""


def test_a_file_becomes_an_option_with_its_defaults(write: Write) -> None:
    path = write(
        "mine.py", METRIC.format(name="summed", signature="p, q, scale: float = 2.5, shown=(1, 2), top=None")
    )
    (found,) = [one for one in load() if one.name == "summed"]
    assert (found.kind, found.target, found.origin) == ("metric", "qdx_plugins.mine.function", str(path))
    node = ConfigStore.instance().load("metric/summed.yaml").node
    assert node == {
        "summed": {"_target_": "qdx_plugins.mine.function", "scale": 2.5, "shown": [1, 2], "top": None}
    }
    call = build({"_target_": "qdx_plugins.mine.function", "scale": 1.0})
    assert call(torch.ones(3, 4), torch.zeros(3, 4)).tolist() == [4, 4, 4]
    assert find("metric", "summed") is found.member


def test_options_of_a_plug_in_are_composed_and_checked(write: Write) -> None:
    signature = "p, q, scale: float = 2.5, whole: bool = False, power: float = 1, count: int = 2"
    write("mine.py", METRIC.format(name="summed", signature=signature))
    (cfg,) = qdx.compose(["metric=[l2,summed]", "metric.summed.scale=2", "metric.summed.power=0.5"])
    assert list(cfg.metric) == ["l2", "summed"] and cfg.metric.summed.scale == 2
    for override, message in {
        "metric=[l2,sumed]": "metric=sumed: unknown metric, one of .*summed.*did you mean 'summed'",
        "metric.summed.scal=2": "scal: unknown key, one of count, power, scale, whole .did you mean 'scale'",
        "+metric.summed.scal=2": "scal: unknown option, one of scale, whole, .*did you mean 'scale'",
        "metric.summed.scale=much": "metric.summed.scale=much: must be a float, such as 2.5",
        "metric.summed.whole=1": "metric.summed.whole=1: must be a bool, such as False",
        "metric.summed.power=much": "metric.summed.power=much: must be a float, such as 1.0",
        "metric.summed.count=0.5": "metric.summed.count=0.5: must be an int, such as 2",
    }.items():
        with pytest.raises(QdxError, match=message):
            qdx.compose([*(["metric=[summed]"] if "." in override else []), override])


def test_an_option_without_default_must_be_given(write: Write) -> None:
    text = """
import qdx
@qdx.register("prompts", "mine")
class Mine:
    def __init__(self, path: str, continuation_tokens: int = 16): ...
    def load(self, tokenizer): ...
"""
    write("mine.py", text)
    with pytest.raises(QdxError, match=r"prompts\.path is not set and has no default: add prompts\.path="):
        qdx.compose(["prompts=mine"])
    (cfg,) = qdx.compose(["prompts=mine", "prompts.path=x", "generate.tokens=7"])
    assert cfg.prompts.continuation_tokens == 7


def test_files_that_are_not_for_qdx_are_not_run(write: Write) -> None:
    write("other.py", "raise RuntimeError('this is the plug-in of another program')")
    write("_helper.py", "raise RuntimeError('import qdx; qdx.register')")
    load()


def test_the_same_file_in_two_folders_is_one_plug_in(write: Write) -> None:
    shipped = Path(qdx.__file__).parent.parent / "plugins" / "half_l1.py"
    write("half_l1.py", shipped.read_text())
    assert [one.name for one in load()].count("half_l1") == 1


BACKEND = """
import qdx
@qdx.register("backend", "mine")
class Mine:
    def __init__(self, {made}): ...
    def observe(self): ...
    def prefill(self, batch, recorder): ...
    def generate(self, batch, {count}, recorder): ...
    def replay(self, batch, forced, recorder): ...
    {last}
"""
MADE, RESEED = "checkpoint, quant, dtype, seed, depth=3", "def reseed(self, seed): ..."

REFUSED = {
    "syntax": ("def (", "cannot be imported: SyntaxError"),
    "import": ("import qdx; qdx.register\nimport nosuchmodule", "No module named 'nosuchmodule' .line 2"),
    "exit": ("import qdx; qdx.register; raise SystemExit('no')", "cannot be imported: SystemExit: no"),
    "nothing": ("import qdx\nregister = qdx.register", "registers nothing: decorate a function"),
    "kind": ("import qdx\n@qdx.register('metrics', 'x')\ndef f(p, q): ...", "did you mean 'metric'"),
    "fact": (
        "import qdx\n@qdx.register('metric', 'x', symetric=1)\ndef f(p, q): ...",
        "did you mean 'symmetric'",
    ),
    "name": ("import qdx\n@qdx.register('metric', 'x y')\ndef f(p, q): ...", "name 'x y': use letters"),
    "one": (
        METRIC.format(name="x", signature="p"),
        r"metric 'x' takes \(p\), must take \(p, q, option=default",
    ),
    "three": (
        METRIC.format(name="x", signature="p, q, scale"),
        r"metric 'x' takes \(p, q, scale\), must take",
    ),
    "keywords": (METRIC.format(name="x", signature="*, p=1, q=2"), r"must take \(p, q, option=default"),
    "default": (METRIC.format(name="x", signature="p, q, a=object()"), "default of its option a is a object"),
    "needs": (
        "import qdx\n@qdx.register('metric', 'x', needs=('targets',))\ndef f(p, q): ...",
        "metric 'x': needs 'targets', one of 'target', 'position', 'prob' .did you mean 'target'",
    ),
    "needs text": (
        "import qdx\n@qdx.register('metric', 'x', needs='target')\ndef f(p, q): ...",
        "metric 'x': needs='target': give a tuple of names",
    ),
    "needs prob": (
        "import qdx\n@qdx.register('metric', 'x', on='hidden', needs=('prob',))\ndef f(p, q): ...",
        "needs 'prob', which only rows of on='logprob' have, not on='hidden'",
    ),
    "needs unnamed": (
        "import qdx\n@qdx.register('metric', 'x', needs=('target',))\ndef f(p, q): ...",
        r"metric 'x' takes \(p, q\), must take \(p, q, \*, target, option=default",
    ),
    "class": (
        "import qdx\n@qdx.register('analysis', 'x')\nclass F: ...",
        "analysis 'x' is a class, must be a func",
    ),
    "analysis": (
        "import qdx\n@qdx.register('analysis', 'x')\ndef f(): ...",
        r"takes \(\), must take \(tree, option",
    ),
    "function": (
        "import qdx\n@qdx.register('prompts', 'x')\ndef f(): ...",
        "prompts 'x' is not a class, must be",
    ),
    "load": (
        "import qdx\n@qdx.register('prompts', 'x')\nclass F:\n def laod(self, t): ...",
        r"prompts 'x' has no method load\(tokenizer\) .did you mean 'laod'",
    ),
    "method": (
        BACKEND.format(made=MADE, count="count", last=""),
        r"backend 'mine' has no method reseed\(seed\)",
    ),
    "arguments": (
        BACKEND.format(made=MADE, count="count, extra", last=RESEED),
        r"generate takes \(self, batch, count, extra, recorder\), must take \(batch, count, recorder\)",
    ),
    "made": (
        BACKEND.format(made="checkpoint, quant", count="count", last=RESEED),
        "must take the keywords checkpoint, quant, dtype, seed, option",
    ),
    "shipped": (
        METRIC.format(name="l2", signature="p, q"),
        "two plug-ins are named metric=l2: of qdx itself and",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_plug_in_that_breaks_a_rule_is_named_with_the_rule(case: str, write: Write) -> None:
    text, message = REFUSED[case]
    path = write("broken.py", text if "qdx" in text else f"import qdx\nqdx.register\n{text}")
    with pytest.raises(QdxError, match=message) as caught:
        load()
    assert str(path) in str(caught.value)


def test_a_backend_within_the_contract_is_taken(write: Write) -> None:
    write("mine.py", BACKEND.format(made=MADE, count="count", last=RESEED))
    load()
    node = ConfigStore.instance().load("backend/mine.yaml").node
    assert node == {"name": "mine", "_target_": "qdx_plugins.mine.Mine", "depth": 3}


def test_two_files_of_one_plug_in_name_are_both_named(write: Write) -> None:
    paths = [write(f"{name}.py", METRIC.format(name="same", signature="p, q")) for name in "ab"]
    with pytest.raises(QdxError, match="two plug-ins are named metric=same") as caught:
        load()
    assert all(str(path) in str(caught.value) for path in paths)


def test_two_files_of_one_file_name_are_both_named(write: Write) -> None:
    path = write("half_l1.py", METRIC.format(name="other", signature="p, q"))
    with pytest.raises(QdxError, match=r"two plug-in files are named half_l1\.py") as caught:
        load()
    assert str(path) in str(caught.value)


def distribution(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Lay out an installed distribution ``some-plugin`` with a module and an entry point."""
    (folder / "some_plugin.py").write_text(text)
    info = folder / "some_plugin-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-plugin\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[qdx.plugins]\nown = some_plugin\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(__import__("sys").modules, "some_plugin", raising=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nosuchmodule", "cannot be imported: ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("from qdx.metrics import l2", "registers nothing"),
        (METRIC.format(name="x", signature="p"), r"metric 'x' takes \(p\)"),
        (
            METRIC.format(name="half_l1", signature="p, q"),
            "two plug-ins are named metric=half_l1: of .*half_l1.py",
        ),
    ],
)
def test_a_broken_distribution_is_named(
    text: str, message: str, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, monkeypatch, text)
    with pytest.raises(QdxError, match=message) as caught:
        load()
    assert "distribution some-plugin 1.2 (entry point own, module some_plugin)" in str(caught.value)


def test_a_distribution_registers_through_its_entry_point(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, monkeypatch, METRIC.format(name="theirs", signature="p, q"))
    assert [one.target for one in load() if one.name == "theirs"] == ["some_plugin.function"]


def test_a_broken_plug_in_stops_the_command_in_one_line_before_anything_is_written(write: Write) -> None:
    path = write("broken.py", "import qdx\nqdx.register('metric')\n")
    done = command("quant=awq", "hydra.sweep.dir=out", cwd=path.parent.parent)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and str(path) in done.stderr and "(line 2)" in done.stderr
    assert not (path.parent.parent / "out").exists()
