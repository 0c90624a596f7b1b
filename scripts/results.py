"""The tables of docs/results, made again from the recorded files that they rest on; this needs no GPU.

    python scripts/results.py                    what there is: each table and its recorded files
    python scripts/results.py NAME               one table
    python scripts/results.py --write [NAME …]   put tables into their pages and text files

A table whose name ends with ``.txt`` is that file of docs/results. Another one is Markdown and stands in a
page of docs/results under the line ``<!-- table: NAME -->``. `PRINTED` has the text files that cannot be made
again, since only what was printed of their runs was kept. ``tests/test_results.py`` compares all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
H100, H200 = "h100_vllm_0_20_2", "h200_vllm_0_20_2"
H100_33, H200_33 = "h100_vllm_0_33_0", "h200_vllm_0_33_0"
VERDICTS = f"{H200}/verdicts"
STARTS = [f"{H100_33}/runners/{name}.nc" for name in ("rows", *(f"start_{i}" for i in range(2, 8)))]


@dataclass(frozen=True)
class Table:
    """How a table is made.

    Attributes
    ----------
    question : str
        What it answers.
    data : tuple of str
        The recorded files, within docs/results.
    make : callable
        Takes their paths, returns the table's lines.
    page : str
        Where it stands, if it is Markdown.
    slow : bool
        Whether making it takes more than a few seconds.
    """

    question: str
    data: tuple[str, ...]
    make: Callable[..., Iterable[str]]
    page: str = ""
    slow: bool = False

    def lines(self) -> list[str]:
        """Return the table as it stands in its file or page."""
        return [
            line.replace(f"{RESULTS}/", "") for line in self.make(*(RESULTS / name for name in self.data))
        ]


@cache
def script(place: str) -> ModuleType:
    """Return a script of the repository as a module."""
    path = ROOT / place
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(str(cell) for cell in line)} |".replace("| --- ", "|---") for line in lines]


def equal_on_two_cards(*paths: Path) -> list[str]:
    """Count the rows that are equal on two cards; `paths` are pairs of sweeps, the models in order."""
    found: dict[str, dict[str, list[str]]] = {}
    kernels: dict[str, str] = {}
    models = list(zip(paths[::2], paths[1::2], strict=True))
    for number, (one, two) in enumerate(models):
        for line in script("scripts/gpu/compare_hashes.py").lines(str(one), str(two))[2:]:
            label, _, equal, _, both, _, kernel, _, _ = line.split()
            kernels[label] = kernel
            found.setdefault(label, {}).setdefault(str(number), []).append(f"{equal}/{both}")
    cells = [
        [label, kernels[label], *(", ".join(of.get(str(i), ["–"])) for i in range(len(models)))]
        for label, of in found.items()
    ]
    rows = "rows equal in prefill, free decode, replay"
    return markdown(["config", "kernel, observed on both", f"demo model: {rows}", "Qwen3-8B's shape"], cells)


def repeats(*paths: Path) -> list[str]:
    """Count the rows of each config that are equal in all its repeats, one column for each model."""
    found: dict[str, list[list[str]]] = {}
    for path in paths:
        for line in script("scripts/gpu/prove_vllm.py").table(path)[1:-1]:
            label, *rest = line.replace(" rows", "").split()
            found.setdefault(label, []).append(rest)
    cells = []
    for label, models in found.items():
        asked, observed = models[0][:2]
        counts = [", ".join(one[2:5]) for one in models] + ["–"] * (len(paths) - len(models))
        exact = ", ".join("yes" if one[5] == "1" else "no" for one in models)
        cells.append(
            [label, observed if asked in (observed, "any") else f"{observed}, not {asked}", *counts, exact]
        )
    names = ["demo model", "Qwen3-8B's shape"][: len(paths)]
    heads = [f"{name}: rows equal in all repeats, prefill, decode, replay" for name in names]
    return markdown(["config", "loaded kernel", *heads, "replays itself exactly"], cells)


def versions(path: Path) -> list[str]:
    """Add up, over batches and runners, the rows of a version that are equal to those of the oldest one."""
    total: dict[tuple[str, str, str, str], list[list[int]]] = {}
    for line in script("scripts/gpu/versions.py").table(path):
        cells = line.split()
        if len(cells) < 8 or "/" not in cells[5]:
            continue
        kernel, form, _, version, _, *counts, against, _, _ = cells
        sums = total.setdefault((kernel, form, version, against), [[0, 0] for _ in counts])
        for one, count in zip(sums, counts, strict=True):
            for i, part in enumerate(count.split("/")):
                one[i] += int(part)
    rows = [[*key, *(f"{equal}/{both}" for equal, both in sums)] for key, sums in total.items()]
    return markdown(["kernel", "format", "version", "against", "prefill", "free decode", "replay"], rows)


def runners(path: Path) -> list[str]:
    """Count the rows that are equal under both model runners, eager, tokens pinned."""
    module = script("scripts/gpu/runners.py")
    rows = module.Rows(path)
    lines = []
    for quant in module.QUANTS:
        one, two = f"{quant}-v1-eager", f"{quant}-v2-eager"
        cells = [
            ", ".join(
                module._count(rows.compared((one, name, "pinned", 0), (two, name, "pinned", 0), phase))
                for phase in module.PHASES
            )
            for name in rows.scenarios
        ]
        lines.append([quant, rows.engines[one]["observed_kernel"], *cells])
    return markdown(["config", "kernel", *rows.scenarios], lines)


def capture(path: Path) -> list[str]:
    """Return what capturing cost, from what `benchmarks/capture.py` measured."""
    found = json.loads(path.read_text(encoding="utf-8"))
    (measured,) = (found[engine] for engine in found if engine != "model")
    rows = [
        [
            row["way"],
            f"{row['engine_s']:.3f} s ({row['least_s']:.3f} – {row['most_s']:.3f})",
            f"{row['ratio_to_plain']:.3f}",
            f"{row['drain_s']:.2f} s",
        ]
        for row in measured["rows"]
    ]
    head = ["way", "engine's time, median (least – most)", "× plain, median of the rounds", "after it"]
    return markdown(head, rows)


def measured(path: Path) -> Iterable[str]:
    """Return the lines that `benchmarks/capture.py` prints of what it measured."""
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = script("benchmarks/capture.py").lines
    return [line for engine in found if engine != "model" for line in lines(engine, found[engine])]


def own_time(path: Path) -> Iterable[str]:
    """Return the table of `scripts/gpu/own_time.py`."""
    table: Iterable[str] = script("scripts/gpu/own_time.py").table(
        json.loads(path.read_text(encoding="utf-8"))
    )
    return table


def claims(made: Path, verified: Path) -> Iterable[str]:
    """Judge every producer under every config's name."""
    lines: Iterable[str] = script("scripts/gpu/verdicts.py").claims(verified.parent, made, reasons=False)
    return lines


