"""Every block of shell and Python in docs/ runs, with tiny checkpoints in place of the models that it names.

A comment before a block says what is to be done with it: ``<!-- file: PATH -->`` writes it into the working
folder before it runs, ``<!-- not run: REASON -->`` only composes the commands in it. Blocks of a page share a
folder.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import qdx
from tests import warm_shell
from tests.sweeping import SMALL, checkpoints, environment

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name not in ("handbook", "results"))
BLOCK = re.compile(r"(?:<!-- (file|not run): ([^\n]*?) -->\n)?```(\w*)\n(.*?)```", re.DOTALL)
# A sweep takes half a minute, and some of these pages have ten; what a page says of files alone is quick.
SWEEP = re.compile(r"^python -m qdx( |$)|^qdx |qdx\.run\(", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    kind: str  # "file", "not run" or ""
    said: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match.groups(default="")) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def named(page: Path) -> object:
    """The page as a case of a test, slow where a block that runs makes a sweep."""
    slow = any(block.kind != "not run" and SWEEP.search(block.text) for block in blocks(page))
    return pytest.param(page, id=str(page.relative_to(DOCS)), marks=[pytest.mark.slow] if slow else [])


def commands(text: str) -> list[list[str]]:
    """The overrides of every sweep that a block starts."""
    found = []
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words[:3] == ["python", "-m", "qdx"]:
            found.append([word for word in words[3:] if word not in ("-m", "||", "true")])
    return found


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Iterator[Path]:
    """A folder with a ``python`` that makes every sweep small, and the script ``qdx``.

    Sweeps are forks. They measure and write less than they do by default, unless the page says what.
    """
    folder = tmp_path_factory.mktemp("tools")
    own = [key for key in SMALL if not key.startswith("backend.")]  # a page may choose another backend
    models = checkpoints(tiny_models)
    of_transcripts = shlex.join(
        ["repeats=2", "repeat_scope=engine", "report.formats=[txt]", *models]
    )  # which state their lengths
    quick = shlex.join(["metric=[l2,kl]", "report.formats=[txt]"])
    with warm_shell.serving() as fork:
        (folder / "python").write_text(
            "#!/bin/bash\n"
            f"run={fork}\n"
            'case "$*" in\n'
            f'  "-m qdx "*prompts=transcripts*) exec $run "$@" {of_transcripts} ;;\n'
            f'  "-m qdx "*prompts=challenge*) exec $run "$@" {of_transcripts} ;;\n'
            f'  "-m qdx.challenge "*) exec $run "$@" {shlex.join([*own, *models])} ;;\n'
            f'  "-m qdx "*) exec $run -m qdx {quick} "${{@:3}}" {shlex.join([*own, *models])} ;;\n'
            '  "-m qdx."*) exec $run "$@" ;;\n'
            f'  *) exec {sys.executable} "$@" ;;\n'
            "esac\n"
        )
        (folder / "qdx").write_text(f"#!{sys.executable}\nfrom qdx.__main__ import main\n\nmain()\n")
        for file in folder.iterdir():
            file.chmod(0o755)
        yield folder


@pytest.mark.parametrize("page", [named(page) for page in PAGES])
def test_every_block_of_a_page_runs(
    page: Path, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for block in blocks(page):
        assert block.language in ("sh", "python"), (
            f"{page.name}: a block of {block.language or 'no language'}"
        )
        if block.kind == "not run":
            continue
        if block.kind == "file":
            path = tmp_path / block.said
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        run = (
            ["bash", "-e", "-c", block.text] if block.language == "sh" else [sys.executable, "-c", block.text]
        )
        done = subprocess.run(run, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_block_that_is_not_run_has_a_reason_and_composes(page: Path) -> None:
    for block in blocks(page):
        if block.kind != "not run":
            continue
        assert len(block.said.split()) > 1
        for overrides in commands(block.text):
            assert qdx.compose(overrides)


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    words = re.sub(r"[`*_]|\]\([^)]*\)|\[", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


LINKED = [*sorted(DOCS.rglob("*.md")), *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md"))]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    """As GitHub sees it; `mkdocs build --strict` holds the same for the site and its anchors."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        file = (page.parent / target) if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}#{anchor}"


def test_bash_completes_groups_options_and_keys(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    script = (
        'eval "$(qdx -sc install=bash)"; COMP_LINE="qdx $1"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=1; '
        'hydra_bash_completion; printf "%s\\n" "${COMPREPLY[@]}"; complete -p qdx'
    )
    for typed, expected in (
        ("quant=awq_", {"quant=awq_machete", "quant=awq_marlin"}),
        ("hydra/launcher=su", {"hydra/launcher=submitit_local", "hydra/launcher=submitit_slurm"}),
        ("backend.thr", {"backend.threads="}),
    ):
        done = subprocess.run(
            ["bash", "-c", script, "bash", typed],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        said = done.stdout.split("\n")
        assert expected <= set(said), done.stdout + done.stderr
        assert any("hydra_bash_completion qdx" in line for line in said)
