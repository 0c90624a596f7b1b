"""The report as plain text of at most 110 columns, sections in the order of the original experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import PHASE_TITLES, View
from qdx.dataset.lacking import lacking
from qdx.document.format import plural
from qdx.document.text import WIDTH, clip, letters, needs_letters, table, wrap
from qdx.document.text import render as rendered
from qdx.errors import printable
from qdx.kernel_names import another_kernel
from qdx.report.state import Facts, Files, next_command, report_command, resume_command, size
from qdx.verification.sections import RULE, SECTIONS, STATED, TEXT_STATED, is_verifier

ENVIRONMENT = (
    "qdx_version",
    "git_commit",
    "torch_version",
    "python_version",
    "engine",
    "engine_version",
    "cuda_version",
    "cuda_runtime",
    "cublas_version",
    "cublaslt_version",
    "cudnn_version",
    "driver_version",
    "blas",
    "cpu_capability",
    "kernel_environment",
    "model_runner",
    "compiled_kernels",
    "gpu",
    "compute_capability",
    "sm_count",
    "host",
    "platform",
    "model",
    "model_source",
    "model_revision",
    "time_utc",
)
MOST_REFERENCES = 8  # listed one by one


def render(facts: Facts, tree: xr.DataTree | None, sections: Sequence[Section], files: Files) -> str:
    """Compose the report.

    Parameters
    ----------
    facts : Facts
    tree : xarray.DataTree or None
        The merged sweep; None when no run is finished.
    sections : sequence of Section
    files : Files
        What the results section lists.

    Returns
    -------
    str
        Lines of at most 110 columns, except paths and commands, which are not cut so that they can be copied.
    """
    blocks = [_top(facts, tree, sections)]
    if tree is not None:
        view = View(tree)
        by_name = {s.name: s for s in sections}
        own = [s for s in sections if s.name not in SECTIONS]
        front = [(s.title, rendered(s.of_phase(""))) for s in own if s.place == "front"]
        said = wrap(RULE, "  ") if is_verifier(tree) else generation(view, facts.stated)
        # What repeats is read before what was generated, and that before how far it agrees.
        front.insert(min(len(front), 1), ("Generation", said))
        blocks += [
            _block("Environment", environment(view)),
            _block("Environment validation", _of(by_name, "environment_validation")),
            _block("Configurations", configurations(view)),
            _block("Prompts", prompts(view, facts.stated)),
            *(_block(by_name[n].title, _of(by_name, n)) for n in SECTIONS[1:] if n in by_name),
            *(_block(title, body) for title, body in front),
            _block("Prefill effects", phase_text(view, sections, ["prefill"])),
            _block("Decode effects", phase_text(view, sections, ["replay", "decode"])),
            *(_block(s.title, rendered(s.of_phase(""))) for s in own if s.place != "front"),
        ]
    blocks.append(_block("Results", results(facts, tree, files)))
    return printable("\n\n".join(b for b in blocks if b) + "\n")


def _block(title: str, body: str) -> str:
    return f"{title}\n{'─' * len(title)}\n{body}" if body else ""


def _of(by_name: dict[str, Section], name: str) -> str:
    return rendered(by_name[name].of_phase("")) if name in by_name else ""


def _top(facts: Facts, tree: xr.DataTree | None, sections: Sequence[Section]) -> str:
    lines = [f"qdx report: {facts.directory}", "═" * WIDTH]
    lines += [wrap(f"VERDICT  {s.result.attrs['headline']}.") for s in sections if s.name == "verify"]
    simulated = simulated_configs(View(tree)) if tree is not None else []
    if simulated:
        whose = (
            ""
            if tree is not None and len(simulated) == len(View(tree).configs)
            else f" ({', '.join(simulated)})"
        )
        lines.append(
            wrap(
                f"SIMULATED KERNELS{whose}: computed by numerical models of the GPU kernels on a CPU, not "
                "by the real "
                "kernels. Which configs differ, and how, is the models' answer; check it on the GPU.",
                "",
                "",
            )
        )
    done = len(facts.labels) - len(facts.failed) - len(facts.missing)
    if facts.failed or facts.missing:
        lines.append(f"INCOMPLETE: {done} of {plural(len(facts.labels), 'config')} finished")
        lines += [wrap(f"failed   {label}: {error}", "  ", "    ") for label, error in facts.failed.items()]
        if facts.missing:
            lines.append(wrap(f"missing  {', '.join(facts.missing)}", "  ", "    "))
        if resume_command(facts):
            lines.append(f"  resume   {resume_command(facts)}")
    lines += [wrap(f"{what}  {name}: {error}", "", "    ") for what, name, error in facts.problems()]
    if tree is None:
        lines.append("No run is finished: nothing was merged or analysed.")
        if (facts.directory / "sweep.nc").exists():
            lines.append("sweep.nc is what an earlier report merged; it was left as it is.")
    return "\n".join(lines)


def simulated_configs(view: View) -> list[str]:
    """Configs whose kernel is a numerical model."""
    marks = view.of_config("simulated", "0")
    return [c for c, mark in zip(view.configs, marks, strict=True) if mark.lower() in ("true", "1")]


def environment(view: View) -> str:
    """Versions and machine; once where all configs agree."""
    rows = environment_rows(view)
    if not rows:
        return "  not recorded"
    return table(["", ""], rows, left=2)


def environment_rows(view: View) -> list[tuple[str, str]]:
    """List facts and values; a value that not all configs have names those that do."""
    if "provenance" not in view.tree.children:
        return []
    stored = view.group("provenance")
    rows: list[tuple[str, str]] = []
    if not any(v for v in view.of_config("gpu")):
        rows.append(("machine", "CPU, no GPU"))
    for name in ENVIRONMENT:
        if name not in stored:
            continue
        values = [str(v) for v in stored[name].sel(config=view.configs).values]
        if not any(v not in ("", "0", "{}") for v in values):
            continue
        title = name.replace("_", " ")
        if name == "time_utc":
            rows.append((title, values[0] if len(set(values)) == 1 else f"{min(values)} to {max(values)}"))
        elif len(set(values)) == 1:
            rows.append((title, values[0]))
        else:
            for value in dict.fromkeys(values):
                whose = ", ".join(c for c, v in zip(view.names, values, strict=True) if v == value)
                rows.append((title, f"{value or 'none'} ({whose})"))
                title = ""
    return [*rows, *(("NOTE", line) for line in lacking(view.tree)), *plugin_rows(view)]


def plugin_rows(view: View) -> list[tuple[str, str]]:
    """The code of every metric and analysis in the file that did not ship with qdx."""
    found: dict[str, str] = {}
    for kind, parent in (("metric", "metrics"), ("analysis", "analysis")):
        for name, node in view.tree[parent].children.items() if parent in view.tree.children else ():
            for group in (node, *node.children.values()):
                if "plugin_sha256" in group.attrs:
                    file = Path(str(group.attrs["plugin_source"])).name
                    found[f"{kind} {name}"] = f"{file}, sha256 {group.attrs['plugin_sha256']}"
    rows = [f"{what}: {where}" for what, where in found.items()]
    return [("plug-ins" if i == 0 else "", row) for i, row in enumerate(rows)]


def configurations(view: View) -> str:
    """One line a config; a kernel that is not the requested one is marked."""
    columns = {
        "format": view.of_config("format"),
        "requested": view.of_config("requested_kernel"),
        "observed": view.of_config("observed_kernel"),
        "dtype": view.of_config("dtype"),
        "batch": view.of_config("batch_size"),
    }
    differs = [another_kernel(a, b) for a, b in zip(columns["requested"], columns["observed"], strict=True)]
    columns["observed"] = [k + (" !" if d else "") for k, d in zip(columns["observed"], differs, strict=True)]
    rows = [
        [name, *(values[i] for values in columns.values()), view.configs[i]]
        for i, name in enumerate(view.names)
    ]
    head = ["config", "format", "requested kernel", "observed kernel", "dtype", "batch", "label"]
    if view.names == view.configs:
        head, rows = head[:-1], [row[:-1] for row in rows]
    lines = [table(head, rows, left=len(head))]
    if any(differs):
        lines.append("  ! the engine loaded another kernel than the requested one")
    return "\n".join([*lines, *_layer_types(view)])


def _layer_types(view: View) -> list[str]:
    """Kernels by layer type, for configs whose layer types differ."""
    stored = view.group("provenance") if "provenance" in view.tree.children else xr.Dataset()
    if "kernel" not in stored or "layer_type" not in stored["kernel"].dims:
        return []
    lines = []
    for config, name in zip(view.configs, view.names, strict=True):
        kernels = stored["kernel"].sel(config=config)
        values = [str(v) for v in kernels.values]
        if len({v for v in values if v}) > 1:
            said = ", ".join(
                f"{t} {k}" for t, k in zip(kernels["layer_type"].values, values, strict=True) if k
            )
            lines.append(wrap(f"{name}: {said}", "  "))
    return lines


def prompts(view: View, stated: bool = False) -> str:
    """Sources and token counts of the references."""
    if "references" not in view.tree.children:
        return "  not recorded"
    stored = view.group("references")
    parts = np.stack([stored[f"{p}_length"].values for p in ("prefix", "content", "suffix")], 1).astype(int)
    said = [f"{a} prefix + {b} snippet + {c} suffix = {a + b + c} tokens" for a, b, c in parts]
    names = [str(n) for n in stored["reference"].values]
    sources: dict[str, str] = {}
    for source, digest in zip(stored["source"].values, stored["sha256"].values, strict=True):
        sources.setdefault(str(source), str(digest))
    lines = [f"  {STATED}:"] if stated or is_verifier(view.tree) else []
    for source, digest in list(sources.items())[:MOST_REFERENCES]:
        lines.append(wrap(f"{source}" + (f"  sha256 {digest[:16]}…" if digest else ""), "  "))
    if len(sources) > MOST_REFERENCES:
        lines.append(f"  … {plural(len(sources) - MOST_REFERENCES, 'more source')}: sweep.nc /references")
    if len(set(said)) == 1:
        lines.append(f"  {plural(len(names), 'reference')}, each {said[0]}")
    rows = []
    for i, name in enumerate(names[:MOST_REFERENCES]):
        pages, offset = (
            " ".join(str(stored["pages"].values[i]).split()),
            int(stored["token_offset"].values[i]),
        )
        one = pages.isdecimal()
        where = [f"{'page' if one else 'pages'} {pages}" if pages else "", f"from source token {offset:,}"]
        own = Path(str(stored["source"].values[i])).name if len(sources) > 1 else ""
        rows.append([name, said[i] if len(set(said)) > 1 else "", ", ".join(w for w in (own, *where) if w)])
    if len(set(said)) == 1:
        rows = [[r[0], r[2]] for r in rows]
    lines += [("    " + "  ".join(r)).rstrip() for r in rows]
    if len(names) > MOST_REFERENCES:
        lines.append(f"    … {plural(len(names) - MOST_REFERENCES, 'more reference')}: sweep.nc /references")
    return "\n".join(lines)


def generation(view: View, stated: bool = False, references: int = 4) -> str:
    """Say how many tokens every config generated, and its first words (first repeat)."""
    outputs = view.outputs()
    if outputs is None:
        return "  no free generation was recorded"
    stored = view.group("output")
    text = stored["text"].transpose("config", "repeat", "reference").values[:, 0]
    tokens = (outputs[:, 0] >= 0).sum(-1)
    labels = letters(len(view.configs)) if needs_letters(view.names) else view.names
    least, most = int(tokens.min()), int(tokens.max())
    count = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    lines = [f"  {count} tokens a reference, greedy, end of sequence ignored; first repeat"]
    if stated:
        lines.append(f"  {TEXT_STATED}")
    for r, name in enumerate(view.references[:references]):
        lines.append(f"  {name}")
        said: dict[str, list[str]] = {}
        for c, label in enumerate(labels):
            said.setdefault(printable(" ".join(str(text[c, r]).split())), []).append(label)
        stub = min(max(len(", ".join(whose)) for whose in said.values()), 48)
        for words, whose in said.items():
            lines.append(clip(f"    {', '.join(whose).ljust(stub)}  {words or '(no visible text)'}", WIDTH))
    if len(view.references) > references:
        lines.append(f"  … {plural(len(view.references) - references, 'more reference')}: sweep.nc /output")
    return "\n".join(lines)


def phase_text(view: View, sections: Sequence[Section], phases: Sequence[str]) -> str:
    """Say what every analysis says of some phases: phase after phase, analyses in their order."""
    parts = []
    for phase in phases:
        blocks = [block for section in sections for block in section.of_phase(phase)]
        if blocks and len(phases) > 1:
            parts.append(f"  ── {PHASE_TITLES[phase]} ──")
        if blocks:
            parts.append(rendered(blocks))
    return "\n\n".join(parts)


def results(facts: Facts, tree: xr.DataTree | None, files: Files) -> str:
    """Files with their sizes, and what can be typed next."""
    runs = [count or 0 for path, count in files if path.name == "run.nc"]
    lines = [f"  {size(count):>9}  {path}" for path, count in files if path.name != "run.nc"]
    if runs:
        total = size(sum(runs))
        about = f"{plural(len(runs), 'file')}, all that was captured"
        lines.append(f"  {total:>9}  {facts.directory}/<label>/run.nc ({about})")
    if resume_command(facts):
        lines += ["", "  Resume this sweep (finished configs are kept):", f"    {resume_command(facts)}"]
    lines += ["", "  Redo merge, analyses and report:", f"    {report_command(facts)}"]
    if tree is not None:
        why, command = next_command(facts, View(tree).configs)
        if command:
            lines += ["", wrap(why, "  ", ""), f"    {command}"]
    return "\n".join(lines)
