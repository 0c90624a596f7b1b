"""Write docs/reference.md: the config groups, and the Python interface from its docstrings.

``python docs/build_reference.py`` writes it, ``--check`` fails when it is not what the code says.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGET = HERE / "reference.md"
CONF = HERE.parent / "conf"
GROUPS = {
    "model": "Which checkpoint each format is read from.",
    "quant": "Format and kernel.",
    "backend": "What runs the model.",
    "prompts": "Where references come from.",
    "capture": "What is kept of each position.",
    "metric": "Distances, a list: `'metric=[l2,kl]'`.",
    "analysis": "What the report says, a list.",
    "experiment": "Sets of defaults.",
    "hydra/launcher": "What runs several jobs at once.",
    "hydra/sweeper": "How the jobs of a sweep are handed out.",
    "hydra/callbacks": "What else is done with a sweep, when its report is written.",
}
# Module → names; what is not listed here may change without notice.
PUBLIC = {
    "qdx": ("open", "run", "expand", "register"),
    "qdx.accessor": ("TreeAccessor", "DatasetAccessor"),
    "qdx.backends": ("Backend", "OnePass", "Facts"),
    "qdx.capture": ("Recorder", "CaptureSettings"),
    "qdx.plot": ("Plots",),
    "qdx.analysis": None,
    "qdx.document.charts": ("matrix", "positions", "curves", "signal_and_noise", "strips", "bars"),
    "qdx.verification": None,
    "qdx.metrics": None,
    "qdx.prompts": None,
    "qdx.report": None,
}
SECTIONS = ("Parameters", "Returns", "Yields", "Raises", "Attributes", "Notes", "Examples")


def main() -> int:
    """Write or check the page."""
    text = "\n".join([_config(), _python()]) + "\n"
    if "--check" not in sys.argv:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET} is not what the code says: run python docs/build_reference.py", file=sys.stderr)
    return 1


def _config() -> str:
    lines = [
        "# Reference",
        "",
        "Written by `docs/build_reference.py`; change the code and its docstrings instead.",
        "",
    ]
    lines += [
        "## Config",
        "",
        "`conf/config.yaml`, with what each key is:",
        "",
        *_yaml(CONF / "config.yaml"),
        "",
    ]
    for group, what in GROUPS.items():
        lines += [f"### {group}", "", what, ""]
        for path in sorted((CONF / group).glob("*.yaml")):
            lines += [f"`{group}={path.stem}`", "", *_yaml(path), ""]
    return "\n".join(lines)


def _yaml(path: Path) -> list[str]:
    return ["```yaml", path.read_text(encoding="utf-8").rstrip(), "```"]


def _python() -> str:
    lines = ["## Python", ""]
    for module_name, names in PUBLIC.items():
        module = importlib.import_module(module_name)
        lines += [f"### {module_name}", "", _paragraph(inspect.getdoc(module)), ""]
        for name in names or module.__all__:
            member = getattr(module, name)
            if not callable(member):
                continue
            lines += _member(f"{module_name}.{name}", member)
    return "\n".join(lines).rstrip()


def _member(title: str, member: Any) -> list[str]:
    lines = [f"#### {title}", "", f"`{title.rpartition('.')[2]}{_signature(member)}`", "", *_body(member), ""]
    if inspect.isclass(member):
        for name, method in vars(member).items():
            if name.startswith("_") or not inspect.isfunction(method) or not inspect.getdoc(method):
                continue
            lines += [f"**{name}**`{_signature(method)}`", "", *_body(method), ""]
    return lines


def _signature(member: Any) -> str:
    try:
        shown = str(inspect.signature(member))
    except (TypeError, ValueError):
        return "(…)"
    return re.sub(r"<[^>]* at 0x[0-9a-f]+>", "…", shown)


def _body(member: Any) -> list[str]:
    """A numpydoc docstring as Markdown: its sections as headings, entries as lists."""
    lines = (inspect.getdoc(member) or "").splitlines()
    out: list[str] = []
    section = ""
    for number, line in enumerate(lines):
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if line in SECTIONS and set(below) == {"-"}:
            section = line
            out += ["", f"*{line}*", ""]
        elif section and set(line) == {"-"} and lines[number - 1] == section:
            continue
        elif section in SECTIONS[:5] and line and not line.startswith(" "):
            out.append(f"- `{line}`")
        else:
            out.append(f"  {line.strip()}" if section in SECTIONS[:5] and line.strip() else line)
    text = re.sub(r"\n{3,}", "\n\n", _marked("\n".join(out)))
    text = text.replace("  # doctest: +SKIP", "")
    fenced = re.sub(r"((?:^>>>.*\n?)(?:^(?!\n|\*).+\n?)*)", r"```pycon\n\1\n```", text, flags=re.MULTILINE)
    return fenced.replace("\n\n```\n", "\n```\n").splitlines()


def _paragraph(text: str | None) -> str:
    return _marked(text or "")


def _marked(text: str) -> str:
    """Double backticks as single ones; a role-less `name` stays as it is."""
    return text.replace("``", "`")


if __name__ == "__main__":
    sys.exit(main())
