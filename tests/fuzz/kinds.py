"""What is fuzzed: real files, damaged in their bytes or their structure, and options made up from scratch."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from hypothesis import strategies as st

from qdx.commit import commit
from qdx.dataset import merge
from qdx.plugins import conf_dir
from qdx.prompts import references_sha256
from qdx.prompts.pdf import HANDBOOK
from tests import tiny
from tests.helpers import small_references, write_run, write_sweep
from tests.legacy import files as legacy_files
from tests.prompts.conftest import paged, pdf_bytes, prose

Draw = Callable[[Any], Any]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(-5, 5) | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(-5, 5), max_size=2),
)


# What a report costs is mostly its metrics, its bootstrap and its drawings.
QUICK = {
    "metrics": {"topk_overlap": {"_target_": "qdx.metrics.topk_overlap", "k": 3}},
    "analyses": {"effects": {"_target_": "qdx.analysis.effects"}},
    "report": {"formats": ["txt"], "figures": False},
    "arguments": ["-m", "quant=awq,gptq"],
}


@dataclass(frozen=True)
class Bases:
    """Whole inputs to damage."""

    folder: Path
    pdfs: list[bytes]
    runs: list[Path]
    sweep: Path
    transcripts: list[Path]
    models: dict[str, Path]
    legacy: list[dict[str, Any]]

    @classmethod
    def build(cls, folder: Path) -> Bases:
        """Write them below `folder`."""
        pages = paged(prose(300))
        pdfs = [pdf_bytes(pages), pdf_bytes(pages, password="", picture=True), HANDBOOK.read_bytes()]
        runs = [folder / name / "run.nc" for name in ("full", "portable", "topk")]
        for path, options in zip(runs, ({}, {"portable": True}, {"mode": "topk"}), strict=True):
            write_run(path, "gptq", references=small_references(2), repeats=2, **options)
        sweep = write_sweep(folder / "sweep", ["awq", "gptq"], references=small_references(2), repeats=2)
        merge(sweep, sweep / "sweep.nc")
        plan = json.loads((sweep / "sweep.json").read_text())
        (sweep / "sweep.json").write_text(json.dumps(plan | QUICK))
        stated = references_sha256(small_references(2))  # type: ignore[arg-type]
        attrs = {"tokenizer_sha256": "t" * 64, "references_sha256": stated, "config": "", "seed": 0}
        options = {"references": small_references(2), "repeats": 2, "attrs": attrs}
        options |= {"settings": {"kv_cache_dtype": "auto", "threads": "1"}}
        producers = write_sweep(folder / "producers", ["awq", "gptq"], **options)
        merge(producers, producers / "sweep.nc")
        transcripts = [producers / "sweep.nc", commit(producers)]
        legacy = [legacy_files.results(references=2), *(make() for make in legacy_files.FORMS.values())]
        return cls(folder, pdfs, runs, sweep, transcripts, tiny.build(folder / "models"), legacy)


def damaged(draw: Draw, data: bytes) -> bytes:
    """Cut, flip, overwrite, insert or repeat bytes."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        how = draw(st.sampled_from(["cut", "flip", "overwrite", "insert", "drop", "zero"]))
        if how == "cut":
            del found[at:]
        elif how == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "overwrite":
            new = draw(st.binary(min_size=1, max_size=16))
            found[at : at + len(new)] = new
        elif how == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif how == "drop":
            del found[at : at + draw(st.integers(1, 4096))]
        else:
            length = min(draw(st.integers(1, 4096)), len(found) - at)
            found[at : at + length] = bytes(length)
    return bytes(found)


def changed(draw: Draw, value: Any) -> Any:
    """Replace, remove or rename something somewhere in a JSON value."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        holder, key = None, None
        inner = value
        while isinstance(inner, dict | list) and inner and (holder is None or draw(st.integers(0, 4))):
            holder = inner
            key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            inner = holder[key]
        if holder is None:
            return draw(JUNK)
        how = draw(st.sampled_from(["replace", "remove", "rename"]))
        if how == "replace":
            holder[key] = draw(JUNK)
        else:
            taken = holder.pop(key)
            if how == "rename" and isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = taken
    return value


def written(draw: Draw, value: Any) -> bytes:
    """A JSON value's text, changed in structure or in bytes."""
    if draw(st.booleans()):
        value = changed(draw, value)
        return json.dumps(value).encode("utf-8", "surrogatepass")
    return damaged(draw, json.dumps(value).encode())


def restructured(draw: Draw, source: Path, target: Path) -> None:
    """Copy a NetCDF file with groups, variables or attributes lost, of another type, size or name."""
    with netCDF4.Dataset(source) as old, netCDF4.Dataset(target, "w") as new:
        names = sorted(_names(old))
        chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))
        _copy(draw, old, new, "", set(chosen))


