"""What the site has beside `docs/`: pages of the repository's root, and the options of each config group.

mkdocs loads this module as a hook (`mkdocs.yml`). Pages that stand in the root, where a reader of the
repository looks for them, become pages of the site, with their links made to lead there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
OPTIONS = re.compile(r"^<!-- options of (\S+) -->$", re.MULTILINE)
OTHERS = "<!-- options of all other groups -->"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


SECTIONS = {"howto": "How to", "results": "Results", "handbook": "Explanation"}


def on_config(config: Any) -> Any:
    """Append pages that the navigation does not name to their folder's section, else to the reference."""
    named = set(pages_of(config.nav))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        page = path.relative_to(ROOT / "docs").as_posix()
        if page not in named:
            section = SECTIONS.get(page.partition("/")[0], "Reference")
            next(entry[section] for entry in config.nav if section in entry).append(page)
    return config


def pages_of(nav: Any) -> list[str]:
    """Return the pages that a navigation names, whatever the depth."""
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in pages_of(entry)]


def on_files(files: Any, config: Any) -> Any:
    """Add the root's pages to those of ``docs/``."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=within(text)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the files of a config group where a page asks for them: ``<!-- options of metric -->``."""
    if OTHERS in markdown:
        folders = {
            path.parent.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*/*.yaml")
        }
        left = sorted(folders - set(OPTIONS.findall(markdown)))
        markdown = markdown.replace(
            OTHERS, "\n\n".join(f"## {group}\n\n<!-- options of {group} -->" for group in left)
        )
    return OPTIONS.sub(lambda found: options(found[1]), markdown)


def within(text: str) -> str:
    """Return a page of the root with links that lead to the same places from within ``docs/``."""
    return LINK.sub(lambda found: PAGES.get(found[1], found[1].removeprefix("docs/")), text)


def options(group: str) -> str:
    """Return the YAML of each option of a group, or of one file, as Markdown.

    Raises
    ------
    FileNotFoundError
        When ``conf/`` has neither a file nor a folder of that name, so that the page names what is gone.
    """
    path = ROOT / "conf" / group
    if path.is_file():
        return fenced(path)
    found = sorted(path.glob("*.yaml"))
    if not found:
        raise FileNotFoundError(f"docs/reference/config.md asks for options of {group}, and {path} has none")
    return "\n\n".join(f"`{group}={one.stem}`\n\n{fenced(one)}" for one in found)


def fenced(path: Path) -> str:
    """Return a YAML file as a block of code."""
    return f"```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```"