def verdicts(*paths: Path) -> list[str]:
    """Count the verdicts that each producer gets under its own and under the other names."""
    rows = []
    for path in paths:
        of: dict[str, list[list[str]]] = {}
        for line in path.read_text(encoding="utf-8").splitlines()[2:-2]:
            label, claim, rest = re.split(r" +", line, maxsplit=2)
            verdict, _, decode, prefill = re.split(r" {2,}", rest)
            of.setdefault(label, []).append([claim, verdict, decode, prefill])
        for label, (own, *others) in of.items():
            kinds = [verdict for _, verdict, _, _ in others]
            said = ", ".join(f"{kind}: {kinds.count(kind)}" for kind in sorted(set(kinds)))
            rows.append([PLACES[path.name], label, own[2], own[3], own[1], said])
    head = ["judged", "made by", "decode rows equal", "prefill rows equal", "under its own name"]
    return markdown([*head, "under the other names"], rows)


PLACES = {
    "claims_base.txt": "on an H200, one by one",
    "claims_batch4.txt": "on an H200, in batches of four",
    "claims.txt": "on an H100, one by one",
}


def attributed(made: Path, *verified: Path) -> list[str]:
    """Name the config of each transcript by likelihood and by distance, every reference left out in turn."""
    import qdx
    from qdx.verification import attribution

    rows = []
    for path in verified:
        with qdx.open(made) as producers, qdx.open(path) as verifier:
            found = attribution(producers, verifier, draws=2).result
            card = str(verifier["replay"].to_dataset()["gpu"].values.flat[0])
        for label in (str(value) for value in found["producer"].values):
            one: Any = found.sel(producer=label)
            total = int(one["transcripts"])
            other = int(one["bit_equal"].sum()) - int(one["bit_equal"].sel(config=label))
            counts = (one["likeliest_right"], one["nearest_right"], one["bit_equal"].sel(config=label), other)
            rows.append([card, label, *(f"{int(count)} of {total}" for count in counts)])
    head = ["judged on", "made by", "likeliest is right", "nearest is right"]
    return markdown([*head, "every decode row equal", "equal to another config's"], rows)


PAIRS = tuple(f"{card}/{model}/sweep.nc" for model in ("demo", "qwen3_8b_shape") for card in (H100, H200))
CLAIMS = (
    f"{VERDICTS}/claims_base.txt",
    f"{VERDICTS}/claims_batch4.txt",
    f"{H100}/verdicts_of_h200/claims.txt",
)
MADE = f"{VERDICTS}/base/producers.nc"


