"""The registry of metrics, analyses, backends and prompt sources, and the only caller of ``instantiate``.

Shipped members use the same decorator as anybody's: it attaches a `Plugin` record to the function or class,
so that what a number means (unit, direction, formula) travels with the code that computes it, and their
config nodes pass the same checks. Plug-ins come from ``plugins/`` folders and from entry points (`load`).
`build` imports what a config of the user's own names; `from_file` only chooses among what is registered here.
"""

from __future__ import annotations

from qdx.plugins._discovery import (
    Found,
    add_folders,
    are_left_out,
    check_reachable,
    code_of,
    conf_dir,
    find,
    folders,
    leave_out,
    load,
    shipped,
)
from qdx.plugins._nodes import build, check, from_file
from qdx.plugins._registry import (
    KINDS,
    METRIC_META,
    NEEDS,
    Plugin,
    keywords_of,
    node_of,
    options_of,
    plugin_of,
    record_of,
    register,
    require,
)

__all__ = [
    "KINDS",
    "METRIC_META",
    "NEEDS",
    "Found",
    "Plugin",
    "add_folders",
    "are_left_out",
    "build",
    "check",
    "check_reachable",
    "code_of",
    "conf_dir",
    "find",
    "folders",
    "from_file",
    "keywords_of",
    "leave_out",
    "load",
    "node_of",
    "options_of",
    "plugin_of",
    "record_of",
    "register",
    "require",
    "shipped",
]
