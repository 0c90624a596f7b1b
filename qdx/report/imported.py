"""The report of an import: what the original's file holds, what was made of it, and what it lacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from qdx import analysis
from qdx.analysis.section import Section
from qdx.analysis.view import View
from qdx.document.blocks import Block, Matrix, Table
from qdx.document.format import plural
from qdx.document.text import WIDTH, render, wrap
from qdx.errors import QdxError, printable
from qdx.report import text
from qdx.verification import attribution_by_distance

ANALYSES: tuple[Callable[[xr.DataTree], Section], ...] = (
    analysis.consistency,
    analysis.effects,
    analysis.pairs,
    analysis.noise_floor,
    analysis.classes,
    analysis.snr,
)

MACHINE = (
    "gpu_name",
    "torch_version",
    "cuda_version",
    "cudnn_version",
    "vllm_version",
    "transformers_version",
    "attn_implementation",
)


def find(path: Path) -> Path | None:
    """The imported file that a path names: itself, or the ``sweep.nc`` of a folder without runs.

    Returns
    -------
    Path or None
        None where it is another folder.

    Raises
    ------
    QdxError
        When the path is a file that is not an import.
    """
    from qdx.dataset.opening import open_file

    own = path if path.is_file() else path / "sweep.nc"
    if not own.is_file() or (path.is_dir() and (path / "sweep.json").exists()):
        return None
    try:
        tree = open_file(own)
        origin = str(tree.attrs.get("origin", ""))
        tree.close()
    except QdxError:
        if path.is_file():
            raise
        return None  # the folder's own report says what is wrong
    if origin:
        return own
    if path.is_file():
        raise QdxError(f"{path} is not an import of qdx.legacy: give the folder of its sweep")
    return None


def report(path: Path) -> str:
    """Compose the report of an imported file; an analysis that cannot be made says in one line why.

    Parameters
    ----------
    path : Path
        What ``python -m qdx.legacy`` wrote.

    Returns
    -------
    str
    """
    from qdx.dataset.opening import open_file

    tree = open_file(path)
    try:
        return printable("\n\n".join(block for block in _blocks(path, tree) if block) + "\n")
    finally:
        tree.close()


def _blocks(path: Path, tree: xr.DataTree) -> list[str]:
    lacking = (
        "It has no full rows, hashes, sketches or repeats: what needs them is named below, and no verdict "
        "can be made from it."
    )
    title = f"qdx report of an import: {path}\n{'═' * WIDTH}"
    blocks = [f"{title}\nFrom {tree.attrs.get('source', '')}\n{wrap(lacking)}"]
    try:
        view: View | None = View(tree)
    except QdxError as error:
        view, missing = None, str(error)
    if view is not None:
        blocks.append(_block("Environment", text.environment(view)))
        blocks.append(_block("Configurations", text.configurations(view)))
    blocks.append(_part("Machines", _machines(tree)))
    blocks.append(_block("The file's own numbers, computed again", _reproduction(tree)))
    if view is not None:
        sections, missing_of = _analyses(tree)
        by_name = {section.name: section for section in sections}
        if "consistency" in by_name:
            blocks.append(_part("Token consistency", by_name["consistency"].content))
        blocks.append(_block("Prefill effects", text.phase_text(view, sections, ["prefill"])))
        blocks.append(_block("Decode effects", text.phase_text(view, sections, ["decode"])))
    else:
        missing_of = {step.__name__: missing for step in ANALYSES}
    blocks += [*_across(tree), *_made(tree)]
    names: dict[str, list[str]] = {}
    for name, why in missing_of.items():
        names.setdefault(why, []).append(name)
    lines = [wrap(f"{', '.join(of)}: {why}", "  ", "    ") for why, of in names.items()]
    blocks.append(_block("Not available from this file", "\n".join(lines)))
    return blocks


def _block(title: str, body: str) -> str:
    return f"{title}\n{'─' * len(title)}\n{body}" if body.strip() else ""


def _part(title: str, blocks: Sequence[Block]) -> str:
    return _block(title, render(blocks))


def _analyses(tree: xr.DataTree) -> tuple[list[Section], dict[str, str]]:
    sections: list[Section] = []
    missing: dict[str, str] = {}
    for step in ANALYSES:
        try:
            sections.append(step(tree))
        except QdxError as error:
            missing[step.__name__] = str(error)
    return sections, missing


def _reproduction(tree: xr.DataTree) -> str:
    try:
        data = tree["analysis/legacy/reproduction"].to_dataset()
    except KeyError:
        return "  the file states no number that could be computed from its others"
    total = {
        name: int(data[name].sum()) for name in ("stated", "reproduced", "neither", "differing", "uncomputed")
    }
    said = (
        f"{total['reproduced']:,} of {total['stated']:,} reproduced, {total['neither']:,} not finite in "
        f"both, {total['differing']:,} differing, {total['uncomputed']:,} not computable from the file."
    )
    lines = [wrap(said, "  ")]
    for i in np.flatnonzero((data["differing"].values > 0) | (data["uncomputed"].values > 0)):
        one = data.isel(entry=int(i))
        words = "differ" if int(one["differing"]) else "not computable"
        count = int(one["differing"]) or int(one["uncomputed"])
        about = f": {one['note'].item()}" if str(one["note"].item()) else ""
        lines.append(wrap(f"{one['entry'].item()}: {count} {words}{about}", "  ", "    "))
    return "\n".join(lines)


def _machines(tree: xr.DataTree) -> list[Block]:
    """The facts of both machines of a verification, and a mark where they differ."""
    stated = []
    for of in ("reference", "verifier"):
        try:
            value = json.loads(str(tree.attrs.get(f"legacy: metadata.{of}_environment", "")))
        except ValueError:
            return []
        stated.append(value if isinstance(value, dict) else {})
    rows = []
    for fact in MACHINE:
        one, other = (str(facts.get(fact, "")) for facts in stated)
        if one or other:
            rows.append([fact.replace("_", " "), one, other, "" if one == other else "differs"])
    return [Table("", ["", "reference", "verifier", ""], rows, 4)] if rows else []


def _made(tree: xr.DataTree) -> list[str]:
    """Matrices of which the file holds no distances, and distances of vectors of activations."""
    parts = []
    for node in tree.subtree:
        if not node.path.startswith("/analysis/legacy/"):
            continue
        data, title = node.to_dataset(), node.path.removeprefix("/analysis/legacy/")
        if node.path.count("/") == 5 and "matrix" in data:  # of a file of matrices
            configs = [str(v) for v in data["config"].values]
            parts.append(_part(title, [_crossed("", configs, configs, data["matrix"].values)]))
        elif "series" in data.dims:
            labels = [str(v) for v in data["series"].values]
            equal = int(data["repeats_equal"].sum())
            bits = f"the repeats of {equal} of {len(labels)} are equal bit for bit"
            caption = f"L2 of the means over repeats; {bits}"
            parts.append(_part(title, [Matrix(caption, labels, data["distance"].values, columns=labels)]))
    return parts


def _crossed(more: str, producers: list[str], configs: list[str], values: np.ndarray) -> Matrix:
    return Matrix(f"Rows made by, columns replayed as{more}", producers, values, columns=configs)


def _across(tree: xr.DataTree) -> list[str]:
    """Distances of two machines: the mean matrix, and which config a distance names."""
    parts = []
    metrics = tree["metrics"].children if "metrics" in tree.children else {}
    for metric in metrics:
        for phase in metrics[metric].children:
            data = metrics[metric][phase].to_dataset()
            if "producer" not in data.dims:
                continue
            producers, configs = ([str(v) for v in data[dim].values] for dim in ("producer", "config"))
            blocks: list[Block] = []
            if producers == configs:
                mean = data[metric].transpose("producer", "config", "reference").values.mean(-1)
                about = f"; mean over {plural(data.sizes['reference'], 'reference')}"
                blocks = [_crossed(about, producers, configs, mean)]
            blocks += attribution_by_distance(tree, metric, phase).content
            parts.append(_part(f"Two machines, {metric}, {phase}", blocks))
    return parts
