"""The decorator that registers a member, the record that it carries, and the contract of its kind.

A member is a function or class of one of `KINDS`. Its record says what the framework knows of it; its
signature says what its options are, which become a config node.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qdx.errors import QdxError, nearest

KINDS = ("metric", "analysis", "backend", "prompts", "record_reader")

# What this process registered outside of qdx, and in which module.
registered: dict[tuple[str, str], str] = {}

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Plugin:
    """Hold what the framework knows of one registered function or class.

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
# The values that a fact may have, and the facts without a default.
ON = ("logprob", "logit", "top", "hidden")
# What a metric can ask for beside the rows, and the keywords that it then comes in.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "target": ("target",),
    "position": ("position",),
    "prob": ("p_prob", "q_prob"),
}
HIGHER_MEANS = ("less alike", "more alike")
META: Mapping[str, tuple[str, ...]] = {
    "metric": (*METRIC_META, "on_self", "nan_when"),
    "analysis": ("title", "check"),
    "backend": ("options",),
    "prompts": (),
    "record_reader": (),
}


def register(kind: str, name: str, **meta: Any) -> Callable[[T], T]:
    """Register a function or class as an option of the config group `kind`.

    One file in ``plugins/`` of the working folder with such a function in it is a plug-in; so is a module
    that a distribution names in its entry point group ``qdx.plugins``. Keyword arguments with defaults are
    its options on the command line.

    Parameters
    ----------
    kind : {"metric", "analysis", "backend", "prompts", "record_reader"}
        What it is:

        - a metric is a function of two float64 tensors (position, vocab), p of ``config`` and q of
          ``config_b``, that returns float64 (position,);
        - an analysis is a function of a sweep's `xarray.DataTree` that returns a `qdx.analysis.Section`;
        - a backend is a class with the methods of `qdx.backends.Backend`, made with the keywords
          ``checkpoint``, ``quant``, ``dtype``, ``seed`` and its options;
        - a prompt source is a class with ``load(tokenizer)``, see `qdx.prompts.PromptSource`; an option
          ``continuation_tokens`` is ``generate.tokens`` unless set;
        - a record reader is a class with ``matches(head)`` and ``read(path)``, see
          `qdx.records.RecordReader`; it is chosen by what a file holds, or with ``prompts.reader=…``.
    name : str
        Its name on the command line; letters, digits and ``_``.
    **meta
        Facts about it. For a metric:

        - ``on``: what its rows hold: "logprob", "logit", "top" with the keywords ``p_id`` and ``q_id``, or
          "hidden", the last hidden state, of runs with ``capture=hidden``;
        - ``needs``: what it is given as keywords beside the rows. "target" is the ids of the tokens at the
          positions, that of ``config`` where two runs differ. "position" is their indices. "prob" is
          ``p_prob`` and ``q_prob``, the exponentials of log-probability rows, computed once for all pairs;
        - ``symmetric``, ``units``, ``higher_means`` ("less alike" or "more alike"), ``formula`` (one line);
        - ``coarse``: whether it means something on rows that were coarsened to shared ids and a tail; with
          "target" it does not;
        - ``on_self``: its value for two equal rows;
        - ``nan_when``: when the metric itself answers NaN.

        For an analysis:

        - ``title``;
        - ``check``: a function of a mapping of its options, called before anything runs. For what it could
          not use, it raises a `QdxError` that begins with ``option=value``.

        For a backend that takes its options as ``**options``:

        - ``options``: a dataclass that has them as fields.

    Returns
    -------
    callable
        A decorator that returns its argument unchanged, with the record in its attribute ``qdx``.

    Raises
    ------
    QdxError
        For an unknown kind, a name that no command line can hold, or an unknown fact.

    Examples
    --------
    >>> import qdx
    >>> @qdx.register("metric", "half_l1", formula="½ Σ_v |p_v − q_v|")
    ... def half_l1(p, q, scale: float = 1.0):
    ...     return scale * 0.5 * (p.exp() - q.exp()).abs().sum(-1)
    """
    if kind not in KINDS:
        raise QdxError(f"register: unknown kind {kind!r}, one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise QdxError(f"register: {kind} name {name!r}: use letters, digits and _, with a letter first")
    for key, value in meta.items():
        if key not in META[kind]:
            known = ", ".join(META[kind]) or "(it has none)"
            raise QdxError(
                f"register: {kind} {name!r}: unknown fact {key!r}, one of {known}{nearest(key, META[kind])}"
            )
        allowed = {"on": ON, "higher_means": HIGHER_MEANS}.get(key)
        if allowed and value not in allowed:
            choices = f"one of {', '.join(map(repr, allowed))}{nearest(str(value), allowed)}"
            raise QdxError(f"register: {kind} {name!r}: {key}={value!r}, {choices}")
    if kind == "metric":
        _check_needs(name, meta.get("needs", ()), meta.get("on", METRIC_META["on"]))

    def attach(member: T) -> T:
        if member.__module__.split(".")[0] != "qdx":
            registered[kind, name] = member.__module__
        facts = {**METRIC_META, **meta} if kind == "metric" else dict(meta)
        member.qdx = Plugin(kind, name, facts)  # type: ignore[attr-defined]
        return member

    return attach


def _check_needs(name: str, needs: Any, on: str) -> None:
    who = f"register: metric {name!r}: needs"
    if not isinstance(needs, tuple | list):
        raise QdxError(f"{who}={needs!r}: give a tuple of names, such as needs=('target',)")
    for need in needs:
        if need not in NEEDS:
            known = ", ".join(map(repr, NEEDS))
            raise QdxError(f"{who} {need!r}, one of {known}{nearest(str(need), NEEDS)}")
    if "prob" in needs and on != "logprob":
        raise QdxError(f"{who} 'prob', which only rows of on='logprob' have, not on={on!r}")


def keywords_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keywords in which a metric is given what it asks for beside its two rows."""
    ids = ("p_id", "q_id") if meta.get("on") == "top" else ()
    return (*ids, *(keyword for need in meta.get("needs", ()) for keyword in NEEDS[need]))


def record_of(thing: object) -> Plugin | None:
    """Return the record of a registered member, also through `functools.partial`; None of anything else."""
    record = getattr(getattr(thing, "func", thing), "qdx", None)
    return record if isinstance(record, Plugin) else None


def plugin_of(member: Callable[..., Any]) -> Plugin:
    """Return the record of a registered member, also through `functools.partial`."""
    record = record_of(member)
    if record is None:
        raise QdxError(f"{member!r} is not registered: decorate it with @qdx.register(kind, name)")
    return record


GIVEN: Mapping[str, tuple[str, ...]] = {
    "backend": ("checkpoint", "quant", "dtype", "seed"),
    "prompts": (),
    "record_reader": (),
}
METHODS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "backend": {
        "observe": (),
        "prefill": ("batch", "recorder"),
        "generate": ("batch", "count", "recorder"),
        "replay": ("batch", "forced", "recorder"),
        "reseed": ("seed",),
    },
    "prompts": {"load": ("tokenizer",)},
    "record_reader": {"matches": ("head",), "read": ("path",)},
}
MISSING = "???"  # OmegaConf's mark of a value that must be given


def require(member: Callable[..., Any]) -> None:
    """Hold a registered member to the contract of its kind, as far as its signature shows.

    Parameters
    ----------
    member : callable
        Registered with `qdx.register`.

    Raises
    ------
    QdxError
        Naming the member, what it must look like, and what it looks like.
    """
    record = plugin_of(member)
    who = f"{record.kind} {record.name!r}"
    if record.kind in METHODS:
        _require_class(member, record.kind, who)
    else:
        data = ("p", "q") if record.kind == "metric" else ("tree",)
        _require_function(member, who, data, keywords_of(record.meta))
    for name, parameter in options_of(member).items():
        if not _storable(parameter.default):
            kind = type(parameter.default).__name__
            raise QdxError(
                f"{who}: the default of its option {name} is a {kind}, which no config file can hold: "
                f"use a number, a string, a bool, None, or a list or dict of them"
            )


def _require_function(
    member: Callable[..., Any], who: str, data: Sequence[str], keywords: Sequence[str]
) -> None:
    if inspect.isclass(member):
        raise QdxError(f"{who} is a class, must be a function of ({', '.join(data)})")
    signature = inspect.signature(member)
    options = options_of(member)
    try:
        signature.bind(*data, **dict.fromkeys(keywords), **dict.fromkeys(options))
    except TypeError as error:
        wanted = ", ".join([*data, *(["*", *keywords] if keywords else []), "option=default …"])
        raise QdxError(f"{who} takes {signature}, must take ({wanted}): {error}") from error


def _require_class(member: Callable[..., Any], kind: str, who: str) -> None:
    if not inspect.isclass(member):
        raise QdxError(f"{who} is not a class, must be a class with {', '.join(METHODS[kind])}")
    for name, arguments in METHODS[kind].items():
        method = inspect.getattr_static(member, name, None)
        if method is None:
            near = nearest(name, [n for n in vars(member) if not n.startswith("_")])
            raise QdxError(f"{who} has no method {name}({', '.join(arguments)}){near}")
        function = getattr(member, name)
        static = isinstance(method, staticmethod | classmethod)
        try:
            inspect.signature(function).bind(*(() if static else (None,)), *arguments)
        except TypeError as error:
            takes = inspect.signature(function)
            raise QdxError(
                f"{who}: {name} takes {takes}, must take ({', '.join(arguments)}): {error}"
            ) from error
    signature = inspect.signature(member)
    try:
        signature.bind(**dict.fromkeys([*GIVEN[kind], *options_of(member)]))
    except TypeError as error:
        wanted = ", ".join([*GIVEN[kind], "option …"])
        raise QdxError(f"{who} is made with {signature}, must take the keywords {wanted}: {error}") from error


def options_of(member: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return a member's options by name.

    Of a function, every parameter with a default (the others are data), of a class every parameter; but those
    that the framework gives are none. A member that states its ``options`` has those of that dataclass.
    """
    record = plugin_of(member)
    if stated := record.meta.get("options"):
        return dict(inspect.signature(stated).parameters)
    given = GIVEN.get(record.kind, keywords_of(record.meta))
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in inspect.signature(member).parameters.items()
        if parameter.kind not in variadic
        and name not in given
        and (inspect.isclass(member) or parameter.default is not parameter.empty)
    }


