"""A reader who knows nothing but the message: changes a command line as a message of qdx says.

What it does is read out of the message, never known beforehand, so a message that changes is followed as it
then stands, and one that misleads does not get the reader any further.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping

import qdx
from qdx.errors import QdxError

Overrides = list[str]


class LostError(AssertionError):
    """A message says nothing that could be done, or doing it leads back to it."""


def key_of(override: str) -> str:
    """The key of an override: ``+metric.l2.k=3`` → ``metric.l2.k``."""
    return override.lstrip("+~").partition("=")[0]


def put(overrides: Overrides, override: str) -> Overrides:
    """Write an override in the place of the one with its key, or at the end."""
    key = key_of(override)
    at = [i for i, given in enumerate(overrides) if key_of(given) == key]
    if not at:
        return [*overrides, override]
    plus = "+" if overrides[at[0]].startswith("+") and not override.startswith("+") else ""
    return [*overrides[: at[0]], plus + override, *overrides[at[0] + 1 :]]


def drop(overrides: Overrides, name: str) -> Overrides:
    """Leave out what sets a key or a part of it."""
    return [
        given for given in overrides if key_of(given) != name and not key_of(given).startswith(f"{name}.")
    ]


def names(text: str) -> list[str]:
    """The members of "a, b or c"."""
    return [name for name in re.split(r",\s*|\s+or\s+|\s+and\s+", text.strip(" ;")) if name]


def follow(overrides: Overrides, message: str, values: Mapping[str, str]) -> Iterator[Overrides]:
    """Give what a reader makes of a command line after a message, the likeliest first.

    Parameters
    ----------
    overrides : list of str
    message : str
        Of the `QdxError`.
    values : Mapping
        What the reader has at hand where a message asks for a path, a text or a number, by key.
    """
    head = re.match(r"(?:[~+]{0,2}([\w./]+))(?:=(.*?))?(?=: | is | takes | needs )", message)
    key, value = (head[1], head[2]) if head else ("", None)

    def replaced(name: str) -> Overrides:
        if value is not None and "." not in key and key in ("metric", "analysis"):  # a member of a list
            return [re.sub(rf"\b{re.escape(value)}\b", name, o) if key_of(o) == key else o for o in overrides]
        if value is not None:
            return put(overrides, f"{key}={name}")
        wrong = key.rpartition(".")[2]
        return [
            re.sub(rf"(?<![\w]){re.escape(wrong)}(?=[.=])", name, o, count=1) if key in key_of(o) else o
            for o in overrides
        ]

    if (found := re.search(r"did you mean '([^']+)'\?", message)) and "is not an override" not in message:
        yield replaced(found[1])
    if found := re.match(r"'(.*?)' is not an override", message):
        at = overrides.index(found[1])
        if "did you mean" in message:
            yield [*overrides[:at], re.findall(r"did you mean '(.*)'\?", message)[0], *overrides[at + 1 :]]
        elif found[1].endswith(","):  # "without spaces after commas"
            yield [*overrides[:at], "".join(overrides[at : at + 2]), *overrides[at + 2 :]]
        else:
            given, _, text = found[1].partition("=")  # "quote a value with spaces or signs, key='a b'"
            yield [*overrides[:at], f"{given}='{text}'", *overrides[at + 1 :]]
    if re.search(r"give a (?:local )?checkpoint folder", message):
        wrong = re.search(r"'([^']+)': no such folder", message)
        assert wrong
        yield [o.partition("=")[0] + f"={values['folder']}" if wrong[1] in o else o for o in overrides]
    if found := re.search(r"remove ((?:hydra[./]|[a-z_]+\.)?[\w./]+)", message):
        yield drop(overrides, found[1])
    if re.search(r": remove it$|: remove it,", message) or "it has none" in message:
        yield drop(overrides, key)
    if "leave label out" in message:
        yield drop(overrides, "label")
    if found := re.search(r"write ('[^'…]+'|[\w.]+=[^\s…]+?)(?=$|[ ,;:])", message):
        written = shlex.split(found[1])[0]
        if written.endswith("=[a,b]"):
            written = next(f"{k}=[{v}]" for k, _, v in (o.partition("=") for o in overrides) if k == key)
        yield put([o for o in overrides if not o.startswith("~")], written)
    if found := re.search(r"(?:choose it by name|add it to \w+), '([\w.]+=\[[^']*\])'", message):
        kept = [o for o in overrides if "={" not in o or key_of(o) != key.partition(".")[0]]
        yield put(kept, found[1])
    elif found := re.search(r"(?:add it to|drop) (metric|analysis)\b", message):
        listed = next(o for o in overrides if key_of(o) == found[1])
        yield put(overrides, listed.replace("]", f",{value}]"))
    if found := re.search(r"add it to the sweep", message):
        yield [o + f",{value}" if key_of(o) == "quant" else o for o in overrides]
    for found in re.finditer(r"(?:add|set one of them instead,|write) ([\w.]+)=…", message):
        left = drop(overrides, key) if "instead" in message or "without it" in message else overrides
        yield put(left, f"{found[1]}={values[found[1]]}")
    if "give the producers' sweep.nc" in message:
        yield put(overrides, f"prompts.path={values['sweep.nc']}")
    if found := re.search(r"[Aa]dd ([\w.]+=\w[\w.]*)", message):
        yield put(overrides, found[1])
    if found := re.search(r"^([\w.]+) is empty.*set it to a local folder", message):
        yield put(overrides, f"{found[1]}={values['folder']}")
    if found := re.search(r"set ([\w.]+) to that", message):
        allowed = re.search(r"takes ([\w ,]+?): set", message)
        assert allowed
        yield put(overrides, f"{found[1]}={names(allowed[1])[0]}")
    if found := re.search(r"(?:[Cc]hoose|use|set) ([a-z_.]+)=([\w]+(?: or \w+)*)", message):
        for choice in names(found[2]):
            yield put(overrides, f"{found[1]}={choice}")
    if found := re.search(r"only (\w+)=(\w+(?: or \w+)*) has it", message):
        wanted = values.get(found[1], "")
        for choice in sorted(names(found[2]), key=lambda name: name != wanted):
            yield put(overrides, f"{found[1]}={choice}")
    if found := re.search(r"such as '?(\[[^']*\]|[\w.=\[\]]+)'?", message):
        example = found[1] if "=" in found[1] else f"{key}={found[1]}"
        yield put(overrides, example)
    if found := re.search(r"(?:one of|not one of|must be one of) ((?:[\w-]+(?:, | or )?)+)", message):
        for choice in names(found[1]):
            chosen = f"[{choice}]" if re.search(rf"^{re.escape(key)}=\[\]", message) else choice
            yield replaced(chosen)
    if found := re.search(r"(?:lower|raise) ([\w.]+) to (?:at most )?(\d[\d,]*)", message):
        yield put(overrides, f"{found[1]}={found[2].replace(',', '')}")
    elif found := re.search(r"at (?:least|most) (\d[\d,.]*)", message):
        yield put(overrides, f"{key}={found[1].replace(',', '')}")
    if found := re.search(r": (?:lower|choose a divisor or change) ([\w.]+)$", message):
        yield put(overrides, f"{found[1]}={values.get(found[1], '2')}")
    if "choose a divisor" in message:
        yield put(overrides, f"{key}=1")
    if found := re.search(r"change it or ([\w.]+) \(1 ≤ ids ≤ \1\)", message):
        yield put(overrides, f"{key}=1")
    if found := re.search(r"prompts\.path wants files: write (\S+)", message):
        yield put(overrides, f"prompts.path='{found[1]}'")
    if found := re.search(r"for example '(prompts\.texts=\[.*?\])'", message):
        yield put(overrides, found[1])
    if "drop one of them" in message:
        for i, given in enumerate(overrides):
            if "," in given and len(parts := given.partition("=")[2].split(",")) > len(set(parts)):
                once = ",".join(dict.fromkeys(parts))
                yield [*overrides[:i], f"{given.partition('=')[0]}={once}", *overrides[i + 1 :]]
    if found := re.search(r"must be (true|\d)", message):
        yield put(overrides, f"{key}={found[1]}")
    if found := re.search(r"must be (?:a whole number|a number)", message):
        yield put(overrides, f"{key}={values.get(key, '3')}")
    if found := re.search(r"must be text", message):
        yield put(overrides, f"{key}={values.get(key, 'words')}")
    if found := re.search(r"give it a name without / and|give a shorter one|give another label", message):
        yield put(overrides, f"{key}=another")
    if found := re.search(r"or null$|or all$", message):
        yield put(overrides, f"{key}={found[0].split()[1]}")


def try_composing(overrides: Overrides) -> str | None:
    """The message that a command line gets, None where it is a valid one."""
    try:
        qdx.compose(overrides)
    except QdxError as error:
        return str(error)
    return None


def led_by(
    overrides: Overrides,
    values: Mapping[str, str],
    attempt: Callable[[Overrides], str | None] = try_composing,
    steps: int = 4,
) -> list[tuple[str, Overrides]]:
    """Follow the messages until none comes any more.

    Returns
    -------
    list of (message, the command line that it was made)

    Raises
    ------
    LostError
        A message names nothing to do, comes again, or `steps` did not do.
    """
    trail: list[tuple[str, Overrides]] = []
    for _ in range(steps):
        message = attempt(overrides)
        if message is None:
            return trail
        if any(message == before for before, _ in trail):
            raise LostError(f"the same again: {message} (after {trail})")
        changed = [new for new in follow(overrides, message, values) if new != overrides]
        if not changed:
            raise LostError(f"nothing that can be done: {message} ({overrides})")
        overrides = changed[0]
        trail.append((message, overrides))
    if (message := attempt(overrides)) is None:
        return trail
    raise LostError(f"{steps} steps were not enough: {trail}, then {message}")