def _script(place: str, function: str) -> Callable[..., Iterable[str]]:
    """Return a script's function, which is loaded when the table is made."""

    def make(*paths: Path) -> Iterable[str]:
        lines: Iterable[str] = getattr(script(place), function)(*paths)
        return lines

    return make


def _kernels(path: Path) -> list[str]:
    module = script("scripts/gpu/prove_vllm.py")
    return [*module.table(path), *module.classes(path)]


def _two(one: Path, two: Path) -> Iterable[str]:
    lines: Iterable[str] = script("scripts/gpu/compare_hashes.py").lines(str(one), str(two))
    return lines


def _starts(*paths: Path) -> Iterable[str]:
    lines: Iterable[str] = script("scripts/gpu/runners.py").starts(list(paths))
    return lines


TABLES = {
    "cards": Table("Are an H200's rows the H100's?", PAIRS, equal_on_two_cards, "equal_rows.md"),
    f"{H200}/demo/equal_to_h100.txt": Table("The same, as printed: demo model", PAIRS[:2], _two),
    f"{H200}/qwen3_8b_shape/equal_to_h100.txt": Table("The same: Qwen3-8B's shape", PAIRS[2:], _two),
    "versions": Table(
        "Did a version of vLLM change the rows?", (f"{H100_33}/versions.nc",), versions, "equal_rows.md"
    ),
    f"{H100_33}/versions.txt": Table(
        "The same, each batch and runner",
        (f"{H100_33}/versions.nc",),
        _script("scripts/gpu/versions.py", "table"),
    ),
    "runners": Table(
        "Are rows equal under both model runners?", (f"{H100_33}/runners/rows.nc",), runners, "equal_rows.md"
    ),
    f"{H100_33}/runners.txt": Table(
        "The same, with graphs, company and settings",
        (f"{H100_33}/runners/rows.nc",),
        _script("scripts/gpu/runners.py", "table"),
    ),
    f"{H100_33}/starts.txt": Table("Do two starts with graphs give equal rows?", tuple(STARTS), _starts),
    f"{H200_33}/settings.txt": Table(
        "Which settings and which company move rows?",
        (f"{H200_33}/settings.nc",),
        _script("scripts/gpu/settings.py", "table"),
    ),
    "repeats": Table(
        "Do the kernels repeat?",
        (f"{H100}/demo/sweep.nc", f"{H100}/qwen3_8b_shape/sweep.nc"),
        repeats,
        "kernels.md",
    ),
    f"{H100}/demo/kernels.txt": Table(
        "The same, as printed: demo model", (f"{H100}/demo/sweep.nc",), _kernels
    ),
    f"{H100}/qwen3_8b_shape/kernels.txt": Table(
        "The same: Qwen3-8B's shape", (f"{H100}/qwen3_8b_shape/sweep.nc",), _kernels
    ),
    "formats": Table(
        "Do the formats that vLLM alone reads repeat?", (f"{H100}/formats/sweep.nc",), repeats, "kernels.md"
    ),
    f"{H200_33}/formats.txt": Table(
        "Formats that are sold: kernels, repeats, distances, cost",
        (f"{H200_33}/formats.nc",),
        _script("scripts/gpu/formats.py", "table"),
    ),
    CLAIMS[0]: Table(
        "Does each claim stand or fall?", (MADE, f"{VERDICTS}/base/sweep.nc"), claims, slow=True
    ),
    CLAIMS[1]: Table(
        "The same in batches of four",
        (f"{VERDICTS}/batch4/producers.nc", f"{VERDICTS}/batch4/sweep.nc"),
        claims,
        slow=True,
    ),
    CLAIMS[2]: Table(
        "And of an H200's records, judged on an H100?",
        (MADE, f"{H100}/verdicts_of_h200/sweep.nc"),
        claims,
        slow=True,
    ),
    "verdicts": Table("Do true claims stand and false ones fall?", CLAIMS, verdicts, "verdicts.md"),
    "attributed": Table(
        "Which config made a transcript? 16 references",
        (MADE, f"{VERDICTS}/base/sweep.nc", f"{H100}/verdicts_of_h200/sweep.nc"),
        attributed,
        "attribution.md",
        slow=True,
    ),
    "capture_h200": Table(
        "What does capturing cost?", (f"{H200_33}/capture_graphs_v2.json",), capture, "costs.md"
    ),
    f"{H200_33}/capture_graphs_v2.txt": Table(
        "The same, as printed", (f"{H200_33}/capture_graphs_v2.json",), measured
    ),
    "capture_h100": Table(
        "The same before rows stayed on the card", (f"{H100_33}/capture_graphs_v2.json",), capture, "costs.md"
    ),
    f"{H100_33}/capture_graphs_v2.txt": Table(
        "The same, as printed", (f"{H100_33}/capture_graphs_v2.json",), measured
    ),
    "capture_long": Table(
        "And of long prompts, with vLLM 0.20.2?", (f"{H100}/capture_graphs.json",), capture, "costs.md"
    ),
    **{
        f"{H200_33}/{name}.txt": Table(question, (f"{H200_33}/{name}.json",), own_time)
        for name, question in (
            ("own_time", "How much time is qdx's own?"),
            ("own_time_three_repeats", "The same with three repeats"),
        )
    },
}

