"""Hydra's and OmegaConf's errors as one line: what, got, the choices, the nearest one."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qdx.errors import QdxError, nearest

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


def explain(error: Exception, conf: Path) -> str | None:
    """Return one line for an error of composing a config or of the disk, or None when it is another kind.

    Parameters
    ----------
    error : Exception
        What Hydra raised.
    conf : Path
        The folder of the config groups.
    """
    from hydra.errors import HydraException, OverrideParseException

    if of_disk(error):
        assert isinstance(error, OSError)
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}: free some space, or choose another hydra.sweep.dir"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    text = str(error)
    if isinstance(error, OverrideParseException):
        rule = (
            "write key=value without spaces after commas, and quote a value with spaces or signs, key='a b'"
        )
        return f"{error.override!r} is no override: {rule}"
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _unknown_option(match[1], conf)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1], conf)
    # Hydra's and OmegaConf's own first line says what is wrong; the cause says where.
    lines = [text.splitlines()[0]]
    if isinstance(error.__cause__, OmegaConfBaseException) and str(error.__cause__) not in text:
        lines.append(str(error.__cause__).splitlines()[0])
    return ": ".join(line.rstrip(".:") for line in lines if line)


def of_disk(error: BaseException | None) -> bool:
    """Whether the disk did not take something (Hydra's own errors of a config are OSErrors too)."""
    if isinstance(error, QdxError):
        return of_disk(error.__cause__)
    return isinstance(error, OSError) and error.errno in UNWRITABLE


def _unknown_option(name: str, conf: Path) -> str:
    group, _, option = name.rpartition("/")
    if group.startswith("hydra/") and not (conf / group).is_dir():
        return f"{group}={option}: Hydra finds no such plug-in: install the package that brings it"
    own = {"basic"} if group.startswith("hydra/") else set()  # Hydra's
    choices = sorted({*own, *(path.stem for path in (conf / group).glob("*.yaml")), *_plugin_nodes(group)})
    if not group or not choices:
        groups = sorted(path.name for path in conf.iterdir() if path.is_dir() and path.name != "hydra")
        return f"{name}: unknown config group, one of {', '.join(groups)}{nearest(group or option, groups)}"
    more = ": install the package that brings another" if group.startswith("hydra/") else ""
    return f"{group}={option}: unknown {group}, one of {', '.join(choices)}{nearest(option, choices)}{more}"


def _plugin_nodes(group: str) -> dict[str, DictConfig]:
    """Return the nodes that plug-ins have added to a group, by name."""
    from hydra.core.config_store import ConfigStore

    added = ConfigStore.instance().repo.get(group, {})
    return (
        {name.removesuffix(".yaml"): entry.node for name, entry in added.items()}
        if isinstance(added, dict)
        else {}
    )


def _unknown_key(key: str, conf: Path) -> str:
    parent, _, name = key.rpartition(".")
    choices = _keys(parent, conf)
    if not choices:
        return f"{key}: unknown key; `python -m qdx --cfg job` prints all of them"
    return f"{key}: unknown key, one of {', '.join(choices)}{nearest(name, choices)}"


def _keys(parent: str, conf: Path) -> list[str]:
    """Return the keys below `parent` in any option of its group, or at the top level."""
    if not parent:
        top = OmegaConf.load(conf / "config.yaml")
        assert isinstance(top, DictConfig)
        groups = [path.name for path in conf.iterdir() if path.is_dir()]
        return sorted({*groups, *(str(key) for key in top)} - {"defaults", "hydra"})
    first, _, rest = parent.partition(".")
    files = sorted((conf / first).glob("*.yaml")) or [conf / "config.yaml"]
    found: set[str] = set()
    for node in (*map(OmegaConf.load, files), *_plugin_nodes(first).values()):
        whole = files[0].parent == conf
        inner = OmegaConf.select(node, parent if whole else rest) if rest or whole else node
        if isinstance(inner, DictConfig):
            found |= {str(key) for key in inner}
    return sorted(found - {"_target_", "name", "defaults"})
