"""From a config node to a callable: the only caller of Hydra's ``instantiate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qdx.errors import QdxError, lacking
from qdx.plugins import _folders, _registry
from qdx.plugins._record import plugin_of


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
    of_file = target.startswith(f"{_folders.PACKAGE}.")
    if of_file:
        _folders.install()
    try:
        return instantiate(dict(node), _partial_=True, _convert_="all")  # type: ignore[no-any-return]
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # Hydra says where; the first exception says what
            cause = cause.__cause__
        said = f"{type(cause).__name__}: {cause}"
        if of_file and isinstance(cause, ModuleNotFoundError):
            looked = ", ".join(str(folder) for folder in _folders.folders()) or "no folder plugins/"
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
        raise QdxError(f"{kind}.{name}={node}: is no set of options: choose it by name, '{kind}=[{name}]'")
    member = build({"_target_": node["_target_"]}).func  # type: ignore[attr-defined]
    record = plugin_of(member)
    if record.kind != kind:
        raise QdxError(f"{kind}={name}: {node['_target_']} is registered as {record.kind}, not as {kind}")
    _registry.require(member)
    _registry.check_options(member, f"{kind}.{name}" if kind in ("metric", "analysis") else kind, node)
