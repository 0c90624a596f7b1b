"""What do a server's numbers depend on beside the kernel, and what does the cheap replay by prefill cost?

    python scripts/gpu/settings.py record OUT [--seconds 400] [--jobs 7] [--only awq_marlin@graphs,…]
    python scripts/gpu/settings.py table OUT/settings.nc

``record`` starts one engine for every kernel × setting of `ENGINES`, several at once, on a model of random
weights (4 layers). Each replays the same 16 references with the same pinned tokens in several ways: alone, by
decode steps; by one prefill of prompt and answer together; first and last of four; and under load, where ten
others of other lengths join and leave. The hash and the sketch of every row are kept. ``table`` says which
engines and which company give equal rows, and how well kernels are told apart by the distance of their rows:
against a replay by decode steps, and against a replay by prefill.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = "synthetic:layers=4,hidden=1024,mlp=3072,heads=8,kv_heads=4,head=128,vocab=32000,seed=0"
QUANTS = {
    "none": ("none", "dense"),
    "awq_marlin": ("awq", "marlin"),
    "awq_machete": ("awq", "machete"),
    "gptq_marlin": ("gptq", "marlin"),
    "gptq_machete": ("gptq", "machete"),
    "fp8": ("fp8", "any"),
}
# setting → options of the backend, further engine arguments, environment
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "eager": ({}, {}, {}),
    "runner_v1": ({"model_runner": "v1"}, {}, {}),
    "prefix_caching": ({}, {"enable_prefix_caching": True}, {}),
    "triton_attention": ({"attention_backend": "TRITON_ATTN"}, {}, {}),
    "batch_invariant": ({}, {}, {"VLLM_BATCH_INVARIANT": "1"}),
    "atomic_add": ({}, {}, {"VLLM_MARLIN_USE_ATOMIC_ADD": "1"}),
    "sync": ({"async_scheduling": False}, {}, {}),
    "graphs": ({"enforce_eager": False}, {}, {}),
    "graphs_only": ({"enforce_eager": False}, {"compilation_config": {"mode": 0}}, {}),
    "compiled_only": ({"enforce_eager": False}, {"compilation_config": {"cudagraph_mode": "NONE"}}, {}),
}
ENGINES = [
    *[(quant, "eager") for quant in QUANTS],
    *[("awq_marlin", setting) for setting in SETTINGS if setting != "eager"],
    *[
        ("none", s)
        for s in ("prefix_caching", "triton_attention", "batch_invariant", "graphs", "graphs_only")
    ],
    *[("awq_machete", s) for s in ("triton_attention", "graphs")],
]
SLOW = ("graphs", "graphs_only", "compiled_only")  # their starts take a minute more, so they begin first
REFERENCES, OUTPUT, LAST = 16, 16, 8
LENGTHS = tuple(60 + 37 * i for i in range(REFERENCES))
COMPANIONS = (
    (500, 16),
    (90, 16),
    (233, 16),
    (40, 5),
    (700, 9),
    (128, 16),
    (64, 3),
    (301, 12),
    (77, 16),
    (150, 7),
)
WAYS = ("alone", "alone again", "by prefill", "first of four", "last of four", "under load")
PHASES = ("prefill", "decode")
COMPONENTS = 64
COLUMNS = {"engine": "u1", "way": "u1", "item": "u1", "position": "i4", "prefill": "u1", "row_hash": "u8"}


def work(quant: str, setting: str, memory: float, out: Path) -> None:
    """Start one engine in this process, run everything, and write its rows."""
    begun = time.time()
    options, more, environment = SETTINGS[setting]
    os.environ.update(environment)
    import torch

    from qdx.backends.vllm import VllmBackend, tap
    from qdx.backends.vllm import backend as module
    from qdx.capture.fingerprints import Sketcher, row_hash
    from qdx.models import resolve
    from qdx.schema import Quant

    form, kernel = QUANTS[quant]
    checkpoint = resolve(os.environ.get("QDX_SHAPE", SHAPE), format=form, progress=False)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    asked = module._request

    def request(*arguments: Any) -> Any:
        found = asked(*arguments)
        return replace(found, engine={**found.engine, **more})

    module._request = request
    backend = VllmBackend(
        checkpoint,
        Quant(quant, form, kernel),
        "float16",
        max_model_len=1024,
        max_num_batched_tokens=4096,
        max_num_seqs=6,
        gpu_memory_utilization=memory,
        kv_cache_memory_bytes=300_000_000,
        chunked_prefill=True,
        **options,
    )
    facts, loaded = backend.observe(), time.time()
    random = np.random.default_rng(0)
    prompts = [random.integers(0, facts.vocab, length).tolist() for length in LENGTHS]
    forced = [random.integers(0, facts.vocab, OUTPUT).tolist() for _ in LENGTHS]
    others = [(random.integers(0, facts.vocab, size).tolist(), count) for size, count in COMPANIONS]
    sketcher = Sketcher(facts.vocab, COMPONENTS, 0)
    rows: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, "sketch") if name != "engine"}
    nothing = np.empty(0, np.int32)

    def call(way: str, item: int) -> None:
        """Run one reference and its company; keep the rows of the reference alone."""
        prompt, tokens = prompts[item], forced[item]
        last = np.arange(len(prompt) - LAST, len(prompt), dtype=np.int32)
        company: list[tuple[list[int], int]] = []
        if way in ("first of four", "last of four"):
            company = others[:3]
        elif way == "under load":
            company = others
        by_prefill = way == "by prefill"
        if by_prefill:  # the answer's rows are the prompt's, but for the last one
            prompt, tokens = prompt + tokens[:-1], tokens[-1:]
            last = np.arange(last[0], len(prompt), dtype=np.int32)
        # what the company says is pinned, too, so that it is the same in every engine
        batch = [(prompt, tokens), *((ids, [0] * count) for ids, count in company)]
        if way == "last of four":
            batch = [*batch[1:], batch[0]]
        elif way == "under load":
            batch = [*batch[1:4], batch[0], *batch[4:]]
        mine = next(i for i, (ids, _) in enumerate(batch) if ids is prompt)
        trace = backend._trace
        parameters = [
            module._parameters(len(out_ids), {tap.ITEM: row}, out_ids if trace else None)
            for row, (_, out_ids) in enumerate(batch)
        ]
        wanted = tap.Wanted(
            [last if row == mine else nothing for row in range(len(batch))],
            None if trace else [out_ids for _, out_ids in batch],
        )
        backend._engine.collective_rpc(tap.open_tap, args=(wanted,))
        backend._engine.generate([{"prompt_token_ids": ids} for ids, _ in batch], parameters, use_tqdm=False)
        for part in backend._engine.collective_rpc(tap.drain)[0]:
            own = np.flatnonzero(part.items == mine)
            if not len(own):
                continue
            logits = part.logits_PV[torch.from_numpy(own).to(part.logits_PV.device)]
            hashed = row_hash(logits).cpu().numpy().view(np.uint64).tolist()
            sketches = sketcher(logits).cpu().numpy()
            for position, value, sketch in zip(part.positions[own].tolist(), hashed, sketches, strict=True):
                rows["way"].append(WAYS.index(way))
                rows["item"].append(item)
                rows["position"].append(position)
                rows["prefill"].append(position <= len(prompts[item]))
                rows["row_hash"].append(value)
                rows["sketch"].append(sketch)

    seconds = {}
    for way in WAYS:
        started = time.time()
        for item in range(REFERENCES):
            call(way, item)
        seconds[way] = round(time.time() - started, 3)
    stated = {
        "name": f"{quant}@{setting}",
        "observed_kernel": facts.observed_kernel,
        "engine_version": facts.engine_version,
        "gpu": facts.gpu,
        "sm_count": facts.sm_count,
        "torch_version": torch.__version__,
        "settings": dict(facts.settings),
        "kernel_environment": facts.attrs["kernel_environment"],
        "compiled_kernels": facts.attrs["compiled_kernels"],
        "seconds_to_load": round(loaded - begun, 1),
        "seconds_of_ways": seconds,
    }
    columns = {
        name: np.array(values, np.float32 if name == "sketch" else np.dtype(COLUMNS[name]))
        for name, values in rows.items()
    }
    partial = out.with_suffix(".part.npz")
    np.savez(partial, stated=np.array(json.dumps(stated)), **columns)
    partial.rename(out)


def record(arguments: argparse.Namespace) -> None:
    """Run the engines, several at once, and write their rows into one file."""
    out, begun = arguments.out, time.time()
    out.mkdir(parents=True, exist_ok=True)
    chosen = arguments.only.split(",") if arguments.only else None
    waiting = [one for one in ENGINES if chosen is None or "@".join(one) in chosen]
    waiting.sort(key=lambda one: one[1] not in SLOW)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    failed: dict[str, str] = {}
    while waiting or running:
        while waiting and len(running) < arguments.jobs and time.time() - begun < arguments.seconds - 45:
            quant, setting = waiting.pop(0)
            path = out / f"{quant}-{setting}.npz"
            command = [sys.executable, __file__, "work", quant, setting, str(arguments.memory), str(path)]
            with path.with_suffix(".log").open("wb") as log:
                process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            running[f"{quant}@{setting}"] = process, time.time()
        for name, (process, since) in list(running.items()):
            code: int | str | None = process.poll()
            if code is None and time.time() - begun > arguments.seconds:
                process.kill()
                process.wait()
                code = "stopped, out of time"
            if code is not None:
                del running[name]
                if code != 0:
                    failed[name] = why(out / f"{name.replace('@', '-')}.log", code)
                said = f": {failed[name]}" if code else ""
                print(f"{time.time() - begun:5.0f} s {name}: {time.time() - since:.0f} s{said}", flush=True)
        if not running and time.time() - begun >= arguments.seconds - 45:
            break
        time.sleep(0.2)
    failed |= {"@".join(one): "not started, out of time" for one in waiting}
    merge(out, failed)
    print("\n".join(table(out / "settings.nc")))


def why(log: Path, code: object) -> str:
    """Return the last error that an engine's log has."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error:" in line]
    return f"exit {code}: {(errors or lines or ['nothing said'])[-1][-400:]}"