# Text files, and folders of them, that no recorded file is left of, with the reason. A page says so above
# each table that rests on one.
REPORT = "the report of the version of that day; the recorded sweep beside it makes one of today's"
PRINTED = {
    f"{H100}/attribution": "the sweeps of 100 references were not kept",
    f"{H100}/axes": "the sweeps were not kept",
    f"{H200}/axes": "the sweeps were not kept",
    f"{H100}/capture_eager.txt": "printed by an older benchmarks/capture.py, with the JSON file beside it",
    f"{H100}/capture_graphs.txt": "printed by an older benchmarks/capture.py, with the JSON file beside it",
    f"{H100}/errors.txt": "what jobs printed when they failed",
    f"{H100}/fidelity_exact.txt": "the recorded outputs were not kept",
    f"{H100}/fidelity_float32.txt": "the recorded outputs were not kept",
    f"{H100}/launches.txt": "the launches were printed and not recorded",
    f"{H100}/demo/report.txt": REPORT,
    f"{H100}/qwen3_8b_shape/report.txt": REPORT,
    f"{H100}/formats/report.txt": REPORT,
    f"{H100}/verdicts_of_h200/report.txt": REPORT,
    f"{H200}/demo/report.txt": REPORT,
    f"{H200}/qwen3_8b_shape/report.txt": REPORT,
    f"{H200}/analysis.txt": "a time on a machine",
    f"{VERDICTS}/claims_others.txt": "of its producers only those of the folders base and batch4 were kept",
    f"{VERDICTS}/facts.txt": "of its producers only those of the folders base and batch4 were kept",
    f"{VERDICTS}/report.txt": REPORT,
    f"{VERDICTS}/false_report.txt": "the report of the version of that day, of a copy with false names",
    "h100_emulator": "outputs were compared on the card and not kept; tests hold a part of them",
    "cpu_models": "the sweeps, 18 and 27 MB, were not kept; the commands make them again on a CPU",
    "calibration.txt": "a simulation that `python benchmarks/calibration.py` makes again",
    "evidence.txt": "a simulation that `python benchmarks/evidence.py` makes again",
    "original_kernels.txt": "the original experiment's files have no licence to copy them",
}


def put(name: str) -> None:
    """Write a table into its file or page."""
    table = TABLES[name]
    if not table.page:
        (RESULTS / name).write_text("\n".join(table.lines()) + "\n", encoding="utf-8")
        return
    path = RESULTS / table.page
    text = path.read_text(encoding="utf-8")
    rest = text.partition(f"{mark(name)}\n")[2].splitlines()[len(shown(text, name)) :]
    before = text.partition(mark(name))[0]
    path.write_text(before + "\n".join([mark(name), *table.lines(), *rest]) + "\n", encoding="utf-8")


def mark(name: str) -> str:
    """Return the line above a table in a page."""
    return f"<!-- table: {name} -->"


def shown(text: str, name: str) -> list[str]:
    """Return the lines of a table in a page.

    Raises
    ------
    ValueError
        When the page lacks the line that marks the table.
    """
    _, found, after = text.partition(f"{mark(name)}\n")
    if not found:
        raise ValueError(f"the page of table {name} lacks the line {mark(name)}")
    lines = after.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    return lines[:end]


def main() -> None:
    """Print or write tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="*", choices=[*TABLES, []], metavar="NAME")
    parser.add_argument("--write", action="store_true", help="put tables into their pages and files")
    arguments = parser.parse_args()
    for name in arguments.name or (TABLES if arguments.write else ()):
        if arguments.write:
            put(name)
        else:
            print("\n".join(TABLES[name].lines()))
    if not arguments.name and not arguments.write:
        for name, table in TABLES.items():
            print(f"{name}: {table.question}\n    from {', '.join(table.data)}")


if __name__ == "__main__":
    main()
