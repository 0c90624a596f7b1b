"""Commands that are shown to be pasted: rebuilt from parts that were checked, whoever wrote the folder.

A sweep folder holds the command that made it. A stranger's could hold anything that a shell or Hydra runs:
``hydra.callbacks.x._target_=…`` and any other ``_target_`` import and call what they name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

LONGEST = 8_000  # characters of a command
NO_PLUGINS = "--no-plugins"  # plug-in files of the working folder are not looked for
FLAGS = ("-m", "--multirun", NO_PLUGINS)
# Hydra's flags that a value follows.
_VALUED = {
    *(
        "--config-name",
        "-cn",
        "--config-path",
        "-cp",
        "--config-dir",
        "-cd",
        "--package",
        "-p",
        "--cfg",
        "-c",
    ),
    "--experimental-rerun",
}
# An override of a value or a choice of a group, in Hydra's grammar: +a.b.c=, ~a.b, hydra/launcher=.
_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w-]*([./][\w-]+)*", re.ASCII)
_CHOICE = re.compile(r"[\w,-]+", re.ASCII)
DIRECTORY = "hydra.sweep.dir"


def quoted(value: str) -> str:
    """Return a value as Hydra's override grammar takes it: in quotes where a character means something."""
    if re.fullmatch(r"[\w/.:+-]+", value, re.ASCII):
        return value
    # Inside quotes a backslash means something only before a quote.
    escaped = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Return a command line with its flags before its overrides.

    Hydra's parser takes overrides of one place only: ``quant=awq -m seed=1,2`` it calls unrecognized.
    """
    flags: list[str] = []
    overrides: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        valued = word in _VALUED or (word == "--info" and words and re.fullmatch(r"[a-z-]+", words[0]))
        if not word.startswith("-"):
            overrides.append(word)
        elif valued and words:
            flags += [word, words.pop(0)]
        else:  # the value of --info may be left out, and an override is none
            flags.append("--info=all" if word == "--info" else word)
    return [*flags, *overrides]


def checked(arguments: Sequence[str]) -> list[str] | None:
    """Return the arguments of ``python -m qdx`` that may be shown.

    Parameters
    ----------
    arguments : sequence of str

    Returns
    -------
    list of str or None
        Without what concerns Hydra itself (``hydra.…``, and ``hydra/…`` but a launcher or a sweeper), which a
        sweep runs without. None where an argument cannot be left out and cannot be shown: one that names a
        ``_target_``, asks for a value of this machine (``${oc.env:…}``), chooses other config files, or is
        not an override.
    """
    kept = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        name = key.lstrip("+~")
        if argument in FLAGS:
            kept.append(argument)
        elif re.match(r"hydra\b", name):
            if name in ("hydra/launcher", "hydra/sweeper") and _CHOICE.fullmatch(value):
                kept.append(argument)
        elif _acts(argument) or not _KEY.fullmatch(key) or not (equals or key.startswith("~")):
            return None
        else:
            kept.append(argument)
    return kept


def _acts(argument: str) -> bool:
    return "_target_" in argument or "${" in argument or not argument.isprintable()


def own_command(command: object, directory: Path) -> str:
    """Return a command that a folder holds, where it runs qdx and nothing else.

    Parameters
    ----------
    command : object
        What the folder holds: commands joined by ``&&``.
    directory : Path
        The folder. It takes the place of every ``hydra.sweep.dir=``: a stranger's would make the sweep write
        anywhere, and a folder that was moved is where it is now.

    Returns
    -------
    str
        Quoted anew, so that only ``&&`` joins commands; "" where a part cannot be shown (see `checked`).
    """
    if not isinstance(command, str) or len(command) > LONGEST:
        return ""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    shown = []
    for part in parts:
        arguments = checked(part[3:]) if part[:3] == ["python", "-m", "qdx"] else None
        if arguments is None:
            return ""
        if any(word.lstrip("+").startswith(f"{DIRECTORY}=") for word in part[3:]):
            arguments.append(f"{DIRECTORY}={quoted(str(directory.absolute()))}")
        shown.append(shlex.join(["python", "-m", "qdx", *arguments]))
    return " && ".join(shown)