def merge(out: Path, failed: dict[str, str]) -> None:
    """Write the rows of all engines into ``settings.nc``."""
    import xarray as xr

    stated: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, "sketch")}
    for path in sorted(one for one in out.glob("*.npz") if not one.name.endswith(".part.npz")):
        with np.load(path) as data:
            for name in columns:
                index = np.full(len(data["row_hash"]), len(stated), np.uint8)
                columns[name].append(index if name == "engine" else data[name])
            stated.append(json.loads(str(data["stated"])))
    if not stated:
        raise SystemExit(f"no engine ended: {json.dumps(failed, indent=1)}")
    data = xr.Dataset(
        {name: ("row", np.concatenate(columns[name]).astype(kind)) for name, kind in COLUMNS.items()},
        attrs={"engines": json.dumps(stated), "failed": json.dumps(failed), "ways": json.dumps(WAYS)},
    )
    sketches = np.concatenate(columns["sketch"]).astype(np.float32)
    sketches[~_measured(data, [one["name"] for one in stated])] = np.nan
    data["sketch"] = (("row", "component"), sketches)
    packed = {"zlib": True, "complevel": 9, "shuffle": True}
    data.to_netcdf(out / "settings.nc", encoding={str(name): packed for name in data.data_vars})


def _measured(data: Any, names: list[str]) -> np.ndarray:
    """Return of which rows the table needs distances: of all alone, and of other ways in eager mode."""
    way, eager = data["way"].values, np.array([name.endswith("@eager") for name in names])
    compared = np.isin(way, [WAYS.index(name) for name in ("alone again", "by prefill", "under load")])
    decode_of_eager = eager[data["engine"].values] & (data["prefill"].values == 0)
    measured: np.ndarray = (way == WAYS.index("alone")) | (compared & decode_of_eager)
    return measured


