"""From a node that a results folder holds to a callable, without importing anything that the node names.

A results folder may come from a stranger: its nodes are data. They choose among what is registered here, by
the same target, and set plain options; nothing is imported or called because a file says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from qdx.errors import QdxError
from qdx.plugins import _discovery, _folders, _registry


def from_file(kind: str, nodes: Any, where: Path) -> dict[str, Callable[..., Any]]:
    """Turn the nodes of a file into callables with their options bound.

    Parameters
    ----------
    kind : {"metric", "analysis"}
        What they are.
    nodes : object
        What the file holds: a mapping of name to ``{"_target_": "qdx.metrics.l2", option: value, …}``.
    where : Path
        The file, for messages.

    Returns
    -------
    dict of str to functools.partial

    Raises
    ------
    QdxError
        When the file's content is no such mapping, a target is neither shipped nor a plug-in that is found
        here, or an option does not fit.
    """
    if not isinstance(nodes, Mapping):
        raise QdxError(f"{where}: its {kind} nodes are a {type(nodes).__name__}, must be a mapping of names")
    known = {f"{_discovery.PACKAGES[kind]}.{name}": name for name in _discovery.shipped(kind)}
    plug_ins: dict[str, Callable[..., Any]] | None = None  # looked for only when a node names one
    built: dict[str, Callable[..., Any]] = {}
    for name, node in nodes.items():
        target = node.get("_target_") if isinstance(node, Mapping) else None
        if not isinstance(target, str):
            raise QdxError(f"{where}: {kind} {name!r} is {node!s:.60}, must be a mapping with _target_")
        if target in known:
            member = _discovery.find(kind, known[target])
        else:
            if plug_ins is None:
                plug_ins = {found.target: found.member for found in _discovery.load() if found.kind == kind}
            member = plug_ins.get(target) or _refuse(kind, name, target, where)
        _registry.check_options(member, f"{where}: {kind}.{name}", node)
        options = {key: value for key, value in node.items() if key not in ("_target_", "name")}
        built[str(name)] = partial(member, **options)
    return built


def _refuse(kind: str, name: object, target: str, where: Path) -> NoReturn:
    looked = ", ".join(map(str, _folders.folders())) or "no folder plugins/"
    raise QdxError(
        f"{where}: {kind} {name!r} is {target!r}, which is not registered here (looked in {looked} and the "
        f"installed distributions): a results folder is data, nothing that it names is imported; if you "
        f"trust the plug-in, name its folder: python -m qdx.report --plugins FOLDER {where.parent}"
    )
