"""The registry of metrics, analyses, backends and prompt sources, and the only caller of ``instantiate``.

Shipped members use the same decorator as anybody's: it attaches a `Plugin` record to the function or class,
so that what a number means (unit, direction, formula) travels with the code that computes it, and their
config nodes pass the same checks. Plug-ins come from ``plugins/`` folders and from entry points (`load`).
`build` imports what a config of the user's own names; `from_file` only chooses among what is registered here.
"""

from __future__ import annotations

from qdx.plugins._code import code_of
from qdx.plugins._discovery import Found, check_reachable, find, load
from qdx.plugins._folders import add as add_folders
from qdx.plugins._folders import conf_dir, folders, leave_out
from qdx.plugins._nodes import build, check
from qdx.plugins._record import KINDS, METRIC_META, NEEDS, Plugin, keywords_of, plugin_of, record_of, register
from qdx.plugins._registry import node_of, options_of, require
from qdx.plugins._stored import from_file

__all__ = [
    "KINDS",
    "METRIC_META",
    "NEEDS",
    "Found",
    "Plugin",
    "add_folders",
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
]