def _storable(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_storable(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _storable(item) for key, item in value.items())
    return value is inspect.Parameter.empty or value is None or type(value) in (bool, int, float, str)


def node_of(member: Callable[..., Any], target: str) -> dict[str, Any]:
    """Return the config node of a member: its target, and its options with their defaults.

    Parameters
    ----------
    member : callable
        Registered, and within the contract (`require`).
    target : str
        Where it can be imported from.
    """
    kind = plugin_of(member).kind
    options = {}
    for name, parameter in options_of(member).items():
        default = parameter.default
        options[name] = (
            MISSING if default is parameter.empty else list(default) if type(default) is tuple else default
        )
        if kind == "prompts" and name == "continuation_tokens":
            options[name] = "${generate.tokens}"  # replay feeds as many tokens as are generated
    return {"_target_": target, **options}


def check_options(member: Callable[..., Any], prefix: str, node: Mapping[str, Any]) -> None:
    """Check the options in a config node against a member's signature, without calling it.

    Parameters
    ----------
    member : callable
        Registered.
    prefix : str
        Stands before an option's name in a message, such as ``metric.half_l1``.
    node : Mapping
        ``{"_target_": …, option: value, …}``; a key ``name`` is a label and no option.

    Raises
    ------
    QdxError
        When an option is unknown, missing, of another type than its default, or not what the member's own
        ``check`` lets pass.
    """
    options = options_of(member)
    for key, value in node.items():
        if key in ("_target_", "name"):
            continue
        if key not in options:
            known = f"one of {', '.join(options)}" if options else "it has none: remove it"
            raise QdxError(f"{prefix}.{key}: unknown option, {known}{nearest(key, options)}")
        default = options[key].default
        if type(default) is int and options[key].annotation in (float, "float"):
            default = float(default)
        if value == MISSING:
            raise QdxError(f"{prefix}.{key} is not set and has no default: add {prefix}.{key}=…")
        if default is not options[key].empty and not _fits(value, default):
            kind = "list" if isinstance(default, tuple) else type(default).__name__
            example = f"[{','.join(map(str, default))}]" if kind == "list" else default
            article = "an" if kind[0] in "aeiou" else "a"
            raise QdxError(f"{prefix}.{key}={value}: must be {article} {kind}, such as {example}")
    if own := plugin_of(member).meta.get("check"):
        try:
            own({key: value for key, value in node.items() if key in options})
        except QdxError as error:
            raise QdxError(f"{prefix}.{error}") from error


def _fits(value: Any, default: Any) -> bool:
    """Return whether a value is of the default's type; None always is, and an int is a float."""
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(default))