Rows = dict[tuple[int, int], tuple[int, Any]]  # (reference, position) → hash, sketch


class Engines:
    """The engines of a file and their rows."""

    def __init__(self, path: Path) -> None:
        import xarray as xr

        with xr.open_dataset(path) as data:
            stated = json.loads(data.attrs["engines"])
            self.failed: dict[str, str] = json.loads(data.attrs["failed"])
            columns = {name: data[name].values for name in (*COLUMNS, "sketch")}
        order = ["@".join(one) for one in ENGINES]
        self.stated = {one["name"]: one for one in sorted(stated, key=lambda one: order.index(one["name"]))}
        self._rows: dict[tuple[str, int, int], Rows] = {}
        names = ("engine", "way", "prefill", "item", "position", "row_hash")
        for at, (engine, way, prefill, item, position, value) in enumerate(
            zip(*(columns[name].tolist() for name in names), strict=True)
        ):
            rows = self._rows.setdefault((stated[engine]["name"], way, prefill), {})
            rows[item, position] = value, columns["sketch"][at]

    def rows(self, name: str, way: str, phase: str) -> Rows:
        """Return (hash, sketch) of an engine's rows, by reference and position."""
        return self._rows.get((name, WAYS.index(way), int(phase == "prefill")), {})


def equal(one: Rows, two: Rows) -> str:
    """Return how many rows are bit-equal, of how many."""
    both = one.keys() & two.keys()
    return f"{sum(one[key][0] == two[key][0] for key in both)}/{len(both)}" if both else "–"


