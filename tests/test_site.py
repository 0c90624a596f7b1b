"""The documentation as pages: built without a warning, as complete as the sources, asking no other server."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.programs import lacking, program

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# What a browser fetches by itself when it shows a page; a link (`a`) is followed by a reader.
FETCHED = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "input": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}
ROOMS = ("", "analysis", "backends", "capture", "metrics", "prompts", "records", "report", "verification")
CONSTANTS = {"KEPT", "RECORDS"}  # names of folders: there is nothing to say of them

pytestmark = pytest.mark.extra


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built pages; ``QDX_SITE_BUILT`` names one that was built before."""
    if built := os.environ.get("QDX_SITE_BUILT"):
        return Path(built)
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings")):
        lacking("mkdocs-material or mkdocstrings is not installed: pip install 'qdx[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    return folder


class Fetched(HTMLParser):
    """The addresses that a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("canonical", "next", "prev"):
            return  # says what a page is, and is not fetched
        for name in {FETCHED.get(tag, ""), "srcset", "poster"}:
            if value := values.get(name):
                self.addresses.append(value)
        if tag == "meta" and (values.get("http-equiv") or "").lower() == "refresh":
            self.addresses.append(values.get("content") or "")


def fetched(page: str) -> list[str]:
    """Return what a page makes a browser fetch from another server."""
    reader = Fetched()
    reader.feed(page)
    return [one for one in reader.addresses if re.search(r"(^|[\s=,])(https?:)?//", one)]


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="preconnect" href="//fonts.example" crossorigin>',
        '<img src="a.png" srcset="a.png 1x, https://img.example/b.png 2x">',
    ],
)
def test_a_page_that_would_ask_another_server_is_noticed(page: str) -> None:
    assert fetched(page) and not fetched('<a href="https://x.example">x</a><img src="images/a.png">')


def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert {str(page): found for page in pages if (found := fetched(page.read_text(encoding="utf-8")))} == {}
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), (
            sheet
        )


def test_every_page_of_the_repository_is_a_page_of_the_site(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        built = page.relative_to(DOCS).with_suffix(".html")
        built = built.with_name("index.html") if page.name == "README.md" else built
        assert (site / built).is_file(), built
    assert (site / "contributing.html").is_file() and (site / "changelog.html").is_file()


def test_every_public_name_of_a_room_is_in_the_reference(site: Path) -> None:
    shown = {
        name.rpartition(".")[2]
        for page in (site / "reference").glob("*.html")
        for name in re.findall(r'id="(qdx[\w.]*)"', page.read_text(encoding="utf-8"))
    }
    for room in ROOMS:
        tree = ast.parse((ROOT / "qdx" / room / "__init__.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                assert set(ast.literal_eval(node.value)) - shown <= CONSTANTS, room


def test_every_option_of_a_config_group_is_in_the_reference(site: Path) -> None:
    page = (site / "reference" / "config.html").read_text(encoding="utf-8")
    for file in (ROOT / "conf").rglob("*.yaml"):
        if file.parent.name == "conf":
            continue
        group = file.parent.relative_to(ROOT / "conf").as_posix()
        assert f"<code>{group}={file.stem}</code>" in page


def test_no_list_is_swallowed_by_the_paragraph_before_it(site: Path) -> None:
    """GitHub ends a paragraph where a list begins, Python-Markdown wants an empty line between them."""
    for page in site.rglob("*.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.DOTALL):
            assert not re.search(r"\n(- |\* |1\. )", paragraph), f"{page.relative_to(site)}: {paragraph}"


def test_the_first_page_shows_the_report(site: Path) -> None:
    assert 'src="images/report.png"' in (site / "index.html").read_text(encoding="utf-8")
    assert (site / "images" / "report.png").is_file()


def test_a_search_finds_pages_from_a_folder_without_a_server(site: Path, tmp_path: Path) -> None:
    command = [program("chromium", "chromium"), "--headless=new", "--no-sandbox", "--disable-gpu"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{site}/index.html?q=exllama"], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.count('class="md-search-result__item"') >= 3, done.stdout[-2000:]
