"""Turn a config node into a callable: one of the user's own config, or one that a results folder holds.

`build` is the only caller of Hydra's ``instantiate`` and imports what the user's config names. A results
folder may come from a stranger, and its nodes are data: `from_file` lets them choose among what is registered
here, by the same target, and set plain options. Nothing is imported or called because a file says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from qdx.errors import QdxError, lacking
from qdx.plugins import _discovery
from qdx.plugins._registry import check_options, plugin_of, require


def build(node: Mapping[str, Any]) -> Callable[..., Any]:
    """Turn a config node into a callable with its options bound.

    Parameters
    ----------
    node : Mapping
        ``{"_target_": "qdx.metrics.l2", option: value, …}``.

    Returns
    -------
    functools.partial
        Call it with the member's remaining arguments.

    Raises
    ------
    QdxError
        When the target cannot be imported; its message names the target and the cause.
    """
    from hydra.utils import instantiate

    target = str(node.get("_target_"))
    of_file = target.startswith(f"{_discovery.PACKAGE}.")
    if of_file:
        _discovery.install_package()
    try:
        return instantiate(dict(node), _partial_=True, _convert_="all")  # type: ignore[no-any-return]
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # Hydra says where; the first exception says what
            cause = cause.__cause__
        said = f"{type(cause).__name__}: {cause}"
        if of_file and isinstance(cause, ModuleNotFoundError):
            looked = ", ".join(str(folder) for folder in _discovery.folders()) or "no folder plugins/"
            said += f" (looked in {looked}): put the plug-in's file into plugins/ of the working folder"
        raise QdxError(f"cannot load plug-in {target!r}: {lacking(error) or said}") from error


def check(kind: str, name: str, node: Mapping[str, Any]) -> None:
    """Check a config node against the signature of what it names, without calling it.

    Parameters
    ----------
    kind : str
        The config group.
    name : str
        The member's name there.
    node : Mapping
        ``{"_target_": …, option: value, …}``; a key ``name`` is a label and no option.

    Raises
    ------
    QdxError
        When the target cannot be imported, is of another kind or breaks its kind's contract, or an option is
        unknown or of the wrong type.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise QdxError(f"{kind}.{name}={node}: is not a set of options: choose it by name, '{kind}=[{name}]'")
    member = build({"_target_": node["_target_"]}).func  # type: ignore[attr-defined]
    record = plugin_of(member)
    if record.kind != kind:
        raise QdxError(f"{kind}={name}: {node['_target_']} is registered as {record.kind}, not as {kind}")
    require(member)
    check_options(member, f"{kind}.{name}" if kind in ("metric", "analysis") else kind, node)


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
        When the file's content is not such a mapping, a target is neither shipped nor a plug-in that is found
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
        check_options(member, f"{where}: {kind}.{name}", node)
        options = {key: value for key, value in node.items() if key not in ("_target_", "name")}
        built[str(name)] = partial(member, **options)
    return built


def _refuse(kind: str, name: object, target: str, where: Path) -> NoReturn:
    looked = ", ".join(map(str, _discovery.folders())) or "no folder plugins/"
    raise QdxError(
        f"{where}: {kind} {name!r} is {target!r}, which is not registered here (looked in {looked} and the "
        f"installed distributions): a results folder is data, nothing that it names is imported; if you "
        f"trust the plug-in, name its folder: python -m qdx.report --plugins FOLDER {where.parent}"
    )
