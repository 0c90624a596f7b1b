"""Say what a folder or file holds: a plain script that `qdx.dataset.catalogue` runs in a process of its own.

It reads the attributes and a few short texts of ``sweep.nc``, and ``summary.json``, ``sweep.json`` and
``status.json``. A stranger's could fill the memory, crash the HDF5 library or never end: hence a process that
may be killed, a limit of its memory, and a size that each file may have. Nothing in a file is executed, no
path in it is opened, and what is answered is short, whatever was read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

SWEEP, PLAN, SUMMARY, RUN, PART, STATUS = (
    "sweep.nc",
    "sweep.json",
    "summary.json",
    "run.nc",
    "run.nc.part",
    "status.json",
)
SIGNATURE = b"\x89HDF\r\n\x1a\n"
PHASES = ("prefill", "replay", "decode")
KINDS = ("run", "sweep", "commitments", "opened", "records")
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:?\d\d)?")
LONGEST_TEXT = 2**20  # bytes of an attribute or of a variable of texts that is read
MOST_LABELS = 10_000
LONGEST_LABEL = 160  # bytes, as `qdx.schema` has it
SHOWN = 40  # labels, models and verdicts in an answer
LONGEST_SHOWN = 200  # characters of each


class Unreadable(Exception):
    """A file is not one that is read; the text says why, without the file's name."""


def entry(path: str, limits: Mapping[str, int]) -> dict[str, Any]:
    """Describe a sweep folder, a run folder or a NetCDF file.

    Parameters
    ----------
    path : str
    limits : Mapping
        ``json_bytes``: what each JSON file may have.

    Returns
    -------
    dict
        ``kind``, ``time``, ``labels`` (the first ones) and ``configs`` (how many), ``models``, ``complete``,
        ``failed``, ``missing``, ``runs`` (counts), ``verdicts`` by the file that states them, ``problems``
        (sentences). What no file states is "", an empty list or None. All of it is what the files state.
    """
    if not os.path.isdir(path):  # noqa: PTH112 - a plain script
        return _of_file(path)
    if not _has(path, SWEEP) and not _has(path, PLAN) and _has(path, RUN):
        return _of_file(_join(path, RUN))
    return _of_folder(path, limits)


def _of_file(path: str) -> dict[str, Any]:
    try:
        found = _netcdf(path)
    except Unreadable as error:
        return _answer(problems=[str(error)])
    if not found:
        return _answer()
    labels = found["labels"]
    complete = found["status"] in ("", "complete")
    return _answer(
        kind=found["kind"],
        time=found["time"],
        labels=labels,
        models=found["models"],
        complete=complete and not found["failed"] and not found["missing"],
        failed=found["failed"],
        missing=found["missing"],
        verdicts=_stated(None, found),
    )


def _of_folder(path: str, limits: Mapping[str, int]) -> dict[str, Any]:
    problems: list[str] = []

    def read(name: str, what: Any) -> Any:
        if not _has(path, name):
            return None
        try:
            return what(_join(path, name))
        except Unreadable as error:
            problems.append(f"{name} {error}")
            return None

    plan = read(PLAN, lambda file: _json(file, limits["json_bytes"])) or {}
    merged = read(SWEEP, _netcdf)
    summary = read(SUMMARY, lambda file: _summary(_json(file, limits["json_bytes"])))
    if merged == {}:
        problems.append(f"{SWEEP} is a NetCDF file that qdx did not write")
        merged = None
    planned = _labels(plan.get("labels"))
    merged_labels = merged["labels"] if merged else []
    there = _with_runs(path)
    labels = planned or sorted({*there, *merged_labels}) or (summary or {}).get("labels", [])
    runs, failed, missing = _state(path, labels, limits["json_bytes"], problems)
    if merged and not runs and not failed:  # sweep.nc was copied here without its runs
        failed, missing = merged["failed"], merged["missing"]
        whole = not failed and not missing
    else:
        whole = bool(labels) and len(runs) == len(labels)
    if summary and merged and set(summary["configs"]) - set(merged_labels):
        problems.append(
            f"{SUMMARY} names configs that {SWEEP} does not have: one of them is of another sweep"
        )
    verdicts = _stated(summary, merged)
    if len({tuple(sorted(one["counts"].items())) for one in verdicts}) > 1:
        problems.append(f"{SUMMARY} and {SWEEP} state different verdicts: believe neither")
    times = (plan.get("started"), (merged or {}).get("time"), (summary or {}).get("time"))
    return _answer(
        kind="servers" if summary and summary["kind"] == "servers" else "sweep",
        time=next((time for time in map(_time, times) if time), ""),
        labels=labels,
        models=(merged or {}).get("models") or (summary or {}).get("models") or [],
        complete=whole if not (summary and summary["kind"] == "servers") else summary["whole"],
        failed=failed,
        missing=missing,
        runs=len(runs),
        verdicts=verdicts,
        problems=problems,
    )


