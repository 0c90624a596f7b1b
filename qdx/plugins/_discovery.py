"""Find plug-ins: files in ``plugins/`` folders, and entry points of installed distributions.

A file ``plugins/half_l1.py`` is the module ``qdx_plugins.half_l1``, in every process: the package is made in
memory with the folders as its path, so that a child process finds a plug-in by its target alone.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from qdx.errors import QdxError, nearest
from qdx.plugins._registry import node_of, record_of, registered, require

ENTRY_POINTS = "qdx.plugins"
READER = "record_reader"  # chosen by what a file holds: no group of the config
PACKAGES = {"metric": "qdx.metrics", "analysis": "qdx.analysis"}  # of the shipped members
PACKAGE = "qdx_plugins"
_QDX = Path(__file__).parent.parent
_also: list[Path] = []  # the folders that the user named
# Set to anything but 0: plug-in files of the working folder are left out, in children too (`--no-plugins`).
LEFT_OUT = "QDX_NO_PLUGINS"
# What a results folder holds. Who works in one reads it, and it may be a stranger's. Not sweep.nc alone: a
# verifier copies that into a folder of his own.
_RESULTS = ("sweep.json", "run.nc", "*/run.nc")
_left_out_aloud: set[Path] = set()
UNREADABLE = "no file"


@dataclass(frozen=True)
class Found:
    """One plug-in that was found.

    Attributes
    ----------
    kind, name : str
        Its config group, and its name there.
    member : callable
        The registered function or class.
    target : str
        Where any process can import it from.
    origin : str
        Its file, or its distribution and module.
    """

    kind: str
    name: str
    member: Callable[..., Any]
    target: str
    origin: str


def load() -> list[Found]:
    """Import every plug-in and make each an option of its config group.

    Returns
    -------
    list of Found
        In the order: project's folder, working folder, distributions.

    Raises
    ------
    QdxError
        Naming the file, or the distribution and module, of a plug-in that cannot be imported, breaks the
        contract of its kind, or has the name of another one or of a shipped member.
    """
    found: dict[tuple[str, str], Found] = {}
    for one in (*_files(), *_distributions()):
        key = (one.kind, one.name)
        taken = found[key].origin if key in found else "qdx itself" if _shipped(*key) else ""
        if taken:
            both = f"of {taken} and of {one.origin}"
            raise QdxError(f"two plug-ins are named {one.kind}={one.name}: {both}: rename or remove one")
        try:
            require(one.member)
        except QdxError as error:
            raise QdxError(f"plug-in of {one.origin}: {error}") from error
        found[key] = one
    if found:
        _store(list(found.values()))
    return list(found.values())


def find(kind: str, name: str) -> Callable[..., Any]:
    """Return a shipped member or a plug-in by its name in a config group.

    Raises
    ------
    QdxError
        For an unknown name; the message lists the known ones and the nearest.
    """
    if kind in PACKAGES and _shipped(kind, name):
        return getattr(importlib.import_module(PACKAGES[kind]), name)  # type: ignore[no-any-return]
    own = {one.name: one.member for one in load() if one.kind == kind}
    if name in own:
        return own[name]
    known = [*shipped(kind), *own]
    raise QdxError(f"unknown {kind} {name!r}, one of {', '.join(known)}{nearest(name, known)}")


def shipped(kind: str) -> list[str]:
    """Return the names of the members of a kind that qdx ships, sorted."""
    return sorted(path.stem for path in (conf_dir() / kind).glob("*.yaml"))


def check_reachable(overrides: Sequence[str]) -> None:
    """Refuse overrides that choose what only this process registered, such as a notebook's cell.

    Every job of a sweep, and its preparation, is a process of its own: it knows the plug-ins that it finds.

    Parameters
    ----------
    overrides : sequence of str
        Of a command line.

    Raises
    ------
    QdxError
        Naming the plug-in, where it was registered, and the file to put it into.
    """
    found = {(one.kind, one.name) for one in load()}
    for (kind, name), module in registered.items():
        chosen = re.compile(rf"[+~]*{kind}(=.*|\.)\b{name}\b")
        if (kind, name) not in found and any(chosen.match(text) for text in overrides):
            where = "in this notebook or script" if module == "__main__" else f"in module {module}"
            raise QdxError(
                f"{kind} {name!r} was registered {where}, which the processes of a sweep do not see: put it "
                f"into plugins/{name}.py of the working folder"
            )


def conf_dir() -> Path:
    """Return the folder of the config groups: beside the package in a checkout, inside it in a wheel."""
    packaged = _QDX / "conf"
    return packaged if packaged.is_dir() else _QDX.parent / "conf"


def folders() -> list[Path]:
    """Return the folders that are there: the checkout's, the working folder's, and those of `add_folders`.

    That of the working folder is left out where `leave_out` was called, and where the working folder holds
    results, so that nobody's code runs because his results are looked at; a line on standard error says so.
    """
    checkout = [_QDX.parent / "plugins"] if conf_dir().parent == _QDX.parent else []
    here = [path for path in (Path("plugins"),) if path.is_dir() and not _is_left_out(path)]
    found = [path.resolve() for path in (*checkout, *here, *_also) if path.is_dir()]
    return list(dict.fromkeys(found))


def leave_out() -> None:
    """Leave the plug-in files of the working folder out, in this process and in its children."""
    os.environ[LEFT_OUT] = "1"


def are_left_out() -> bool:
    """Return whether the plug-in files of the working folder are left out because the user said so."""
    return os.environ.get(LEFT_OUT, "0") not in ("", "0")


def _is_left_out(plugins: Path) -> bool:
    if are_left_out():
        return True
    results = [path.name for name in _RESULTS for path in Path().glob(name)]
    if results and plugins.resolve() not in _left_out_aloud:
        _left_out_aloud.add(plugins.resolve())
        print(
            f"qdx: the working folder holds results ({results[0]}), which may be a stranger's: its plugins/ "
            "are left out; work in another folder to use them",
            file=sys.stderr,
        )
    return bool(results)


def add_folders(paths: Iterable[str | Path]) -> None:
    """Look for plug-in files in these folders too, which the user named.

    Raises
    ------
    QdxError
        For one that is not there.
    """
    for path in map(Path, paths):
        if not path.is_dir():
            raise QdxError(f"{path}: no such folder of plug-ins")
        if path not in _also:
            _also.append(path)


def install_package() -> ModuleType:
    """Make the package ``qdx_plugins`` importable and return it."""
    package = sys.modules.get(PACKAGE)
    if package is None:
        package = sys.modules[PACKAGE] = ModuleType(PACKAGE, "Files of the plugins/ folders.")
    package.__path__ = [str(folder) for folder in folders()]
    importlib.invalidate_caches()  # a file may be younger than what the finders remember
    return package


def code_of(member: Callable[..., Any]) -> dict[str, str]:
    """Return where the code of a plug-in is, and the SHA-256 of that file.

    A metric or an analysis changes no output, so the hash of a run leaves it out; what it computed states it.

    Parameters
    ----------
    member : callable
        Registered, or what `qdx.plugins.build` made of it.

    Returns
    -------
    dict
        ``plugin_source`` and ``plugin_sha256`` as attributes of what it computed, both "no file" for code
        that is in none (a notebook's); empty for what ships with qdx, whose version says it.
    """
    while isinstance(member, partial):
        member = member.func
    if member.__module__.split(".")[0] == "qdx":
        return {}
    try:
        path = Path(inspect.getfile(inspect.unwrap(member)))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, TypeError):
        return {"plugin_source": UNREADABLE, "plugin_sha256": UNREADABLE}
    return {"plugin_source": str(path), "plugin_sha256": digest}


def _shipped(kind: str, name: str) -> bool:
    if kind == READER:
        return (Path(__file__).parent.parent / "records" / f"{name}.py").exists()
    return (conf_dir() / kind / f"{name}.yaml").exists()


def _store(found: list[Found]) -> None:
    """Make a node of Hydra's ConfigStore for each plug-in."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for one in found:
        if one.kind == READER:
            continue
        node = node_of(one.member, one.target)
        shaped = {one.name: node} if one.kind in ("metric", "analysis") else {"name": one.name, **node}
        store.store(group=one.kind, name=one.name, node=shaped, provider=one.origin)


def _files() -> Iterator[Found]:
    """Yield what the files of the ``plugins/`` folders register.

    A file that begins with ``_`` is a helper of others; one that does not mention qdx is not for it (a
    working folder may have a folder ``plugins`` of something else). The same file twice is one plug-in.
    """
    paths: dict[str, Path] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.py")):
            text = path.read_bytes()
            if path.stem.startswith("_") or b"qdx" not in text or b"register" not in text:
                continue
            other = paths.setdefault(path.stem, path)
            if other != path and other.read_bytes() != text:
                raise QdxError(f"two plug-in files are named {path.name}: {other} and {path}: rename one")
    if not paths:
        return
    install_package()
    for stem, path in paths.items():
        if not stem.isidentifier():
            raise QdxError(
                f"plug-in file {path}: Python cannot import it by that name: use letters, digits and _"
            )
        name = f"{PACKAGE}.{stem}"
        module = sys.modules.get(name)
        if module is not None and Path(str(module.__file__)).resolve() != path:
            del sys.modules[name]  # of another working folder
        try:
            module = importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise QdxError(f"plug-in file {path} cannot be imported: {_said(error, path)}") from error
        origin = str(path)
        yield from _members(module, origin, lambda member, own=name: member.__module__ == own)  # type: ignore[misc]


def _distributions() -> Iterator[Found]:
    """Yield what installed distributions register."""
    for point in entry_points(group=ENTRY_POINTS):
        origin = _origin(point)
        try:
            loaded = point.load()
        except (Exception, SystemExit) as error:
            raise QdxError(f"plug-in of {origin} cannot be imported: {_said(error)}") from error
        if isinstance(loaded, ModuleType):
            yield from _members(loaded, origin, lambda member: not member.__module__.startswith("qdx."))
        elif (record := record_of(loaded)) is not None:
            yield Found(record.kind, record.name, loaded, point.value.replace(":", "."), origin)
        else:
            raise _nothing(origin)


def _origin(point: EntryPoint) -> str:
    dist = point.dist
    which = f"distribution {dist.name} {dist.version}" if dist is not None else "an unknown distribution"
    return f"{which} (entry point {point.name}, module {point.module})"


def _members(module: ModuleType, origin: str, own: Callable[[Any], bool]) -> Iterator[Found]:
    """Yield the registered members at module level, but not what was imported from elsewhere."""
    seen: set[int] = set()
    for attribute, member in vars(module).items():
        record = record_of(member)
        if record is None or id(member) in seen or not own(member):
            continue
        seen.add(id(member))
        yield Found(record.kind, record.name, member, f"{module.__name__}.{attribute}", origin)
    if not seen:
        raise _nothing(origin)


def _nothing(origin: str) -> QdxError:
    return QdxError(
        f"plug-in of {origin} registers nothing: decorate a function with @qdx.register(kind, name)"
    )


def _said(error: BaseException, path: Path | None = None) -> str:
    """Return what an import raised, with the line of the plug-in's file where it did."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, QdxError):
        said = str(error)
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{said} (line {lines[-1]})" if lines else said
