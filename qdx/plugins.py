"""The registry of metrics, analyses, backends and prompt sources, and the only caller of ``instantiate``.

Shipped members use the same decorator as anybody's: it attaches a `Plugin` record to the function or class, so that what a
number means (unit, direction, formula) travels with the code that computes it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qdx.errors import QdxError

KINDS = ("metric", "analysis", "backend", "prompts")

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Plugin:
    """What the framework knows of one registered function or class.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    name : str
        The name in the config group of that kind.
    meta : Mapping
        Facts that the member states of itself; for a metric ``on``, ``needs``, ``symmetric``, ``units``,
        ``higher_means``, ``formula`` and ``coarse``.
    """

    kind: str
    name: str
    meta: Mapping[str, Any] = field(default_factory=dict)


METRIC_META: Mapping[str, Any] = {
    "on": "logprob",
    "needs": (),
    "symmetric": True,
    "units": "1",
    "higher_means": "less alike",
    "formula": "",
    "coarse": True,
}


def register(kind: str, name: str, **meta: Any) -> Callable[[T], T]:
    """Register a function or class as a member of the config group `kind`.

    Parameters
    ----------
    kind : {"metric", "analysis", "backend", "prompts"}
    name : str
        Its name on the command line.
    **meta
        For a metric: ``on`` ("logprob", "logit" or "top": which rows it takes), ``needs`` (further arguments, such as
        ``("target",)``), ``symmetric``, ``units``, ``higher_means``, ``formula`` (one line) and ``coarse`` (whether it
        means something on rows that were coarsened to shared ids and a tail).

    Returns
    -------
    callable
        A decorator that returns its argument unchanged, with the record in its attribute ``qdx``.

    Raises
    ------
    QdxError
        For an unknown kind.
    """
    if kind not in KINDS:
        raise QdxError(f"register: unknown kind {kind!r}, one of {', '.join(KINDS)}")

    def attach(member: T) -> T:
        facts = {**METRIC_META, **meta} if kind == "metric" else dict(meta)
        member.qdx = Plugin(kind, name, facts)  # type: ignore[attr-defined]
        return member

    return attach


def plugin_of(member: Callable[..., Any]) -> Plugin:
    """Return the record of a registered member, also through `functools.partial`."""
    record = getattr(getattr(member, "func", member), "qdx", None)
    if not isinstance(record, Plugin):
        raise QdxError(f"{member!r} is not registered: decorate it with @qdx.register(kind, name)")
    return record


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

    try:
        return instantiate(dict(node), _partial_=True, _convert_="all")  # type: ignore[no-any-return]
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # Hydra says where; the first exception says what
            cause = cause.__cause__
        said = f"{type(cause).__name__}: {cause}"
        raise QdxError(f"cannot load plug-in {node.get('_target_')!r}: {said}") from error


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
        When the target cannot be imported or is of another kind, or an option is unknown or of the wrong type.
    """
    member = build({"_target_": node["_target_"]}).func  # type: ignore[attr-defined]
    record = plugin_of(member)
    if record.kind != kind:
        raise QdxError(f"{kind}={name}: {node['_target_']} is registered as {record.kind}, not as {kind}")
    options = options_of(member)
    for key, value in node.items():
        if key in ("_target_", "name"):
            continue
        full = f"{kind}.{name}.{key}" if kind in ("metric", "analysis") else f"{kind}.{key}"
        if key not in options:
            close = difflib.get_close_matches(key, options, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            known = ", ".join(options) or "(it has none)"
            raise QdxError(f"{full}: unknown option, one of {known}{hint}")
        default = options[key].default
        wrong = isinstance(value, str) or isinstance(value, bool) != isinstance(default, bool)
        if isinstance(default, bool | int | float) and value is not None and wrong:
            raise QdxError(f"{full}={value}: must be a {type(default).__name__}, such as {default}")


def options_of(member: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return a member's options: every parameter of a class, those with a default of a function (the others are data)."""
    parameters = inspect.signature(member).parameters
    return {
        name: parameter
        for name, parameter in parameters.items()
        if inspect.isclass(member)
        or parameter.default is not parameter.empty
        or parameter.kind is parameter.KEYWORD_ONLY
    }
