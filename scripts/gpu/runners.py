"""Are rows equal between vLLM's two model runners, and what else moves them?

    python scripts/gpu/runners.py record OUT [--engines core,async,settings] [--quants …] [--seconds 540]
    python scripts/gpu/runners.py table OUT/rows.nc
    python scripts/gpu/runners.py starts rows.nc …

``record`` takes about eight minutes on one GPU. It starts one engine for every kernel, model runner and mode
(eager, graphs), several at once, and runs the same references through each: alone, four together, the four in
another order, one beside a long one, ten that join and leave four places, and two whose prefill is cut into
chunks. In each of these scenarios tokens
are free (greedy), pinned by qdx, and, with the second runner, replayed by the engine's own trace replay; all
of it twice. ``async`` are engines without asynchronous scheduling, ``settings`` such with
``VLLM_BATCH_INVARIANT=1`` and ``VLLM_MARLIN_USE_ATOMIC_ADD=1``. OUT/rows.nc holds the hash of every row,
with the tokens before it and the requests of its step. ``table`` recomputes everything that is printed from
it, and ``starts`` compares the starts of engines of several files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = "synthetic:layers=4,hidden=1024,mlp=3072,heads=8,kv_heads=4,head=128,vocab=32000,seed=0"
QUANTS = {
    "none": ("none", "dense"),
    "awq_marlin": ("awq", "marlin"),
    "awq_machete": ("awq", "machete"),
    "gptq": ("gptq", "exllama"),
    "gptq_marlin": ("gptq", "marlin"),
    "gptq_machete": ("gptq", "machete"),
}
PROMPTS = (37, 60, 128, 255, 256, 300, 511, 700, 90, 33)  # tokens of each reference
OUTPUTS = (24, 24, 24, 24, 24, 24, 24, 24, 24, 24)
LEAVING = (24, 9, 17, 5, 24, 12, 7, 24, 16, 20)  # of the references that join and leave
# Scenario: calls of the engine, each the references of one batch, and how many tokens each gets.
SCENARIOS: dict[str, tuple[list[list[int]], tuple[int, ...]]] = {
    "alone": ([[item] for item in range(8)], OUTPUTS),
    "four together": ([[0, 1, 2, 3]], OUTPUTS),
    "another order": ([[3, 2, 1, 0]], OUTPUTS),
    "beside a long one": ([[0, 7]], OUTPUTS),
    "joins and leaves": ([list(range(10))], LEAVING),
    "chunked prefill": ([[7, 6]], OUTPUTS),
}
WAYS = ("free", "pinned", "trace")
PHASES = ("prefill", "decode")
SEQUENCES, BUDGET = 4, 1024
LAST = 16  # prompt rows of each reference, before the one that predicts the first output
COLUMNS = {
    "engine": "u1",
    "scenario": "u1",
    "way": "u1",
    "again": "u1",
    "item": "u1",
    "position": "i4",
    "prefill": "u1",
    "before": "u4",  # CRC-32 of the output tokens before the row's position
    "step": "u4",  # CRC-32 of the step's requests in their order: reference, consumed, scheduled
    "requests": "u4",  # the same, sorted
    "row_hash": "u8",
}


def engines(groups: list[str], quants: list[str], modes: list[str]) -> list[dict[str, Any]]:
    """Return what is to be started, in the order in which it is."""
    found: list[dict[str, Any]] = []

    def add(quant: str, runner: str, eager: bool, **more: Any) -> None:
        if quant in quants and ("eager" if eager else "graphs") in modes:
            found.append({"quant": quant, "runner": runner, "eager": eager, **more})

    if "core" in groups:
        for eager in (False, True):
            for quant in QUANTS:
                for runner in ("v1", "v2"):
                    add(quant, runner, eager)
    if "settings" in groups:
        for quant in ("awq_marlin", "gptq_marlin"):
            add(quant, "v2", True, environment={"VLLM_MARLIN_USE_ATOMIC_ADD": "1"})
        for quant in ("none", "awq_marlin", "gptq_marlin"):
            for runner in ("v1", "v2"):
                add(quant, runner, True, environment={"VLLM_BATCH_INVARIANT": "1"})
    if "async" in groups:
        for quant in ("awq_marlin", "gptq_machete"):
            for eager in (True, False):
                for runner in ("v1", "v2"):
                    add(quant, runner, eager, async_scheduling=False)
    return found


def references(vocab: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompts, and the tokens that are pinned after each."""
    random = np.random.default_rng(0)
    prompts = [random.integers(0, vocab, length).tolist() for length in PROMPTS]
    return prompts, [random.integers(0, vocab, length).tolist() for length in OUTPUTS]


