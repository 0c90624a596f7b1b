"""summary.json has the keys that docs/summary.md documents, of the types that it states, and no others."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qdx
from qdx.endpoints import Asked
from qdx.report import build
from qdx.report.asked import _summary
from qdx.report.state import Facts
from qdx.report.summary import SUMMARY_VERSION, VERDICT_SCHEMA, nested, verdicts
from qdx.verification import verify
from tests.analysis import replaying
from tests.helpers import write_sweep

PAGE = (Path(qdx.__file__).parent.parent / "docs" / "summary.md").read_text(encoding="utf-8")
TYPES: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "any": (object,),
}


@dataclass(frozen=True)
class Row:
    key: str
    kind: str
    unit: str
    when: str
    by: str = ""


def rows(title: str) -> list[Row]:
    """The rows of the table under a heading."""
    part = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    found = []
    for line in re.findall(r"^\| `.*$", part, re.MULTILINE):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        key = cells[0].strip("`")
        found.append(
            Row(key, cells[2], cells[3], cells[4], cells[1])
            if title == "Analyses"
            else Row(key, cells[1], cells[2], cells[3])
        )
    return found


FILE, ANALYSES, SERVERS = rows("The file"), rows("Analyses"), rows("A sweep that asked servers")


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its place: ``a.b[].c``, a dot in a key as it is."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from leaves(one, f"{at}\x00{key}" if at else key)
    elif isinstance(value, list):
        for one in value:
            yield from leaves(one, f"{at}[]")
    else:
        yield at, value


def pattern(key: str) -> re.Pattern[str]:
    parts = ["[^\x00]+?" if re.fullmatch(r"<\w+>", p) else re.escape(p) for p in re.split(r"\.", key)]
    parts = [re.sub(r"^<\w+>\\\[\\\]$", r"[^\\x00]+?\\[\\]", part) for part in parts]
    return re.compile("\x00".join(parts))


def check(summary: Mapping[str, Any], table: list[Row], when: set[str]) -> None:
    """Hold a summary against a table: each value has a row and its type, each row a value."""
    seen: set[str] = set()
    # A fixed key is meant before one that stands for any.
    patterns = [(row, pattern(row.key)) for row in sorted(table, key=lambda row: row.key.count("<"))]
    for place, value in leaves({k: v for k, v in summary.items() if k != "analyses"}):
        found = next((row for row, of in patterns if of.fullmatch(place)), None)
        assert found, f"{place!r} is not in docs/summary.md"
        check_type(found.kind, value, place)
        seen.add(found.key)
    tops = {row.key.partition(".")[0].removesuffix("[]") for row in table}
    assert set(summary) - {"analyses"} <= tops
    for row in table:
        top = row.key.partition(".")[0].removesuffix("[]")
        if row.when in when and top != "analyses":
            assert top in summary, row.key
            if "<" not in row.key and "[]" not in row.key:
                assert row.key in seen, f"{row.key} is in docs/summary.md, and not in the file"


def check_type(kind: str, value: Any, place: str) -> None:
    if value is None:
        assert kind in ("number", "any") or "null" in kind, f"{place!r} is null"
        return
    kinds = tuple(one for name in kind.split(" or ") for one in TYPES.get(name, ()))
    fits = isinstance(value, kinds) and (not isinstance(value, bool) or "boolean" in kind or kind == "any")
    assert fits, f"{place!r} is {value!r}, documented as {kind}"


def check_analyses(analyses: Mapping[str, Any], names: set[str], when: set[str]) -> None:
    documented = {row.key: row for row in ANALYSES}
    for analysis in names:
        for variable, value in analyses[analysis].items():
            row = documented.get(f"{analysis}.{variable}")
            assert row, f"analyses.{analysis}.{variable} is not in docs/summary.md"
            deep = 0 if row.by in ("", "a list") else len(row.by.split(", "))
            for place, leaf in leaves(value):
                assert place.count("\x00") + bool(place) == deep or row.by == "a list", (row.key, place)
                check_type(row.kind, leaf, row.key)
    for row in ANALYSES:
        analysis, _, variable = row.key.partition(".")
        if analysis in names and row.when in when:
            assert variable in analyses[analysis], f"{row.key} is in docs/summary.md, and not in the file"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    folder = write_sweep(tmp_path_factory.mktemp("summary") / "s", ["awq", "gptq"], repeats=2)
    build(folder, console=False, trust=True, formats=["txt"])
    content: Mapping[str, Any] = json.loads((folder / "summary.json").read_text())
    return content


def test_a_sweeps_summary_has_exactly_the_documented_keys(finished: Mapping[str, Any]) -> None:
    check(finished, FILE, {"always", "finished"})
    names = set(finished["analyses"])
    assert names == {"noise_floor", "consistency", "effects", "classes", "pairs", "snr", "cost"}
    check_analyses(finished["analyses"], names, {"finished"})


def test_the_page_states_the_versions_that_are_written(finished: Mapping[str, Any]) -> None:
    assert finished["schema_version"] == SUMMARY_VERSION
    assert f"`summary` in version {SUMMARY_VERSION} and `servers` in version 1" in PAGE
    assert f"| `verdicts.schema_version` | integer | | verifier | {VERDICT_SCHEMA} |" in PAGE


def test_a_verifiers_verdicts_have_exactly_the_documented_keys(finished: Mapping[str, Any]) -> None:
    section = verify(*replaying.trees({"a": 0.0, "b": 0.0}, references=4, tokens=6))
    told = {**finished, "verdict": section.result.attrs["headline"], "verdicts": verdicts(section)}
    check(told, FILE, {"always", "finished", "verifier"})
    kept = {str(name): nested(section.result[name]) for name in section.result.data_vars}
    check_analyses({"verify": kept}, {"verify"}, {"verifier"})


def test_a_sweep_without_a_finished_run_has_what_is_always_there(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", [], repeats=1)
    (folder / "sweep.json").write_text(json.dumps({"labels": ["awq"], "resume": "", "command_line": ""}))
    build(folder, console=False, trust=True, formats=["txt"])
    content = json.loads((folder / "summary.json").read_text())
    check(content, FILE, {"always"})
    assert content["labels"]["missing"] == ["awq"]


def test_a_summary_of_servers_has_exactly_the_documented_keys(tmp_path: Path) -> None:
    one = Asked(
        "openai",
        {"base_url": "http://127.0.0.1", "requests": 3},
        answered=2,
        prompt_tokens=np.array([0, 1]),
        seconds=np.array([0.5, 0.7]),
    )
    facts = Facts(tmp_path, ["openai"], [], {})
    told = _summary(facts, [one], "2026-11-28T10:00:00Z", {"report.txt": tmp_path / "report.txt"}, "")
    shared = [row for row in FILE if row.key in ("qdx_version", "time_utc", "directory")]
    labels = [row for row in FILE if row.key.startswith("labels.")]
    check(json.loads(json.dumps(told)), [*SERVERS, *shared, *labels], {"servers", "always"})


def test_every_row_of_the_page_is_read_by_this_test() -> None:
    assert len(FILE) > 50 and len(ANALYSES) > 80 and len(SERVERS) > 15
    everything = len(re.findall(r"^\| `", PAGE, re.MULTILINE))
    assert len(FILE) + len(ANALYSES) + len(SERVERS) == everything
    for row in (*FILE, *ANALYSES, *SERVERS):
        assert row.kind in ("nested", *TYPES) or row.kind.endswith(" or null"), row