def _answer(
    kind: str = "",
    time: str = "",
    labels: Iterable[str] = (),
    models: Iterable[str] = (),
    complete: bool | None = None,
    failed: Iterable[str] = (),
    missing: Iterable[str] = (),
    runs: int = 0,
    verdicts: Iterable[Mapping[str, Any]] = (),
    problems: Iterable[str] = (),
) -> dict[str, Any]:
    labels, failed, missing = list(labels), list(failed), list(missing)
    return {
        "kind": kind,
        "time": time,
        "configs": len(labels),
        "labels": _short(labels),
        "models": _short(dict.fromkeys(models)),
        "complete": complete,
        "failed": len(failed),
        "missing": len(missing),
        "runs": runs,
        "verdicts": list(verdicts),
        "problems": _short(problems),
    }


def _short(texts: Iterable[str]) -> list[str]:
    found = [text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…" for text in texts]
    return found[:SHOWN]


def _time(value: object) -> str:
    return value if isinstance(value, str) and TIME.fullmatch(value) else ""


def _labels(value: object) -> list[str]:
    """Labels of a list of anything: texts that can name a folder inside the sweep's."""
    if not isinstance(value, list):
        return []
    texts = [text for text in value[:MOST_LABELS] if isinstance(text, str) and _is_name(text)]
    return list(dict.fromkeys(texts))


def _is_name(text: str) -> bool:
    return (
        0 < len(text.encode("utf-8", "replace")) <= LONGEST_LABEL
        and "/" not in text
        and "\\" not in text
        and "\0" not in text
        and not text.startswith(".")
    )


def _with_runs(path: str) -> list[str]:
    """Names of the folders that hold a run, whole or not."""
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for one in entries:
            if len(found) >= MOST_LABELS:
                break
            if not one.is_dir(follow_symlinks=False) or not _is_name(one.name):
                continue
            if any(_has(one.path, name) for name in (RUN, PART, STATUS)):
                found.append(one.name)
    return found


def _state(
    path: str, labels: Iterable[str], largest: int, problems: list[str]
) -> tuple[list[str], list[str], list[str]]:
    """Labels whose run is whole by its name, that failed, and that left nothing."""
    runs, failed, missing = [], [], []
    for label in labels:
        folder = _join(path, label)
        if os.path.islink(folder):  # noqa: PTH114 - a plain script
            missing.append(label)
            continue
        status: Any = {}
        if _has(folder, STATUS):
            try:
                status = _json(_join(folder, STATUS), min(largest, LONGEST_TEXT))
            except Unreadable as error:
                problems.append(f"{label}/{STATUS} {error}")
                status = {"status": "failed"}
        if status.get("status") == "failed" or _has(folder, PART):
            failed.append(label)
        elif _has(folder, RUN):
            runs.append(label)
        else:
            missing.append(label)
    return runs, failed, missing


def _summary(content: Mapping[str, Any]) -> dict[str, Any]:
    """What is listed of a ``summary.json``, whose fields may hold anything."""
    kind = content.get("kind")
    if kind not in ("summary", "servers"):
        raise Unreadable("is not a summary that qdx wrote")
    stated = content.get("labels")
    stated = stated if isinstance(stated, dict) else {}
    configs = content.get("configs")
    configs = configs if isinstance(configs, dict) else {}
    models = [
        facts["model"]
        for facts in list(configs.values())[:MOST_LABELS]
        if isinstance(facts, dict) and isinstance(facts.get("model"), str)
    ]
    judged = content.get("verdicts")
    claims = judged.get("claims") if isinstance(judged, dict) else None
    claims = claims[:MOST_LABELS] if isinstance(claims, list) else []
    verdicts = [claim["verdict"] for claim in claims if isinstance(claim, dict) and "verdict" in claim]
    return {
        "kind": kind,
        "time": _time(content.get("time_utc")),
        "labels": _labels(stated.get("expected")),
        "configs": _labels(list(configs)),
        "models": models,
        "whole": not stated.get("failed") and not stated.get("missing"),
        "verdicts": [text for text in verdicts if isinstance(text, str)],
    }


def _stated(summary: Mapping[str, Any] | None, merged: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """How many claims each file says have which verdict."""
    found = []
    for name, of in ((SUMMARY, summary), (SWEEP, merged)):
        if of and of["verdicts"]:
            counts = Counter(text[:LONGEST_SHOWN] for text in of["verdicts"])
            found.append({"by": name, "counts": dict(counts.most_common(SHOWN))})
    return found


def _has(path: str, name: str) -> bool:
    """Whether a regular file of the name is there; a link to one is none."""
    try:
        return stat.S_ISREG(os.lstat(_join(path, name)).st_mode)
    except OSError:
        return False


def _join(path: str, name: str) -> str:
    return os.path.join(path, name)  # noqa: PTH118 - a plain script


def _opened(path: str) -> Any:
    """A regular file's stream; without O_NONBLOCK a fifo that took its place would be waited for."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable("is not a regular file")
    return os.fdopen(descriptor, "rb")


def _json(path: str, largest: int) -> dict[str, Any]:
    with _opened(path) as stream:
        data = stream.read(largest + 1)
    if len(data) > largest:
        size = os.stat(path).st_size  # noqa: PTH116 - a plain script
        raise Unreadable(f"is not read: {size:,} bytes, limit {largest:,}")
    try:
        content = json.loads(data)
    except MemoryError:
        raise
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"is not JSON: {_line(error)}") from error
    if not isinstance(content, dict):
        raise Unreadable(f"holds {type(content).__name__}, expected an object")
    return content


def _netcdf(path: str) -> dict[str, Any]:
    """The attributes of a file's root and three of its texts; empty for a file that qdx did not write.

    Only what has a size that the structure states is read, from this file alone: no link is followed, and
    nothing virtual or external.
    """
    import h5py

    with _opened(path) as stream:
        if stream.read(len(SIGNATURE)) != SIGNATURE:
            raise Unreadable("is not a whole NetCDF-4 file: its first bytes are not HDF5's")
    try:
        file = h5py.h5f.open(os.fsencode(path), h5py.h5f.ACC_RDONLY)
    except (OSError, ValueError, RuntimeError) as error:
        raise Unreadable(f"is not a whole NetCDF-4 file: {_line(error)}") from error
    try:
        root = h5py.h5g.open(file, b"/")
        if not h5py.h5a.exists(root, b"schema_version"):
            return {}
        kind = _attribute(root, "kind")
        found: dict[str, Any] = {
            "kind": kind if kind in KINDS else "unknown",
            "time": _time(_attribute(root, "time_utc")),
            "status": _attribute(root, "status"),
            "failed": _listed(_attribute(root, "failed")),
            "missing": _listed(_attribute(root, "missing")),
        }
        phase = next((_group(root, name) for name in PHASES if _group(root, name) is not None), None)
        labels = _listed(_attribute(root, "labels")) or _labels([_attribute(root, "label")])
        found["labels"] = labels or _labels(_texts(phase, "config"))
        found["models"] = _texts(phase, "model")
        judged = _group(_group(root, "analysis"), "verify")
        found["verdicts"] = _texts(judged, "verdict")
        return found
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, OverflowError) as error:
        raise Unreadable(f"is damaged: {_line(error)}") from error
    finally:
        with contextlib.suppress(Exception):
            file.close()


def _listed(text: str) -> list[str]:
    """Names of an attribute in JSON, a list or an object."""
    try:
        content = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return []
    return _labels(list(content)) if isinstance(content, list | dict) else []


def _attribute(group: Any, name: str) -> str:
    """A text of fixed length; "" where there is none, or one of another kind."""
    import h5py

    key = name.encode()
    if group is None or not h5py.h5a.exists(group, key):
        return ""
    attribute = h5py.h5a.open(group, key)
    kind = attribute.get_type()
    fixed = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
    if not fixed or math.prod(attribute.shape) != 1 or kind.get_size() > LONGEST_TEXT:
        return ""
    value = h5py.AttributeManager(h5py.Group(group)).get(name, b"")
    data = value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
    return data.decode("utf-8", "replace").strip("\0")


def _member(group: Any, name: str) -> Any:
    """What a group holds under a name by a hard link; None where nothing is."""
    import h5py

    key = name.encode()
    if group is None or key not in group:
        return None
    return h5py.h5o.open(group, key) if group.links.get_info(key).type == h5py.h5l.TYPE_HARD else None


def _group(group: Any, name: str) -> Any:
    import h5py

    found = _member(group, name)
    return found if isinstance(found, h5py.h5g.GroupID) else None


def _texts(group: Any, name: str) -> list[str]:
    """A variable of characters, ``(n, length)``, or of texts of fixed length; empty for any other."""
    import h5py

    found = _member(group, name)
    if not isinstance(found, h5py.h5d.DatasetID):
        return []
    created, kind = found.get_create_plist(), found.get_type()
    if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
        return []
    if not isinstance(kind, h5py.h5t.TypeStringID) or kind.is_variable_str():
        return []
    shape = found.shape
    width = kind.get_size()
    if not shape or len(shape) > 2 or (len(shape) == 2 and width != 1) or shape[0] > MOST_LABELS:
        return []
    if math.prod(shape) * width > LONGEST_TEXT:
        return []
    if created.get_layout() == h5py.h5d.CHUNKED and math.prod(created.get_chunk()) * width > LONGEST_TEXT:
        return []
    values = h5py.Dataset(found)[...]
    rows = values if values.ndim == 1 else [b"".join(row) for row in values.tolist()]
    return [bytes(row).decode("utf-8", "replace").strip("\0") for row in rows]


def _line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return text[:LONGEST_SHOWN] or type(error).__name__


def _limit_memory(more: int) -> None:
    """Let this process take so many bytes beyond what it has now."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open("/proc/self/statm") as file:  # noqa: PTH123 - a plain script
            now = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = now + more if hard == resource.RLIM_INFINITY else min(now + more, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def main() -> None:
    """Describe the folders and files that lines of JSON on standard input name, an answer a line."""
    import h5py  # noqa: F401 - before the limit, which is about the files

    limited = False
    while line := sys.stdin.readline():
        request = json.loads(line)
        limits = {str(name): int(value) for name, value in request["limits"].items()}
        if not limited:
            _limit_memory(limits["memory_bytes"])
            limited = True
        for path in request["paths"]:
            try:
                said = entry(path, limits)
            except MemoryError:
                said = _answer(problems=["is not read: it takes more memory than a catalogue may"])
            print(json.dumps({"path": path, **said}), flush=True)


if __name__ == "__main__":
    main()