class Log:
    """Notes the requests of every step that a tap sees, beside the rows that it keeps."""

    def __init__(self, tap: Any) -> None:
        self.of_rows: list[tuple[int, int]] = []
        self._last = (0, 0)
        sampled, prompt = tap._sampled, tap._prompt

        def note(step: Any) -> None:
            made = list(zip(step.items.tolist(), step.done.tolist(), step.scheduled.tolist(), strict=True))
            self._last = (crc(made), crc(sorted(made)))

        def on_sampled(step: Any, *rest: Any) -> Any:
            note(step)
            result = sampled(step, *rest)
            self.of_rows += [self._last] * (len(tap._seen) - len(self.of_rows))
            return result

        def on_prompt(step: Any, hidden: Any) -> None:
            prompt(step, hidden)
            self.of_rows += [self._last] * (len(tap._seen) - len(self.of_rows))

        tap._sampled, tap._prompt = on_sampled, on_prompt

    def clear(self) -> None:
        """Forget the steps of the call before."""
        self.of_rows.clear()


def crc(values: list[Any]) -> int:
    """Return the CRC-32 of some integers."""
    return zlib.crc32(np.array(values, np.int64).tobytes())


def work(request: dict[str, Any], out: Path) -> None:
    """Start one engine in this process, run everything, and write its rows."""
    begun = time.time()
    os.environ.update(request.get("environment", {}))
    import torch

    from qdx.backends import require
    from qdx.backends.vllm import VllmBackend, kernels, tap
    from qdx.backends.vllm import backend as module
    from qdx.capture.fingerprints import row_hash
    from qdx.models import resolve
    from qdx.schema import Quant

    form, kernel = QUANTS[request["quant"]]
    quant = Quant(request["quant"], form, kernel)
    engine = VllmBackend(
        resolve(request["shape"], format=form, progress=False),
        quant,
        request["dtype"],
        max_model_len=1024,
        max_num_batched_tokens=BUDGET,
        max_num_seqs=SEQUENCES,
        gpu_memory_utilization=request["memory"],
        kv_cache_memory_bytes=200_000_000,
        enforce_eager=request["eager"],
        chunked_prefill=True,
        async_scheduling=request.get("async_scheduling"),
        model_runner=request["runner"],
    )
    facts = engine.observe()
    require(quant, facts)
    loaded = time.time()
    log: list[Log] = []
    engine._engine.collective_rpc(lambda worker: log.append(Log(worker.qdx_tap)))
    prompts, forced = references(facts.vocab)
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS if name != "engine"}

    def call(scenario: str, way: str, again: int, items: list[int], counts: list[int]) -> None:
        given = [forced[item][:count] for item, count in zip(items, counts, strict=True)]
        wanted = tap.Wanted(
            [np.arange(len(prompts[item]) - LAST, len(prompts[item]), dtype=np.int32) for item in items],
            given if way == "pinned" else None,
        )
        parameters = [
            module._parameters(count, {tap.ITEM: row}, given[row] if way == "trace" else None)
            for row, count in enumerate(counts)
        ]
        log[0].clear()
        engine._engine.collective_rpc(tap.open_tap, args=(wanted,))
        outputs = engine._engine.generate(
            [{"prompt_token_ids": prompts[item]} for item in items], parameters, use_tqdm=False
        )
        seen = engine._engine.collective_rpc(tap.drain)[0]
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        if way != "free" and tokens != given:
            raise RuntimeError(f"{scenario}, {way}: the engine did not give the tokens back")
        hashes = [
            row_hash(part.logits_PV.to("cuda" if torch.cuda.is_available() else "cpu")) for part in seen
        ]
        for part, hashed, (step, together) in zip(seen, hashes, log[0].of_rows, strict=True):
            values = hashed.cpu().numpy().view(np.uint64).tolist()
            for row, position, value in zip(
                part.items.tolist(), part.positions.tolist(), values, strict=True
            ):
                length = len(prompts[items[row]])
                rows["scenario"].append(list(SCENARIOS).index(scenario))
                rows["way"].append(WAYS.index(way))
                rows["again"].append(again)
                rows["item"].append(items[row])
                rows["position"].append(position)
                rows["prefill"].append(position <= length)
                rows["before"].append(crc(tokens[row][: max(position - length, 0)]))
                rows["step"].append(step)
                rows["requests"].append(together)
                rows["row_hash"].append(value)

    for again in range(2):
        for scenario, (calls, counts) in SCENARIOS.items():
            for way in WAYS if engine._trace else WAYS[:2]:
                for items in calls:
                    call(scenario, way, again, items, [counts[item] for item in items])
    from qdx.dataset.provenance import stamp

    stated = {
        **{key: value for key, value in request.items() if key not in ("shape", "memory")},
        "observed_kernel": facts.observed_kernel,
        "engine_version": facts.engine_version,
        "gpu": facts.gpu,
        "sm_count": facts.sm_count,
        "settings": dict(facts.settings),
        "kernel_environment": facts.attrs["kernel_environment"],
        "compiled_kernels": engine._engine.collective_rpc(kernels.compiled_kernels)[0],
        "seconds_to_load": round(loaded - begun, 1),
        "seconds": round(time.time() - begun, 1),
        **{name: str(stamp().get(name, "")) for name in ("torch_version", "driver_version", "code_sha256")},
    }
    kinds = {name: np.dtype(kind) for name, kind in COLUMNS.items() if name != "engine"}
    columns = {name: np.array(values, kinds[name]) for name, values in rows.items()}
    partial = out.with_suffix(".part.npz")
    np.savez(partial, stated=np.array(json.dumps(stated)), **columns)
    partial.rename(out)