def _names(group: Any, path: str = "") -> Iterator[str]:
    """Groups, variables and attributes by path."""
    yield from (f"{path}@{name}" for name in group.ncattrs())
    for name, variable in group.variables.items():
        yield f"{path}/{name}"
        yield from (f"{path}/{name}@{attribute}" for attribute in variable.ncattrs())
    for name, inner in group.groups.items():
        yield f"{path}/{name}"
        yield from _names(inner, f"{path}/{name}")


def _copy(draw: Draw, old: Any, new: Any, path: str, chosen: set[str]) -> None:
    _attributes(draw, old, new, path, chosen)
    for name, dimension in old.dimensions.items():
        new.createDimension(name, len(dimension))
    for name, variable in old.variables.items():
        variable.set_auto_maskandscale(False)
        variable.set_auto_chartostring(False)
        own = f"{path}/{name}"
        dims, values = variable.dimensions, variable[...]
        if own in chosen:
            how = draw(st.sampled_from(["lose", "retype", "scalar", "other size", "noise", "fill"]))
            if how == "lose":
                continue
            if how == "retype":
                kind = draw(st.sampled_from(["i1", "u8", "f4", "f8", "S1", "str"]))
                values = (
                    np.full(values.shape, 7).astype(kind)
                    if kind != "str"
                    else np.full(values.shape, "x", object)
                )
            elif how == "scalar":
                dims, values = (
                    (),
                    np.asarray(values).reshape(-1)[:1].reshape(()) if values.size else np.int8(0),
                )
            elif how == "other size":
                new.createDimension(extra := f"extra_{name}", 3)
                dims, values = (extra,), np.resize(values, 3) if values.size else np.zeros(3, "i1")
            elif values.dtype.kind in "iuf":
                seed = draw(st.integers(0, 2**16))
                noise = np.random.default_rng(seed).integers(0, 256, values.nbytes, np.uint8)
                values = (
                    noise.view(values.dtype).reshape(values.shape)
                    if how == "noise"
                    else np.full_like(values, 2**31 - 1 if values.dtype.itemsize > 2 else 1)
                )
        kind = str if values.dtype.kind == "O" else values.dtype
        made = new.createVariable(name, kind, dims)
        made.set_auto_maskandscale(False)
        made.set_auto_chartostring(False)
        _attributes(draw, variable, made, own, chosen)
        made[...] = values
    for name, inner in old.groups.items():
        if f"{path}/{name}" in chosen and draw(st.booleans()):
            if draw(st.booleans()):
                new.createGroup(name)  # empty
            continue
        _copy(draw, inner, new.createGroup(name), f"{path}/{name}", chosen)


def _attributes(draw: Draw, old: Any, new: Any, path: str, chosen: set[str]) -> None:
    for name in old.ncattrs():
        value = old.getncattr(name)
        if name == "_FillValue":
            continue
        if f"{path}@{name}" in chosen:
            values = [None, 7, -1.5, "", "text", "\x1b[31m\n", np.array([1, 2, 3]), "9" * 30, ["a", "b"]]
            value = draw(st.sampled_from(values))
            if value is None:
                continue
        new.setncattr(name, value)


def pdf(draw: Draw, bases: Bases, folder: Path) -> Any:
    data = damaged(draw, draw(st.sampled_from(bases.pdfs))) if draw(st.integers(0, 9)) else draw(st.binary())
    (folder / "input.pdf").write_bytes(data)


COUNTS = st.integers(-1, 40)


def text(draw: Draw, bases: Bases, folder: Path) -> Any:
    raw = draw(
        st.one_of(st.binary(max_size=300), st.text(max_size=300).map(_utf8), st.just(prose(200).encode()))
    )
    (folder / "input.txt").write_bytes(raw)
    names = {
        "references": COUNTS,
        "snippet_tokens": COUNTS,
        "continuation_tokens": COUNTS,
        "instruction": st.text(max_size=20),
    }
    return draw(st.fixed_dictionaries(names))


def _utf8(found: str) -> bytes:
    return found.encode("utf-8", "surrogatepass")


def inline(draw: Draw, bases: Bases, folder: Path) -> Any:
    words = st.text(max_size=40)
    return {
        "texts": draw(st.lists(words, max_size=4) | words),
        "continuation": draw(st.none() | words),
        "continuation_tokens": draw(COUNTS),
        "instruction": draw(words),
    }


KEYS = """
repeats batch_size seed label swept repeat_scope generate.tokens hydra.sweep.dir capture.k capture.mode
capture.prefill_positions capture.components model.dtype model.checkpoint.awq quant.kernel quant.format
prompts.path prompts.references prompts.texts metric.l2 metric.topk_overlap.k analysis.pairs.level
backend.threads backend._target_ report.formats report.figures hydra.sweeper.params hydra.mode
dataset.portable hydra/launcher hydra/sweeper experiment generate capture defaults
""".split()  # noqa: SIM905
VALUES = """
awq gptq none awq_marlin vllm transformers pdf inline text topk full float16 l2 kl [l2] [l2,kl] [] null true 1
0 -1 1,2 1.5 1e400 {a:1} range(1,3) glob(*) choice(1,2) ${seed} ${nothing} ${oc.env:HOME} ${ ' '' ??? [1,[2]]
""".split()  # noqa: SIM905


