"""Kernel equivalence classes: which configs compute the same bits."""

from __future__ import annotations

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.analysis.view import View
from qdx.document.blocks import Block, Table, Text
from qdx.document.format import plural
from qdx.plugins import register
from qdx.statistics import Bools, group_equal

REPEATS = ("repeats", "does not repeat", "not rerun")


@register("analysis", "classes", title="Kernel equivalence classes")
def classes(tree: xr.DataTree) -> Section:
    """Group configs whose rows have equal hashes, phase by phase.

    Parameters
    ----------
    tree : xarray.DataTree
        A sweep. All captured rows of the first repeat count, template and content; in free decode those up
        to and including the row that predicts the first differing token.

    Returns
    -------
    Section
        Result over (phase, config[, config_b]): ``class_id`` (from 0, in the order of the configs),
        ``repeats`` ("repeats", "does not repeat", "not rerun"), ``rows_shared``, ``rows_equal``, and
        ``environment_class``.

    Notes
    -----
    A config that does not repeat is a class by itself: where its rows equal another's, that is chance.
    """
    view = View(tree)
    environments, environment = view.environments()
    shape = (len(view.phases), len(view.configs))
    ids = np.zeros(shape, np.int64)
    shared = np.zeros((*shape, shape[1]), np.int64)
    same = np.zeros_like(shared)
    state = np.empty(shape, dtype=object)
    blocks: list[Block] = []
    for p, phase in enumerate(view.phases):
        shared[p], same[p] = _compare(view, phase)
        state[p] = [repeat_state(view, phase, c) for c in range(shape[1])]
        groups = group_equal(_equal(shared[p], same[p]), state[p] != REPEATS[1])
        for number, members in enumerate(groups):
            ids[p, members] = number
        if p == 0:
            blocks.append(Text(_environment_text(view, environments, environment), phase))
        blocks.append(_classes_of(view, phase, groups, list(state[p]), shared[p], same[p], environment))
    one = {"units": "1"}
    pair = ("phase", "config", "config_b")
    result = xr.Dataset(
        {
            "class_id": (
                pair[:2],
                ids,
                {**one, "long_name": "kernel equivalence class, in the order of configs"},
            ),
            "repeats": (
                pair[:2],
                state,
                {**one, "long_name": "whether the config's own repeats are bit-equal"},
            ),
            "rows_shared": (pair, shared, {**one, "long_name": "rows that both configs have"}),
            "rows_equal": (pair, same, {**one, "long_name": "shared rows with equal hashes"}),
            "environment_class": ("config", environment, {**one, "long_name": "environment class"}),
            "environment": (
                "environment_id",
                environments,
                {**one, "long_name": "what an environment class is"},
            ),
        },
        coords={"phase": list(view.phases), "config": view.configs, "config_b": view.configs},
    )
    return Section("classes", "Kernel equivalence classes", result, blocks=blocks)


def _compare(view: View, phase: str) -> tuple[np.ndarray, np.ndarray]:
    count = len(view.configs)
    shared, same = np.zeros((count, count), np.int64), np.zeros((count, count), np.int64)
    hashes = view.hashes(phase)
    for a in range(count):
        for b in range(a, count):
            rows = view.comparable(phase, (a, 0), (b, 0))
            shared[a, b] = shared[b, a] = rows.sum()
            same[a, b] = same[b, a] = (rows & (hashes[a, 0] == hashes[b, 0])).sum()
    return shared, same


def _equal(shared: np.ndarray, same: np.ndarray) -> Bools:
    return np.asarray((shared > 0) & (shared == same))


def repeat_state(view: View, phase: str, config: int) -> str:
    """Tell by hashes whether the repeats of a config are bit-equal in a phase: one of `REPEATS`."""
    hashes = view.hashes(phase)[config]
    reruns = 0
    for repeat in range(1, len(hashes)):
        rows = view.comparable(phase, (config, 0), (config, repeat))
        if (rows & (hashes[0] != hashes[repeat])).any():
            return REPEATS[1]
        reruns += int(rows.any())
    return REPEATS[0] if reruns else REPEATS[2]


def _classes_of(
    view: View,
    phase: str,
    groups: list[list[int]],
    state: list[str],
    shared: np.ndarray,
    same: np.ndarray,
    environment: list[int],
) -> Table:
    rows = []
    across = [
        (a, b) for i, g in enumerate(groups) for h in groups[i + 1 :] for a in g for b in h if shared[a, b]
    ]
    for number, members in enumerate(groups, 1):
        notes = []
        if state[members[0]] == REPEATS[1]:
            notes.append("does not repeat: a class by itself")
        if any(state[m] == REPEATS[2] for m in members):
            notes.append("not rerun: whether it repeats is not known")
        if len(members) > 1:
            counts = [shared[a, b] for a in members for b in members if a < b]
            more = "" if min(counts) == max(counts) else " or more"
            notes.append(f"{plural(min(counts), 'shared row')}{more} equal")
        if len({environment[m] for m in members}) > 1:
            notes.append("across environment classes")
        if not shared[members[0], members[0]]:
            notes.append("no row captured")
        rows.append([str(number), ", ".join(view.names[m] for m in members), "; ".join(notes)])
    note = ""
    if across:
        a, b = max(across, key=lambda pair: same[pair] / shared[pair])
        names = f"{view.names[a]} ~ {view.names[b]}"
        greatest = f"at most {same[a, b]:,} of {shared[a, b]:,} ({names})" if same[a, b] else "none"
        note = f"shared rows that are equal between classes: {greatest}"
    caption = "Kernel equivalence classes (equal hashes in every shared row, template and content)"
    return Table(caption, ["class", "configs", ""], rows, 3, note, phase)


def _environment_text(view: View, environments: list[str], environment: list[int]) -> str:
    if len(environments) == 1:
        return f"Environment class: one for all configs ({environments[0]}); equal kernels can be bit-equal."
    lines = [
        "Environment classes: rows of different ones may differ although the kernel is the same, so only "
        "equality means something across them."
    ]
    for number, described in enumerate(environments):
        members = ", ".join(c for c, e in zip(view.names, environment, strict=True) if e == number)
        lines.append(f"E{number + 1}  {described}: {members}")
    return "\n".join(lines)