def record(arguments: argparse.Namespace) -> None:
    """Run the engines, several at once, and write their rows into one file."""
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    if not arguments.merge:
        _prepare(arguments)
        _run_all(arguments, out)
    merge(out)
    print("\n".join(table(out / "rows.nc")))


def _prepare(arguments: argparse.Namespace) -> None:
    from qdx.models import resolve

    for form in sorted({QUANTS[quant][0] for quant in arguments.quants.split(",")}):
        resolve(arguments.shape, format=form, progress=False)


def _run_all(arguments: argparse.Namespace, out: Path) -> None:
    begun = time.time()
    waiting = [
        {**one, "shape": arguments.shape, "dtype": arguments.dtype, "memory": arguments.memory}
        for one in engines(
            arguments.engines.split(","), arguments.quants.split(","), arguments.modes.split(",")
        )
    ]
    running: dict[Path, tuple[subprocess.Popen[bytes], float]] = {}
    while waiting or running:
        while waiting and len(running) < arguments.jobs and time.time() - begun < arguments.seconds - 100:
            request = waiting.pop(0)
            path = out / f"{_name(request)}.npz"
            if path.exists():
                continue
            log = path.with_suffix(".log").open("wb")
            command = [sys.executable, __file__, "work", json.dumps(request), str(path)]
            running[path] = (subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), time.time())
        for path, (process, since) in list(running.items()):
            code = process.poll()
            if code is None and time.time() - begun > arguments.seconds:
                process.kill()
                process.wait()
                code = "stopped, out of time"
            if code is not None:
                del running[path]
                said = path.with_suffix(".log").read_text(errors="replace").strip().splitlines()
                why = "" if code == 0 else f" {code}: {' | '.join(said[-3:])[-500:]}"
                print(
                    f"{time.time() - begun:5.0f} s {path.stem}: {time.time() - since:.0f} s{why}", flush=True
                )
        if not running and time.time() - begun >= arguments.seconds - 100:
            break
        time.sleep(0.5)
    for request in waiting:
        print(f"not started, out of time: {_name(request)}")


def _name(one: dict[str, Any]) -> str:
    parts = [one["quant"], one["runner"], "eager" if one["eager"] else "graphs"]
    if one.get("async_scheduling") is False:
        parts.append("sync")
    parts += [name.removeprefix("VLLM_").lower() for name in one.get("environment", {})]
    return "-".join(parts)


