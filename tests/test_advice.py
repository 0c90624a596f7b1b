"""Each message that gives a remedy leads somewhere: what it says is done, as it says it, and then it works.

A message that misleads is worse than none. `tests.advice` is a reader who knows nothing but the message.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

import qdx as package
from qdx import schema, schema_verify
from qdx.accessor import TreeAccessor
from qdx.errors import QdxError
from qdx.models.contents import check_contents
from qdx.report import build
from tests.advice import LostError, Overrides, follow, led_by, try_composing
from tests.helpers import write_sweep
from tests.slowly import slow_but
from tests.sweeping import SMALL, checkpoints, qdx
from tests.test_mistakes import COMMAND_LINES

ROOT = Path(package.__file__).parent
CONF = Path(__file__).parent.parent / "conf"

# Mistakes of `tests/test_mistakes.py` that composing alone does not see: they are followed further below.
LATER = {
    *("a folder that is not there", "a hub id without a network", "an unknown demo model"),
    *("a PDF that is not there", "a folder instead of files", "a text file as a PDF"),
    *("a glob that matches nothing", "no text in inline prompts", "longer snippets than the source"),
    *("folders by another name", "a baseline that is not in the sweep"),
    *("an analysis of a metric that is not measured", "a group below hydra that is not installed"),
}
MORE: dict[str, Overrides] = {
    "a format without a model of its kernel": ["quant=w4a16"],
    "claims without transcripts": ["verify.claims={a: awq}"],
    "a level of 2": ["verify.alpha=2"],
    "a level in words": ["verify.alpha=x"],
    "fewer rows than none": ["capture.prefill_positions=-3"],
    "more than the whole GPU": ["backend=vllm", "backend.gpu_memory_utilization=2"],
    "a key that there is already, with a plus": ["+label=mine"],
    "an option of a metric without any": ["metric.l2.k=1"],
    "an option of an analysis of another type": ["analysis.effects.template=3"],
    "the same quant twice": ["quant=awq,gptq,awq"],
    "a name of an option alone, followed by a space": ["quant=awq,", "gptq"],
    "a kernel's name for a quant": ["quant=marlin"],
    "a misspelt capture": ["capture=hiden"],
    "a misspelt analysis in a list": ["analysis=[snr,pair]"],
    "a misspelt key of a group": ["prompts.reference=2"],
    "a kernel of quantized weights for dense ones": ["quant=none", "quant.kernel=marlin"],
    "figures by a number": ["report.figures=3"],
    "a print that there is not": ["report.print=all"],
    "a label that is too long": ["label=" + "x" * 300],
    "a label that names a file": ["label=sweep.nc"],
    "a scope that there is not": ["repeat_scope=job"],
}
MISTAKES = {
    **{name: [a for a in line[0] if a != "-m"] for name, line in COMMAND_LINES.items() if name not in LATER},
    **MORE,
}


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the reader has at hand where a message leaves the choice."""
    at = tmp_path_factory.mktemp("at-hand")
    (at / "a.txt").write_text("Some words. " * 400)
    sweep = write_sweep(at / "sweep", ["awq", "gptq"], repeats=1)
    build(sweep, console=False, formats=["txt"])
    return {
        "folder": str(at),
        "prompts": "text",
        "prompts.path": str(at / "a.txt"),
        "sweep.nc": str(sweep / "sweep.nc"),
        "generate.tokens": "5",
        "report.formats": "[txt]",
        "label": "mine",
    }


def test_a_reader_who_is_told_nothing_is_lost() -> None:
    assert not list(follow(["repeats=x"], "repeats=x: that is not right", {}))
    with pytest.raises(LostError, match="the same again"):
        led_by(["repeats=0"], {}, attempt=lambda overrides: "repeats=0: must be at least 7")
    with pytest.raises(LostError, match="not enough"):
        count = iter(range(1, 9))
        led_by(["repeats=0"], {}, attempt=lambda overrides: f"repeats=0: must be at least {next(count)}")


