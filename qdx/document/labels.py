"""Short names of configs for tables: what differs, and never two alike. Stored labels stay as they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

ELLIPSIS = "…"
PAIR = " ~ "  # between the two names of a pair, each of which is cut by itself
NARROWEST_SIDE = 8
# What people call the settings that are swept; another key is called by its last part.
SHORT_KEYS: Mapping[str, str] = {
    "batch_size": "batch",
    "data_parallel_size": "dp",
    "pipeline_parallel_size": "pp",
    "tensor_parallel_size": "tp",
}
_SETTING = re.compile(r"[^\s,=\[\]{}()'\"]+=")


def short_labels(labels: Sequence[str]) -> list[str]:
    """Name configs by what differs between them.

    A label is the quantization and ``,key=value`` for every other swept key. A setting that all labels share
    is left out, and of a key only its last part is named, as long as that tells the keys apart.

    Parameters
    ----------
    labels : sequence of str
        Of one sweep, no two equal.

    Returns
    -------
    list of str
        In the same order, no two equal.

    Examples
    --------
    >>> short_labels(["awq", "awq_marlin"])
    ['awq', 'awq_marlin']
    >>> key = "backend.tensor_parallel_size"
    >>> short_labels([f"awq_marlin,{key}=1,dtype=half", f"awq_marlin,{key}=2,dtype=half"])
    ['awq_marlin tp=1', 'awq_marlin tp=2']
    """
    parsed = [_settings(label) for label in labels]
    keys = list(dict.fromkeys(key for _, settings in parsed for key in settings))
    differing = [key for key in keys if len({settings.get(key) for _, settings in parsed}) > 1]
    called = {key: _short_key(key) for key in differing}
    counts = Counter(called.values())
    called = {key: name if counts[name] == 1 else key for key, name in called.items()}
    names = [
        " ".join([head, *(f"{called[key]}={value}" for key, value in settings.items() if key in called)])
        for head, settings in parsed
    ]
    counts = Counter(names)
    names = [name if counts[name] == 1 else label for name, label in zip(names, labels, strict=True)]
    return names if len(set(names)) == len(names) else list(labels)


def _settings(label: str) -> tuple[str, dict[str, str]]:
    """Split a label into its first part and its settings; a comma inside a value does not separate."""
    head, *rest = label.split(",")
    settings: dict[str, str] = {}
    key = ""
    for part in rest:
        if _SETTING.match(part):
            key, _, value = part.partition("=")
            settings[key] = value
        elif key:
            settings[key] += f",{part}"
        else:
            head += f",{part}"
    return head, settings


def _short_key(key: str) -> str:
    last = key.rpartition(".")[2]
    return SHORT_KEYS.get(last, last)


def cut_all(texts: Sequence[str], width: int) -> list[str]:
    """Cut texts to `width` columns so that two different ones stay different.

    The end is cut off where that tells them apart, else the middle, else the start; where nothing does, the
    cut ones are numbered.

    Parameters
    ----------
    texts : sequence of str
        Equal ones are cut alike.
    width : int
        At least one more than the digits of the count of different texts.
    """
    different = list(dict.fromkeys(texts))
    long = [text for text in different if len(text) > width]
    if not long:
        return list(texts)
    side = (width - len(PAIR)) // 2
    if side >= NARROWEST_SIDE and all(text.count(PAIR) == 1 for text in long):
        sides = [part for text in long for part in text.split(PAIR)]
        named = dict(zip(sides, cut_all(sides, side), strict=True))
        pairs = {text: PAIR.join(named[part] for part in text.split(PAIR)) for text in long}
        if len({*different} - {*long} | {*pairs.values()}) == len(different):
            return [pairs.get(text, text) for text in texts]
    taken = {text for text in different if len(text) <= width}
    for tail in dict.fromkeys((0, (width - 1) // 2, width - 1)):
        cut = [_cut(text, width, tail) for text in long]
        if len({*cut, *taken}) == len(different):
            break
    else:
        cut = _numbered(long, width, taken)
    shown = {text: text for text in taken} | dict(zip(long, cut, strict=True))
    return [shown[text] for text in texts]


def _cut(text: str, width: int, tail: int) -> str:
    end = text[len(text) - tail :] if tail else ""
    return text[: max(width - 1 - tail, 0)] + ELLIPSIS[:width] + end


def _numbered(texts: Sequence[str], width: int, taken: set[str]) -> list[str]:
    found: list[str] = []
    number = 0
    for text in texts:
        while True:
            number += 1
            cut = _cut(text, width - len(str(number)), 0) + str(number)
            if cut not in taken and cut not in found:
                break
        found.append(cut)
    return found