def merge(out: Path) -> None:
    """Write the rows of all engines into ``rows.nc``."""
    import xarray as xr

    files = sorted(path for path in out.glob("*.npz") if not path.name.endswith(".part.npz"))
    stated, columns = [], {name: [] for name in COLUMNS}  # type: ignore[var-annotated]
    for index, path in enumerate(files):
        with np.load(path) as data:
            stated.append({"name": path.stem, **json.loads(str(data["stated"]))})
            for name in COLUMNS:
                values = np.full(len(data["row_hash"]), index) if name == "engine" else data[name]
                columns[name].append(values.astype(COLUMNS[name]))
    data = xr.Dataset(
        {name: ("row", np.concatenate(values)) for name, values in columns.items()},
        attrs={
            "engines": json.dumps(stated),
            "scenarios": json.dumps(list(SCENARIOS)),
            "ways": json.dumps(WAYS),
            "shape": SHAPE,
        },
    )
    encoding = {name: {"zlib": True, "complevel": 9, "shuffle": True} for name in COLUMNS}
    data.to_netcdf(out / "rows.nc", encoding=encoding)


class Rows:
    """The rows of a file, by engine."""

    def __init__(self, path: Path) -> None:
        import xarray as xr

        with xr.open_dataset(path) as data:
            self.engines = {one["name"]: one for one in json.loads(data.attrs["engines"])}
            self.scenarios: list[str] = json.loads(data.attrs["scenarios"])
            columns = {name: data[name].values for name in COLUMNS}
        self._rows = {}
        for index, name in enumerate(self.engines):
            mine = columns["engine"] == index
            self._rows[name] = {key: values[mine] for key, values in columns.items()}

    def compared(
        self,
        one: tuple[str, str, str, int],
        two: tuple[str, str, str, int],
        phase: str,
    ) -> np.ndarray | None:
        """Compare the rows of two engines, scenarios, ways or repeats.

        Parameters
        ----------
        one, two : tuple
            Engine, scenario, way, which time (0 or 1).
        phase : str
            ``prefill`` or ``decode``.

        Returns
        -------
        array of shape (rows, 3), or None
            Of the rows that come after the same tokens: equal, the step had the same requests in the same
            order, it had the same requests. None where one side is not in the file.
        """
        sides = [self.chosen(*side, phase) for side in (one, two)]
        if any(side is None for side in sides):
            return None
        a, b = sides
        found = [
            (a[key][0] == b[key][0], a[key][1] == b[key][1], a[key][2] == b[key][2])
            for key in a.keys() & b.keys()
        ]
        return np.array(found, bool).reshape(-1, 3)

    def chosen(self, engine: str, scenario: str, way: str, again: int, phase: str) -> Any:
        """Return (hash, step, requests) of the rows of one side, by reference, position and tokens before."""
        rows = self._rows.get(engine)
        if rows is None:
            return None
        mine = (rows["scenario"] == self.scenarios.index(scenario)) & (rows["way"] == WAYS.index(way))
        mine &= (rows["again"] == again) & (rows["prefill"] == (phase == "prefill"))
        if not mine.any():
            return None
        names = ("item", "position", "before", "row_hash", "step", "requests")
        item, position, before, *values = (rows[name][mine].tolist() for name in names)
        return dict(zip(zip(item, position, before, strict=True), zip(*values, strict=True), strict=True))


def _count(found: np.ndarray | None) -> str:
    if found is None:
        return "–"
    return f"{int(found[:, 0].sum())}/{len(found)}"


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    kept = [part for part in parts if part is not None]
    return np.concatenate(kept) if kept else None


def _grid(title: str, head: list[str], lines: list[list[str]]) -> Iterator[str]:
    yield ""
    yield title
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    for line in [head, *lines]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()


def table(path: Path) -> Iterator[str]:
    """Return every table, in lines."""
    rows = Rows(path)
    first = next(iter(rows.engines.values()))
    names = list(rows.scenarios)
    core = [(quant, mode) for mode in ("eager", "graphs") for quant in QUANTS]
    yield (
        f"vLLM {first['engine_version']}, {first['gpu'] or 'CPU'}, {first['sm_count']} SMs, "
        f"torch {first['torch_version']}; {len(rows.engines)} engines"
    )
    yield "Cells are rows equal/rows compared, prefill then decode."
    yield from _engines(rows)
    for way in ("free", "pinned"):
        pairs = [
            ([quant, mode], f"{quant}-v1-{mode}", f"{quant}-v2-{mode}", way, way) for quant, mode in core
        ]
        yield from _pairs(rows, f"Runner 1 ~ runner 2, tokens {way}", ["config", "mode"], pairs)
    lines = [[engine, *(_itself(rows, engine, name) for name in names)] for engine in rows.engines]
    yield from _grid("The same engine again (all ways)", ["engine", *names], _shown(lines, 1))
    yield from _pairs(
        rows,
        "Runner 2: pinned by qdx ~ the engine's trace replay",
        ["config", "mode"],
        [([quant, mode], *[f"{quant}-v2-{mode}"] * 2, "pinned", "trace") for quant, mode in core],
    )
    yield from _pairs(
        rows,
        "Runner 2: eager ~ graphs, tokens pinned",
        ["config"],
        [([quant], f"{quant}-v2-eager", f"{quant}-v2-graphs", "pinned", "pinned") for quant in QUANTS],
    )
    asynchronous = [
        (
            [quant, mode, runner],
            f"{quant}-{runner}-{mode}",
            f"{quant}-{runner}-{mode}-sync",
            "pinned",
            "pinned",
        )
        for quant, mode in core
        for runner in ("v1", "v2")
    ]
    title = "Asynchronous ~ synchronous scheduling, tokens pinned"
    yield from _pairs(rows, title, ["config", "mode", "runner"], asynchronous)
    yield from _company(rows, names)
    yield from _settings(rows)
    yield from _why(rows, names, core)