@pytest.mark.parametrize("mistake", slow_but(list(MISTAKES)[::12], MISTAKES))
def test_a_command_line_is_mended_by_what_its_messages_say(mistake: str, values: dict[str, str]) -> None:
    trail = led_by(MISTAKES[mistake], values)
    assert trail, "nothing was wrong"


def preparing(folder: Path) -> Any:
    """Composes a command line and does all that is done before the first job."""

    def attempt(overrides: Overrides) -> str | None:
        from qdx.sweep import expand, prepare

        if message := try_composing(overrides):
            return message
        jobs = package.compose(overrides)
        first: Any = OmegaConf.to_container(jobs[0], resolve=True)
        try:
            expand.check_names(first, [str(cfg.label) for cfg in jobs])
            prepare.prepare(jobs, folder)
        except QdxError as error:
            return str(error)
        return None

    return attempt


LONG = "prompts.snippet_tokens=9000"
PREPARED: dict[str, Overrides] = {
    "snippets beyond the model": ["prompts.snippet_tokens=3000"],
    "a batch that does not divide": ["batch_size=3"],
    "more ids compared than kept": ["metric=[topk_overlap]", "capture.k=10"],
    "hidden states that are not kept": ["metric=[projection]"],
    "a checkpoint of another format": ["quant=awq", "model.checkpoint.awq={gptq}"],
    "a folder for a file": ["prompts=text", "prompts.path={folder}"],
    "a text as a PDF": ["prompts=pdf", "prompts.path={prompts.path}"],
    "no text": ["prompts=inline", "prompts.texts=[]"],
    "a baseline outside": ["quant=none,awq", "analysis.cost.baseline=non"],
    "an analysis of what is not measured": ["metric=[l2]", "+analysis.pairs.metrics=[kl]"],
    "longer snippets than the source": ["prompts=text", "prompts.path={prompts.path}", LONG],
    "a hub id without a network": ["quant=none", "model.checkpoint.none=nobody/nothing"],
}  # fmt: skip


