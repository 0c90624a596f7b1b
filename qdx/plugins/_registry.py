"""What a member of each kind must look like, and its options as a config node."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qdx.errors import QdxError, nearest
from qdx.plugins._record import keywords_of, plugin_of

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
        raise QdxError(f"{who} is no class, must be a class with {', '.join(METHODS[kind])}")
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
            known = ", ".join(options) or "(it has none)"
            raise QdxError(f"{prefix}.{key}: unknown option, one of {known}{nearest(key, options)}")
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
    """Whether a value is of the default's type; None always is, and an int is a float."""
    if value is None or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, float):
        return isinstance(value, int | float)
    if isinstance(default, list | tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, type(default))