def _pairs(rows: Rows, title: str, head: list[str], pairs: list[tuple[Any, ...]]) -> Iterator[str]:
    """Compare two engines, or two ways of one, in every scenario; `pairs` begin with a line's labels."""
    lines = []
    for labels, one, two, way, other in pairs:
        cells = [
            " ".join(
                _count(rows.compared((one, name, way, 0), (two, name, other, 0), phase)) for phase in PHASES
            )
            for name in rows.scenarios
        ]
        lines.append([*labels, *cells])
    yield from _grid(title, [*head, *rows.scenarios], _shown(lines, len(head)))


def _company(rows: Rows, names: list[str]) -> Iterator[str]:
    """Compare a reference alone with the same one in company, and a batch with the same in another order."""
    others = [("four together", "another order")] + [("alone", name) for name in names if name != "alone"]
    lines = []
    for engine in rows.engines:
        cells = []
        for one, two in others:
            sides = ((engine, one, "pinned", 0), (engine, two, "pinned", 0))
            cells.append(" ".join(_count(rows.compared(*sides, phase)) for phase in PHASES))
        lines.append([engine, *cells])
    head = ["engine", *(f"{one} ~ {two}" for one, two in others)]
    yield from _grid("Who shares the batch, and in which order, tokens pinned", head, _shown(lines, 1))


def _shown(lines: list[list[str]], labels: int = 2) -> list[list[str]]:
    """Leave out the lines that have no figure."""
    return [line for line in lines if any("/" in cell for cell in line[labels:])]


def _itself(rows: Rows, engine: str, scenario: str) -> str:
    return " ".join(
        _count(
            _joined(
                [rows.compared((engine, scenario, way, 0), (engine, scenario, way, 1), p) for way in WAYS]
            )
        )
        for p in PHASES
    )


def _engines(rows: Rows) -> Iterator[str]:
    lines = [
        [
            name,
            one["observed_kernel"],
            one["settings"]["model_runner"],
            "eager" if one["settings"]["enforce_eager"] == "True" else "graphs",
            "async" if one["settings"]["async_scheduling"] == "True" else "sync",
            one["settings"]["attention_backend"],
            f"{one['seconds_to_load']:.0f}",
            f"{one['seconds']:.0f}",
        ]
        for name, one in rows.engines.items()
    ]
    head = ["engine", "kernel", "runner", "mode", "scheduling", "attention", "s to load", "s in all"]
    yield from _grid("Engines, as observed", head, lines)


def _settings(rows: Rows) -> Iterator[str]:
    pairs: list[tuple[Any, ...]] = []
    for engine in rows.engines:
        for setting in ("batch_invariant", "marlin_use_atomic_add"):
            if engine.endswith(f"-{setting}"):
                pairs.append(
                    ([engine, "without it"], engine.removesuffix(f"-{setting}"), engine, "pinned", "pinned")
                )
                if "-v2-" in engine:
                    first = engine.replace("-v2-", "-v1-")
                    pairs.append(([engine, "runner 1 with it"], first, engine, "pinned", "pinned"))
    yield from _pairs(rows, "A setting ~ without it, tokens pinned", ["engine", "against"], pairs)


