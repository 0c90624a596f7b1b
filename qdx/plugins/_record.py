"""The record that a member carries, and the decorator that attaches it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from qdx.errors import QdxError, nearest

KINDS = ("metric", "analysis", "backend", "prompts", "record_reader")

# What this process registered outside of qdx, and in which module.
registered: dict[tuple[str, str], str] = {}

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
        For a metric: ``on`` (what its rows hold: "logprob", "logit", "top" with the keywords ``p_id`` and
        ``q_id``, or "hidden", the last hidden state, of runs with ``capture=hidden``), ``needs`` (what it is
        given as keywords beside the rows: "target", the ids of the tokens at the positions, that of
        ``config`` where two runs differ; "position", their indices; "prob", ``p_prob`` and ``q_prob``, the
        exponentials of log-probability rows, computed once for all pairs), ``symmetric``, ``units``,
        ``higher_means`` ("less alike" or "more alike"), ``formula`` (one line), ``coarse`` (whether it means
        something on rows that were coarsened to shared ids and a tail; with "target" it does not),
        ``on_self`` (its value for two equal rows) and ``nan_when`` (when the metric itself answers NaN). For
        an analysis: ``title``, and ``check``, a function of a mapping of its options that raises a `QdxError`
        beginning with ``option=value`` for what it could not use: it is called before anything runs. For a
        backend that takes its options as ``**options``: ``options``, a dataclass that has them as fields.

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