def distances(one: Rows, two: Rows) -> np.ndarray:
    """Return the mean distance of the rows of each reference, estimated from their sketches."""
    found: dict[int, list[float]] = {}
    for key in sorted(one.keys() & two.keys()):
        found.setdefault(key[0], []).append(float(np.linalg.norm(one[key][1] - two[key][1])))
    return np.array([np.mean(values) for values in found.values()])


def table(path: Path) -> Iterator[str]:
    """Return the tables, in lines."""
    engines = Engines(path)
    first = next(iter(engines.stated.values()))
    yield (
        f"vLLM {first['engine_version']}, {first['gpu'] or 'CPU'}, {first['sm_count']} SMs, torch "
        f"{first['torch_version']}; {len(engines.stated)} engines, {REFERENCES} references, {OUTPUT} tokens"
    )
    yield from of_settings(engines)
    yield from of_company(engines)
    yield from of_power(engines)
    if engines.failed:
        yield ""
        yield "Not run here:"
        yield from (f"{name:28} {said}" for name, said in engines.failed.items())


def of_settings(engines: Engines) -> Iterator[str]:
    """Say which settings leave the rows of a kernel alone."""
    yield ""
    yield "Rows equal to those of the same kernel in eager mode, alone: prefill, decode; and median distance"
    for name in engines.stated:
        quant, _, setting = name.partition("@")
        base = f"{quant}@eager"
        if setting == "eager" or base not in engines.stated:
            continue
        cells = []
        for phase in PHASES:
            one, two = engines.rows(base, "alone", phase), engines.rows(name, "alone", phase)
            cells.append(f"{equal(one, two):>8} {np.median(distances(one, two)):7.3g}")
        yield f"{name:28} {'   '.join(cells)}"


def of_company(engines: Engines) -> Iterator[str]:
    """Say what moves a reference's rows in an engine: a second run, and who shares the batch."""
    yield ""
    yield "Rows equal to those of the same engine with the reference alone: prefill decode"
    ways = ("alone again", "first of four", "last of four", "under load", "by prefill")
    yield f"{'':28} " + " ".join(f"{way:>17}" for way in (*ways, "first ~ last"))
    for name in engines.stated:
        cells = [
            " ".join(
                equal(engines.rows(name, "alone", phase), engines.rows(name, way, phase)) for phase in PHASES
            )
            for way in ways
        ]
        cells.append(
            " ".join(
                equal(engines.rows(name, "first of four", p), engines.rows(name, "last of four", p))
                for p in PHASES
            )
        )
        yield f"{name:28} " + " ".join(f"{cell:>17}" for cell in cells)


def of_power(engines: Engines) -> Iterator[str]:
    """Say how well the distance tells kernels apart, against a replay by decode steps and by prefill."""
    quants = [name for name in engines.stated if name.endswith("@eager")]
    for way in ("alone again", "by prefill", "under load"):
        yield ""
        yield (
            f"Decode rows of a producer, alone, against a replay {way!r}: l2 a reference, right names of "
            f"{REFERENCES}"
        )
        yield (
            f"{'producer':16} "
            + " ".join(f"{name.partition('@')[0][:12]:>12}" for name in quants)
            + "  nearest"
        )
        right_of_all = 0
        for producer in quants:
            given = engines.rows(producer, "alone", "decode")
            each = np.array([distances(given, engines.rows(v, way, "decode")) for v in quants])
            right = int((each.argmin(0) == quants.index(producer)).sum())
            right_of_all += right
            yield (
                f"{producer.partition('@')[0]:16} "
                + " ".join(f"{value:12.4g}" for value in each.mean(1))
                + f"  {right}/{each.shape[1]}"
            )
        yield f"{'all':16} {right_of_all}/{len(quants) * REFERENCES}"
    yield ""
    yield "Seconds of all references, by decode steps and by one prefill each"
    for name in quants:
        took = engines.stated[name]["seconds_of_ways"]
        yield f"{name:28} {took['alone']:8.2f} {took['by prefill']:8.2f}"


def main() -> None:
    """Run what the command line says."""
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], sys.argv[3], float(sys.argv[4]), Path(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("record", "table"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default="", help="engines such as awq_marlin@graphs, separated by commas")
    parser.add_argument("--jobs", type=int, default=7, help="engines at once")
    parser.add_argument("--memory", type=float, default=0.03, help="share of the GPU for each")
    parser.add_argument("--seconds", type=float, default=400, help="nothing is started that would end later")
    arguments = parser.parse_args()
    if arguments.what == "table":
        print("\n".join(table(arguments.out)))
        return
    record(arguments)


if __name__ == "__main__":
    main()