def _why(rows: Rows, names: list[str], core: list[tuple[str, str]]) -> Iterator[str]:
    """Say of the rows that differ between the runners what was in their steps."""
    lines = []
    for quant, mode in core:
        one, two = f"{quant}-v1-{mode}", f"{quant}-v2-{mode}"
        for name in names:
            found = _joined(
                [rows.compared((one, name, "pinned", 0), (two, name, "pinned", 0), p) for p in PHASES]
            )
            if found is None:
                continue
            cells = []
            for same in (found[:, 1], found[:, 2] & ~found[:, 1], ~found[:, 2]):
                cells.append(f"{int((found[:, 0] & same).sum())}/{int(same.sum())}" if same.any() else "–")
            lines.append([quant, mode, name, *cells])
    head = [
        "config",
        "mode",
        "scenario",
        "same requests, same order",
        "same requests, other order",
        "other requests",
    ]
    yield from _grid("Runner 1 ~ runner 2 by what was in the step, tokens pinned, both phases", head, lines)


def starts(paths: list[Path]) -> Iterator[str]:
    """Return which starts of one config gave the same rows, and with graphs what compiling chose in each.

    Compared are the rows of references alone, tokens pinned: whoever shares the batch has no part in them.
    """
    found: dict[str, list[tuple[str, list[str], Any]]] = {}
    for path in paths:
        rows = Rows(path)
        for engine, one in rows.engines.items():
            if one.get("async_scheduling") is None and not one.get("environment"):
                own = [rows.chosen(engine, "alone", "pinned", 0, phase) for phase in PHASES]
                start = f"{path.stem}:{one['runner']}"
                config = f"{one['quant']} {'eager' if one['eager'] else 'graphs'}"
                found.setdefault(config, []).append((start, one.get("compiled_kernels") or [], own))
    yield "Starts: in brackets those whose rows of references alone are all equal (file:runner)"
    for quant, engines_ in sorted(found.items()):
        groups: list[list[tuple[str, list[str], Any]]] = []
        for one in engines_:
            same = next((group for group in groups if _hashes(group[0]) == _hashes(one)), None)
            groups.append([one]) if same is None else same.append(one)
        shown = " ".join(f"[{' '.join(name for name, _, _ in group)}]" for group in groups)
        yield f"{quant}: {len(engines_)} starts, {len(groups)} kinds of rows: {shown}"
    lines = []
    for quant, engines_ in found.items():
        known = [one for one in engines_ if one[1]]
        for alike in (True, False):
            pairs = [(a, b) for i, a in enumerate(known) for b in known[i + 1 :] if (a[1] == b[1]) == alike]
            equal = sum(_hashes(a) == _hashes(b) for a, b in pairs)
            if pairs:
                said = "the same" if alike else "other ones"
                lines.append([quant, said, f"{equal} of {len(pairs)}"])
    head = ["config", "choices", "pairs with all rows equal"]
    yield from _grid("Starts whose compiled kernels are known, two by two", head, lines)
    for quant, engines_ in found.items():
        for choices in sorted({tuple(one[1]) for one in engines_ if one[1]}):
            who = " ".join(name for name, chosen, _ in engines_ if tuple(chosen) == choices)
            yield f"{quant} ({who}): {'; '.join(choices)}"


def _hashes(start: tuple[str, list[str], Any]) -> list[dict[Any, int]]:
    return [{key: value[0] for key, value in phase.items()} for phase in start[2]]


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("out")
    recording.add_argument("--engines", default="core,settings,async")
    recording.add_argument("--quants", default=",".join(QUANTS))
    recording.add_argument("--modes", default="eager,graphs")
    recording.add_argument("--shape", default=SHAPE)
    recording.add_argument("--dtype", default="float16")
    recording.add_argument("--memory", type=float, default=0.05)
    recording.add_argument("--jobs", type=int, default=7)
    recording.add_argument("--seconds", type=float, default=540)
    recording.add_argument("--merge", action="store_true", help="only join what is there")
    printing = commands.add_parser("table")
    printing.add_argument("rows")
    comparing = commands.add_parser("starts")
    comparing.add_argument("rows", nargs="+", type=Path)
    working = commands.add_parser("work")
    working.add_argument("request")
    working.add_argument("out")
    arguments = parser.parse_args()
    if arguments.command == "work":
        work(json.loads(arguments.request), Path(arguments.out))
    elif arguments.command == "starts":
        print("\n".join(starts(arguments.rows)))
    elif arguments.command == "table":
        print("\n".join(table(Path(arguments.rows))))
    else:
        record(arguments)


if __name__ == "__main__":
    main()
