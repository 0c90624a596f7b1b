"""Hydra's and OmegaConf's errors as one line: what, got, the choices, the nearest one."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from qdx.errors import nearest
from qdx.program import in_one_line, of_disk


def explain(error: Exception, conf: Path, overrides: Sequence[str] | None = None) -> str | None:
    """Return one line for an error of composing a config or of the disk, or None when it is another kind.

    Parameters
    ----------
    error : Exception
        What Hydra raised.
    conf : Path
        The folder of the config groups.
    overrides : sequence of str, optional
        That were composed. Default: this process's command line.
    """
    from hydra.errors import HydraException, OverrideParseException

    if of_disk(error):
        return in_one_line(error)
    text = str(error)
    hydras = ("Config group override must be", "Config group override deletion value must be")
    if isinstance(error, ValueError) and text.startswith(hydras):
        given = [text for text in sys.argv[1:] if "=" in text and not text.startswith("-")]
        return _no_name(given if overrides is None else overrides, conf)
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if isinstance(error, OverrideParseException):
        rule = (
            "write key=value without spaces after commas, and quote a value with spaces or signs, key='a b'"
        )
        return f"{error.override!r} is not an override: {rule}{_option_named(str(error.override), conf)}"
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _unknown_option(match[1], conf)
    if match := re.search(r"Could not append to config\. An item is already at '([^']+)'", text):
        return f"+{match[1]}: the config has this key, and + adds a new one: write {match[1]}=… without it"
    cause = error.__cause__
    if (
        "Could not override" in text
        and isinstance(cause, ConfigAttributeError | ConfigKeyError)
        and isinstance(cause.parent_node, DictConfig)
    ):
        return _unknown_key(str(cause.key), cause.parent_node, conf)
    # Hydra's and OmegaConf's own first line says what is wrong; the cause says where.
    lines = [text.splitlines()[0]]
    if isinstance(cause, OmegaConfBaseException) and str(cause) not in text:
        lines.append(str(cause).splitlines()[0])
    return ": ".join(line.rstrip(".:") for line in lines if line)


def _option_named(word: str, conf: Path) -> str:
    """Return a hint where a word without a key is the name of an option: ``awq`` → ``quant=awq``."""
    groups = sorted(path.name for path in conf.iterdir() if path.is_dir() and path.name != "hydra")
    found = [f"{group}={word}" for group in groups if word in _options(group, conf)]
    return f" (did you mean '{found[0]}'?)" if found else ""


def _unknown_option(name: str, conf: Path) -> str:
    group, _, option = name.rpartition("/")
    if group.startswith("hydra/") and not (conf / group).is_dir():
        return f"{group}={option}: Hydra finds no such plug-in: install the package that brings it"
    own = {"basic"} if group.startswith("hydra/") else set()  # Hydra's
    places = _places(conf)
    files = {path.stem for place in places for path in (place / group).glob("*.yaml")}
    choices = sorted({*own, *files, *_plugin_nodes(group)})
    if not group or not choices:
        folders = [path for place in places for path in place.iterdir() if path.is_dir()]
        groups = sorted({path.name for path in folders} - {"hydra"})
        return f"{name}: unknown config group, one of {', '.join(groups)}{nearest(group or option, groups)}"
    more = ": install the package that brings another" if group.startswith("hydra/") else ""
    return f"{group}={option}: unknown {group}, one of {', '.join(choices)}{nearest(option, choices)}{more}"


def _places(conf: Path) -> list[Path]:
    """Return the folders of config groups: qdx's, and the user's own (``--config-dir``)."""
    places, words = [conf], sys.argv[1:]
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, _, value = word.partition("=")
        if name in ("--config-dir", "-cd"):
            places.append(Path(value or following).absolute())
    return [place for place in places if place.is_dir()]


def _plugin_nodes(group: str) -> dict[str, DictConfig]:
    """Return the nodes that plug-ins have added to a group, by name."""
    from hydra.core.config_store import ConfigNode, ConfigStore

    added = ConfigStore.instance().repo.get(group, {})
    if not isinstance(added, dict):
        return {}
    return {
        name.removesuffix(".yaml"): entry.node
        for name, entry in added.items()
        if isinstance(entry, ConfigNode)  # another group below this one is a dict
    }


def _unknown_key(key: str, node: DictConfig, conf: Path) -> str:
    """Say which keys a node of the composed config has instead, and whether another option has this one."""
    parent = str(node._get_full_key(None) or "")
    full = f"{parent}.{key}" if parent else key
    if not parent:
        groups = [path.name for path in conf.iterdir() if path.is_dir()]
        return _without(full, key, {*groups, *map(str, node)} - {"hydra"})
    if parent in ("metric", "analysis"):
        return _not_chosen(parent, key, list(map(str, node)), conf)
    # The name of an option of qdx's groups is not for a user to set; Hydra's own nodes have such a key.
    hidden = {"_target_"} if parent.startswith("hydra") else {"_target_", "name"}
    said = _without(full, key, {str(name) for name in node} - hidden)
    group, _, inner = parent.partition(".")
    others = [name for name, other in _options(group, conf).items() if key in _keys(other, inner)]
    return f"{said}; only {group}={' or '.join(others)} has it" if others else said


def _without(full: str, key: str, choices: set[str]) -> str:
    known = f"one of {', '.join(sorted(choices))}" if choices else "it has none: remove it"
    return f"{full}: unknown key, {known}{nearest(key, choices)}"


def _not_chosen(group: str, name: str, chosen: list[str], conf: Path) -> str:
    options = _options(group, conf)
    if name in options:
        return f"{group}.{name}: not chosen: add it to {group}, '{group}=[{','.join([*chosen, name])}]'"
    choices = sorted(options)
    return f"{group}.{name}: unknown {group}, one of {', '.join(choices)}{nearest(name, choices)}"


def _options(group: str, conf: Path) -> dict[str, Any]:
    """Return the nodes of a group's options by name, as their files have them."""
    files = [path for place in _places(conf) for path in sorted((place / group).glob("*.yaml"))]
    shipped = {path.stem: OmegaConf.load(path) for path in files}
    return {**shipped, **_plugin_nodes(group)}


def _keys(option: Any, inner: str) -> set[str]:
    node = OmegaConf.select(option, inner) if inner else option
    return {str(key) for key in node} if isinstance(node, DictConfig) else set()


def _no_name(overrides: Sequence[str], conf: Path) -> str:
    """Say which override gives a group something that names no option, such as null or a number."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ValueType

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = override.key_or_group
        if not (conf / group).is_dir() or override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            continue
        values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
        if not all(isinstance(value, str | list) for value in values):
            options = list(_options(group, conf))
            example = (
                f"'{group}=[{options[0]}]'" if group in ("metric", "analysis") else f"{group}={options[0]}"
            )
            said = f"is no name of an option, one of {', '.join(options)}"
            return f"{override.input_line}: {said}: write {example}"
    return "a config group was given something that names no option: write group=option, such as quant=awq"