@pytest.mark.parametrize("mistake", slow_but(["a batch that does not divide"], PREPARED))
def test_what_is_found_before_the_first_job_is_mended_by_what_its_message_says(
    mistake: str,
    values: dict[str, str],
    tiny_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    at_hand = {**values, **{name: str(path) for name, path in tiny_models.items()}}
    at_hand["folder"] = str(tiny_models["none"])
    first = {**at_hand, "folder": values["folder"]}
    own = [re.sub(r"\{(.*?)\}", lambda m: first[m[1]], o) for o in PREPARED[mistake]]
    inline = "prompts=inline" in own
    base = [
        *(s for s in SMALL if not s.startswith("prompts" if inline else "prompts.s")),
        *(("prompts.snippet_tokens=20",) if "snippet_tokens" not in str(own) and not inline else ()),
        *checkpoints({k: p for k, p in tiny_models.items() if f"checkpoint.{k}" not in str(own)}),
    ]
    given = [*base, *own] if "quant" in str(own) else [*base, "quant=none", *own]
    trail = led_by([o for o in given if o], at_hand, preparing(tmp_path / "out"))
    assert trail, "nothing was wrong"


def refusal(folder: Path, form: str = "none") -> str | None:
    try:
        check_contents(folder, form)
    except QdxError as error:
        return str(error)
    return None


@pytest.fixture
def folders(tmp_path: Path, tiny_models: dict[str, Path]) -> dict[str, Path]:
    """Copies of the tiny checkpoints."""
    return {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in tiny_models.items()}


def test_a_stored_head_of_a_tied_model_can_be_kept_or_removed_as_the_message_says(
    folders: dict[str, Path],
) -> None:
    config = folders["none"] / "config.json"
    stated = json.loads(config.read_text())
    config.write_text(json.dumps(stated | {"tie_word_embeddings": True}))
    message = refusal(folders["none"])
    assert message
    found = re.search(r"set (\w+)=(\w+) if the head is meant, else remove the tensor", message)
    assert found
    config.write_text(json.dumps(stated | {found[1]: json.loads(found[2])}))
    assert refusal(folders["none"]) is None
    config.write_text(json.dumps(stated | {"tie_word_embeddings": True}))
    weights = folders["none"] / "model.safetensors"
    head = re.search(r"holds (lm_head\.weight)", message)
    assert head
    save_file({k: v for k, v in load_file(weights).items() if k != head[1]}, weights)
    assert refusal(folders["none"]) is None


def test_a_package_that_a_message_asks_for_is_the_one_that_was_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The AES file of a PDF: without the package the message names it, with it the file is read."""
    pytest.importorskip("reportlab")  # of the extra dev
    from pypdf import PdfWriter
    from reportlab.pdfgen.canvas import Canvas

    from qdx.prompts.pdf import read_pdf

    plain = Canvas(str(tmp_path / "plain.pdf"))
    plain.drawString(72, 720, "Some words of a paper.")
    plain.save()
    writer = PdfWriter(clone_from=tmp_path / "plain.pdf")
    writer.encrypt("", algorithm="AES-256")
    writer.write(tmp_path / "aes.pdf")
    with monkeypatch.context() as without:
        from pypdf._crypt_providers import _fallback

        without.setattr("pypdf._encryption.CryptAES", _fallback.CryptAES)
        for name in ("aes_cbc_decrypt", "aes_ecb_decrypt", "rc4_decrypt"):
            without.setattr(f"pypdf._encryption.{name}", getattr(_fallback, name))
        with pytest.raises(QdxError, match="encrypted") as caught:
            read_pdf("aes.pdf", tmp_path / "aes.pdf")
    found = re.search(r"pip install (\S+)$", str(caught.value))
    assert found and importlib.util.find_spec(found[1])
    assert any(found[1] in requirement for requirement in _project()["dependencies"])
    assert "Some words" in read_pdf("aes.pdf", tmp_path / "aes.pdf").text


@pytest.mark.slow
def test_logits_that_overflow_float16_are_finite_in_the_dtype_that_the_message_names(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    weights = folders["none"] / "model.safetensors"
    state = load_file(weights)
    state["lm_head.weight"] = state["lm_head.weight"] * 60_000.0
    assert torch.isfinite(state["lm_head.weight"]).all()
    save_file(state, weights)
    arguments = ["quant=none", *SMALL, *checkpoints({"none": folders["none"]})]
    done = qdx(*arguments, "hydra.sweep.dir=one", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    found = re.search(r"overflows float16: try (model\.dtype=\w+)", done.stderr)
    assert found, done.stderr
    again = qdx(*arguments, found[1], "hydra.sweep.dir=two", cwd=tmp_path)
    assert again.returncode == 0, again.stderr


def test_a_kernel_of_float16_alone_is_not_advised_another_dtype() -> None:
    from qdx.capture.recorder import Recorder

    run = SimpleNamespace(coords={"requested_kernel": "awq_gemm"})
    recorder = object.__new__(Recorder)
    recorder._run, recorder._dtype = run, torch.float16  # type: ignore[assignment]
    assert "model.dtype" not in recorder._overflow() and "awq_gemm" in recorder._overflow()
    for kernel in ("dense", "marlin", "any"):
        run.coords = {"requested_kernel": kernel}
        found = re.search(r"model\.dtype=(\w+)", recorder._overflow())
        assert found and found[1] in schema.KERNEL_DTYPES.get(kernel, schema.DTYPES)
    recorder._dtype = torch.bfloat16
    assert "dtype" not in recorder._overflow()


# Names in messages: a key, an option, a command or a package that there is not would mislead in any message.


@cache
def _texts() -> list[tuple[str, str]]:
    """Every text of the package that is not a docstring, with where it stands; … for what is put in."""
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        inner = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
        }
        skipped = docs | inner
        for node in ast.walk(tree):
            where = f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                parts = (str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.append((where, "".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                found += [(where, node.value)] if id(node) not in skipped else []
    return found


@cache
def _keys() -> dict[str, set[str]]:
    """The keys of each group, over all of its options."""
    keys: dict[str, set[str]] = {}
    for group in ("model", "quant", "backend", "capture", "prompts"):
        files = (CONF / group).glob("*.yaml")
        keys[group] = {str(key) for file in files for key in OmegaConf.load(file)}  # type: ignore[union-attr]
    for group, node in {
        "generate": schema.Generate,
        "dataset": schema.Dataset,
        "report": schema.Report,
        "verify": schema_verify.Verify,
    }.items():
        keys[group] = set(node.__dataclass_fields__)
    keys["capture"] |= set(schema.CaptureSettings.__dataclass_fields__)
    for node in vars(schema_verify).values():
        keys["prompts"] |= set(getattr(node, "__dataclass_fields__", ()))
    return keys


@cache
def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]  # type: ignore[no-any-return]


FILES = ("txt", "html", "md", "nc", "json", "jsonl", "lock", "yaml", "pdf", "py")


def _named(pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
    for where, text in _texts():
        for found in re.finditer(pattern, text):
            yield f"{where}: {text[:120]}", found


def test_keys_that_messages_name_are_keys() -> None:
    groups = "|".join(_keys())
    wrong, seen = [], set()
    for where, found in _named(rf"(?<![\w./\[])({groups})\.([a-z_]+)(?![\w(])"):
        if found[2] not in FILES and not where.endswith(".weight") and "model.layers" not in found[0]:
            seen.add(found[0])
            if found[2] not in _keys()[found[1]]:
                wrong.append(f"{found[0]} in {where}")
    assert not wrong, wrong
    assert len(seen) > 40, seen


def test_options_that_messages_name_are_options() -> None:
    wrong, seen = [], set()
    for where, found in _named(r"(?<![\w./])(model|quant|backend|capture|prompts)=([a-z][\w,]*)(?![\w(.…/])"):
        for option in found[2].strip(",").split(","):
            seen.add(f"{found[1]}={option}")
            if not (CONF / found[1] / f"{option}.yaml").exists():
                wrong.append(f"{found[0]} in {where}")
    assert not wrong, wrong
    assert len(seen) > 12, seen


def test_commands_that_messages_name_are_commands_and_have_the_flags() -> None:
    wrong, seen = [], set()
    for where, found in _named(r"python -m (qdx(?:\.\w+)?)((?: (?:--?[\w-]+|DIR|FOLDER|…))*)"):
        seen.add(found[1])
        file = ROOT / found[1].replace(".", "/").removeprefix("qdx").lstrip("/")
        source = next((f for f in (file / "__main__.py", file.with_suffix(".py")) if f.is_file()), None)
        text = source.read_text(encoding="utf-8") if source else ""
        if not text or any(flag not in text and flag != "-m" for flag in re.findall(r"--?[\w-]+", found[2])):
            wrong.append(f"{found[0]} in {where}")
    assert not wrong, wrong
    assert seen >= {"qdx", "qdx.report", "qdx.challenge"}, seen


def test_packages_that_messages_ask_for_are_ones_that_the_project_names() -> None:
    project = _project()
    requirements = [
        *project["dependencies"],
        *(r for e in project["optional-dependencies"].values() for r in e),
    ]
    known = {re.split(r"[\[<>=;\s]", r)[0].lower() for r in requirements} | {"hydra-ray-launcher"}
    seen = 0
    for where, found in _named(r"pip install ((?:--no-deps )?)'?([\w.-]+)(?:\[(\w+)\])?"):
        seen += 1
        if found[2] == "qdx":
            assert found[3] in project["optional-dependencies"], where
        else:
            assert found[2].split("==")[0].lower() in known, where
    for where, found in _named(r"qdx\[(\w+)\]"):
        assert found[1] in project["optional-dependencies"], where
    assert seen > 8


def test_functions_that_messages_name_are_there() -> None:
    seen = set()
    for where, found in _named(r"(?<![\w./-])qdx\.(\w+)(\()?"):
        if f"-m {found[0]}" in where or found[1] in FILES:
            continue
        seen.add(found[1])
        there = hasattr(package, found[1]) or importlib.util.find_spec(f"qdx.{found[1]}") is not None
        # `.qdx` of a tree has the methods of the accessor; Hydra has the resolvers by these names
        assert there or hasattr(TreeAccessor, found[1]) or found[1] in ("gpus", "gpu", "plain"), where
    assert {"open", "run", "register"} <= seen, seen