def _keys() -> list[str]:
    groups = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
    return [*groups, *KEYS]


def overrides(draw: Draw, bases: Bases, folder: Path) -> Any:
    key = st.sampled_from(_keys()) | st.text(max_size=12) | st.sampled_from(_keys()).map(lambda k: k[:-1])
    value = st.sampled_from(VALUES) | st.text(max_size=12) | st.integers(-3, 5).map(str)
    one = st.one_of(
        st.builds(lambda p, k, v: f"{p}{k}={v}", st.sampled_from(["", "", "", "+", "++", "~"]), key, value),
        st.builds(lambda p, k: f"{p}{k}", st.sampled_from(["", "~", "+"]), key),
        st.text(max_size=15),
    )
    good = st.sampled_from(
        ["quant=awq,gptq", "repeats=1", "metric=[l2]", "prompts=text", "batch_size=2", "seed=1"]
    )
    return draw(st.lists(one | good, max_size=4))


def command_line(draw: Draw, bases: Bases, folder: Path) -> Any:
    given = overrides(draw, bases, folder)
    return [text for text in given if not text.startswith("-") and "\0" not in text]  # no flags, no NUL


def run_file(draw: Draw, bases: Bases, folder: Path) -> Any:
    _hurt(draw, draw(st.sampled_from(bases.runs)), folder / "run.nc")


def _hurt(draw: Draw, source: Path, target: Path) -> None:
    if draw(st.booleans()):
        restructured(draw, source, target)
    else:
        target.write_bytes(damaged(draw, source.read_bytes()))


def sweep_file(draw: Draw, bases: Bases, folder: Path) -> Any:
    _hurt(draw, bases.sweep / "sweep.nc", folder / "sweep.nc")


def transcripts(draw: Draw, bases: Bases, folder: Path) -> Any:
    """What a stranger sends: a sweep's file or commitments."""
    _hurt(draw, draw(st.sampled_from(bases.transcripts)), folder / "received.nc")


def sweep_folder(draw: Draw, bases: Bases, folder: Path) -> Any:
    """A sweep with its list of labels, a status, its merged file or one run broken."""
    target = folder / "sweep"
    shutil.copytree(bases.sweep, target)
    if draw(st.booleans()):
        (target / "sweep.nc").unlink()
    what = draw(st.sampled_from(["sweep.json", "status.json", "sweep.nc", "run.nc"]))
    if what == "sweep.json":
        plan = json.loads((target / what).read_text())
        (target / what).write_bytes(written(draw, plan))
    elif what == "status.json":
        (target / "awq" / what).write_bytes(
            written(draw, {"status": "failed", "error": "e", "traceback": ""})
        )
    else:
        path = target / what if what == "sweep.nc" else target / "gptq" / what
        source = bases.sweep / path.relative_to(target)
        path.unlink(missing_ok=True)
        _hurt(draw, source, path)


def report(draw: Draw, bases: Bases, folder: Path) -> Any:
    """A sweep with one run broken, now and then with all metrics, analyses and pages."""
    target = folder / "sweep"
    shutil.copytree(bases.sweep, target)
    if not draw(st.integers(0, 4)):
        (target / "sweep.json").write_text(json.dumps({"labels": ["awq", "gptq"]}))
    (target / "gptq" / "run.nc").unlink()
    _hurt(draw, bases.sweep / "gptq" / "run.nc", target / "gptq" / "run.nc")


def legacy(draw: Draw, bases: Bases, folder: Path) -> Any:
    (folder / "input.json").write_bytes(written(draw, draw(st.sampled_from(bases.legacy))))


def checkpoint(draw: Draw, bases: Bases, folder: Path) -> Any:
    form = draw(st.sampled_from(sorted(bases.models)))
    target = folder / "model"
    shutil.copytree(bases.models[form], target)
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors"}}
    name = draw(
        st.sampled_from(
            [
                *sorted(path.name for path in target.iterdir()),
                "model.safetensors.index.json",
                "qdx-provenance.json",
            ]
        )
    )
    path = target / name
    if name.endswith(".json"):
        own = json.loads(path.read_text()) if path.exists() else index
        path.write_bytes(written(draw, own))
    else:
        data = path.read_bytes()
        head = 8 + int.from_bytes(data[:8], "little")
        # The header says where everything lies; it is a small part of the file.
        path.write_bytes(
            damaged(draw, data[:head]) + data[head:] if draw(st.booleans()) else damaged(draw, data)
        )
    return {"format": form}


MAKERS: dict[str, Callable[[Draw, Bases, Path], Any]] = {
    "pdf": pdf,
    "text": text,
    "inline": inline,
    "overrides": overrides,
    "command line": command_line,
    "run.nc": run_file,
    "run.nc rows": run_file,
    "sweep.nc": sweep_file,
    "transcripts": transcripts,
    "sweep folder": sweep_folder,
    "report": report,
    "legacy": legacy,
    "checkpoint": checkpoint,
    "model": checkpoint,
}
