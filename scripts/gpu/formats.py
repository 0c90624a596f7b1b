"""Formats that are sold: which run here, by which kernel, which repeat, are they told apart, at what cost?

    python scripts/gpu/formats.py record OUT [--only fp8,nvfp4,moe:fp8] [--seconds 240] [--jobs 6]
    python scripts/gpu/formats.py table OUT/formats.nc

``record`` starts one engine for every format of `FORMATS`, several at once: a dense model (two layers of
Qwen3-8B's sizes) and a mixture of experts (two layers, 32 experts, 8 active, of Qwen3-30B-A3B's sizes),
random weights, bfloat16, eager mode. Each runs four references alone and all four together, tokens pinned,
all of it twice, and keeps the hash and the sketch of every row. Then the layers alone are timed in a captured
graph: the gate and up projection of the dense model, a whole mixture, for 1, 32 and 2,048 rows; engines wait
for each other with that. ``table`` prints everything from OUT/formats.nc. What cannot be started is in the
file, with what the engine said.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {
    "dense": "synthetic:layers=2,hidden=4096,mlp=12288,heads=32,kv_heads=8,head=128,vocab=32000,seed=0",
    "moe": "synthetic:layers=2,hidden=2048,mlp=768,heads=32,kv_heads=4,head=128,vocab=32000,seed=0,"
    "experts=32,active=8",
}
# name → format of the checkpoint, kernel that is asked for, further engine arguments
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "none": ("none", "any", {}),
    "awq_marlin": ("awq", "marlin", {}),
    "awq_machete": ("awq", "machete", {}),
    "gptq_marlin": ("gptq", "marlin", {}),
    "w4a16": ("w4a16", "any", {}),
    "w8a16": ("w8a16", "any", {}),
    "w8a8": ("w8a8", "any", {}),
    "w4a8": ("w4a8", "any", {}),
    "fp8": ("fp8", "any", {}),
    "fp8_block": ("fp8_block", "any", {}),
    "nvfp4": ("nvfp4", "any", {}),
    "mxfp4": ("mxfp4", "any", {}),
    "moe:none": ("none", "any", {}),
    "moe:awq": ("awq", "any", {}),
    "moe:awq_wna16": ("awq", "any", {"quantization": "moe_wna16"}),
    "moe:gptq": ("gptq", "any", {}),
    "moe:fp8": ("fp8", "any", {}),
    "moe:fp8_block": ("fp8_block", "any", {}),
    "moe:w4a16": ("w4a16", "any", {}),
    "moe:w8a8": ("w8a8", "any", {}),
    "moe:nvfp4": ("nvfp4", "any", {}),
    "moe:mxfp4": ("mxfp4", "any", {}),
}
PROMPTS = (60, 255, 300, 700)
OUTPUT, LAST = 16, 8
CALLS: dict[str, list[list[int]]] = {"alone": [[0], [1], [2], [3]], "together": [[0, 1, 2, 3]]}
PHASES = ("prefill", "decode")
TIMED_ROWS = (1, 32, 2048)
COMPONENTS = 64
COLUMNS = {
    "engine": "u1",
    "call": "u1",
    "again": "u1",
    "item": "u1",
    "position": "i4",
    "prefill": "u1",
    "row_hash": "u8",
}


def work(name: str, dtype: str, memory: float, out: Path) -> None:
    """Start one engine in this process, run everything, and write what it gave."""
    begun = time.time()
    import torch

    from qdx.backends.vllm import VllmBackend, tap
    from qdx.backends.vllm import backend as module
    from qdx.backends.vllm.kernel_choice import Request
    from qdx.capture.fingerprints import Sketcher, row_hash
    from qdx.models import resolve
    from qdx.schema import Quant

    os.environ.setdefault("VLLM_DEEP_GEMM_WARMUP", "skip")  # it compiles for every number of rows
    form, kernel, more = FORMATS[name]
    shape = os.environ.get("QDX_SHAPE") or SHAPES["moe" if name.startswith("moe:") else "dense"]
    if more:
        module._request = lambda *_: Request(more)  # type: ignore[assignment]
    checkpoint = resolve(shape, format=form, progress=False)  # drawn on the GPU where it is new
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    backend = VllmBackend(
        checkpoint,
        Quant(name, form, kernel),
        dtype,
        max_model_len=1024,
        max_num_batched_tokens=2048,
        max_num_seqs=4,
        gpu_memory_utilization=memory,
        kv_cache_memory_bytes=200_000_000,
        chunked_prefill=True,
    )
    facts, loaded = backend.observe(), time.time()
    random = np.random.default_rng(0)
    prompts = [random.integers(0, facts.vocab, length).tolist() for length in PROMPTS]
    forced = [random.integers(0, facts.vocab, OUTPUT).tolist() for _ in PROMPTS]
    sketcher = Sketcher(facts.vocab, COMPONENTS, 0)
    rows: dict[str, list[Any]] = {column: [] for column in (*COLUMNS, "sketch") if column != "engine"}
    for again in range(2):
        for call, batches in CALLS.items():
            for items in batches:
                given = [forced[item] for item in items]
                last = [np.arange(len(prompts[i]) - LAST, len(prompts[i]), dtype=np.int32) for i in items]
                parameters = [
                    module._parameters(OUTPUT, {tap.ITEM: row}, given[row] if backend._trace else None)
                    for row in range(len(items))
                ]
                wanted = tap.Wanted(last, None if backend._trace else given)
                backend._engine.collective_rpc(tap.open_tap, args=(wanted,))
                backend._engine.generate(
                    [{"prompt_token_ids": prompts[item]} for item in items], parameters, use_tqdm=False
                )
                for part in backend._engine.collective_rpc(tap.drain)[0]:
                    hashed = row_hash(part.logits_PV).cpu().numpy().view(np.uint64).tolist()
                    sketches = sketcher(part.logits_PV).cpu().numpy()
                    for row, position, value, sketch in zip(
                        part.items.tolist(), part.positions.tolist(), hashed, sketches, strict=True
                    ):
                        rows["call"].append(list(CALLS).index(call))
                        rows["again"].append(again)
                        rows["item"].append(items[row])
                        rows["position"].append(position)
                        rows["prefill"].append(position <= len(prompts[items[row]]))
                        rows["row_hash"].append(value)
                        rows["sketch"].append(sketch)
    ran = time.time()
    stated: dict[str, Any] = {
        "name": name,
        "format": form,
        "shape": shape,
        "dtype": facts.dtype,
        "observed_kernel": facts.observed_kernel,
        "kernel_class": dict(facts.kernel_class),
        "quantized": sorted(facts.quantized),
        "engine_version": facts.engine_version,
        "gpu": facts.gpu,
        "sm_count": facts.sm_count,
        "torch_version": torch.__version__,
        "settings": dict(facts.settings),
        "seconds_to_load": round(loaded - begun, 1),
        "seconds_to_run": round(ran - loaded, 1),
    }
    if torch.cuda.is_available():
        with Path(out.parent / "timing.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                stated["microseconds"] = backend._engine.collective_rpc(timed)[0]
            except Exception as error:  # the rows are kept whatever the timing does
                stated["timing_error"] = f"{type(error).__name__}: {error}"[:500]
    save(out, stated, rows)


def save(out: Path, stated: dict[str, Any], rows: dict[str, list[Any]]) -> None:
    """Write one engine's facts and rows; the file is whole when it has its name."""
    columns = {
        name: np.array(values, np.float32 if name == "sketch" else np.dtype(COLUMNS[name]))
        for name, values in rows.items()
    }
    partial = out.with_suffix(".part.npz")
    np.savez(partial, stated=np.array(json.dumps(stated)), **columns)
    partial.rename(out)


def timed(worker: Any) -> dict[str, float]:
    """Return the microseconds of one call of a layer, by rows; runs inside the engine's worker."""
    import torch
    from vllm.forward_context import set_forward_context

    model = worker.model_runner.get_model()
    names = dict(model.named_modules())
    mixture = next((m for n, m in names.items() if n.endswith(".mlp") and hasattr(m, "experts")), None)
    layer = mixture or next(m for n, m in names.items() if n.endswith("mlp.gate_up_proj"))
    width = worker.vllm_config.model_config.get_hidden_size()
    dtype = worker.vllm_config.model_config.dtype
    found = {}
    with torch.inference_mode(), set_forward_context(None, worker.vllm_config):
        for rows in TIMED_ROWS:
            given = torch.randn(rows, width, device="cuda", dtype=dtype)
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    layer(given)
            torch.cuda.current_stream().wait_stream(side)
            graph, calls = torch.cuda.CUDAGraph(), 10
            with torch.cuda.graph(graph):
                for _ in range(calls):
                    layer(given)
            spans = []
            for _ in range(30):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                torch.cuda.synchronize()
                spans.append(begin.elapsed_time(end) * 1000 / calls)
            found[str(rows)] = round(min(spans), 2)  # others may use the card meanwhile
            del graph
    return found


def record(arguments: argparse.Namespace) -> None:
    """Run the engines, several at once, and write their rows into one file."""
    out, begun = arguments.out, time.time()
    out.mkdir(parents=True, exist_ok=True)
    waiting = [name for name in FORMATS if not arguments.only or name in arguments.only.split(",")]
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    failed: dict[str, str] = {}
    while waiting or running:
        while waiting and len(running) < arguments.jobs and time.time() - begun < arguments.seconds - 45:
            name = waiting.pop(0)
            path = out / f"{name.replace(':', '_')}.npz"
            command = [
                sys.executable,
                __file__,
                "work",
                name,
                arguments.dtype,
                str(arguments.memory),
                str(path),
            ]
            with path.with_suffix(".log").open("wb") as log:
                running[name] = (subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT), time.time())
        for name, (process, since) in list(running.items()):
            code: int | str | None = process.poll()
            if code is None and time.time() - begun > arguments.seconds:
                process.kill()
                process.wait()
                code = "stopped, out of time"
            if code is not None:
                del running[name]
                if code != 0:
                    failed[name] = why(out / f"{name.replace(':', '_')}.log", code)
                said = f": {failed[name]}" if code else ""
                print(f"{time.time() - begun:5.0f} s {name}: {time.time() - since:.0f} s{said}", flush=True)
        if not running and time.time() - begun >= arguments.seconds - 45:
            break
        time.sleep(0.2)
    failed |= dict.fromkeys(waiting, "not started, out of time")
    merge(out, failed)
    print("\n".join(table(out / "formats.nc")))


def why(log: Path, code: object) -> str:
    """Return the last error that an engine's log has."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error:" in line]
    return f"exit {code}: {(errors or lines or ['nothing said'])[-1][-400:]}"


def merge(out: Path, failed: dict[str, str]) -> None:
    """Write the rows of all engines into ``formats.nc``."""
    import xarray as xr

    stated: list[dict[str, Any]] = []
    columns: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, "sketch")}
    for path in sorted(out.glob("*.npz")):
        if path.name.endswith(".part.npz"):
            continue
        with np.load(path) as data:
            for name in columns:
                index = np.full(len(data["row_hash"]), len(stated), np.uint8)
                columns[name].append(index if name == "engine" else data[name])
            stated.append(json.loads(str(data["stated"])))
    if not stated:
        raise SystemExit(f"no engine ended: {json.dumps(failed, indent=1)}")
    data = xr.Dataset(
        {name: ("row", np.concatenate(columns[name]).astype(kind)) for name, kind in COLUMNS.items()},
        attrs={"engines": json.dumps(stated), "failed": json.dumps(failed), "calls": json.dumps(list(CALLS))},
    )
    data["sketch"] = (("row", "component"), np.concatenate(columns["sketch"]).astype(np.float32))
    packed = {"zlib": True, "complevel": 9, "shuffle": True}
    data.to_netcdf(out / "formats.nc", encoding={str(name): packed for name in data.data_vars})


class Engines:
    """The engines of a file and their rows."""

    def __init__(self, path: Path) -> None:
        import xarray as xr

        with xr.open_dataset(path) as data:
            stated = json.loads(data.attrs["engines"])
            self.failed: dict[str, str] = json.loads(data.attrs["failed"])
            columns = {name: data[name].values for name in (*COLUMNS, "sketch")}
        order = list(FORMATS)
        self.stated = {one["name"]: one for one in sorted(stated, key=lambda one: order.index(one["name"]))}
        self._rows: dict[tuple[str, int, int, int], dict[tuple[int, int], tuple[int, Any]]] = {}
        names = ("engine", "call", "again", "prefill", "item", "position", "row_hash")
        for at, (engine, call, again, prefill, item, position, value) in enumerate(
            zip(*(columns[name].tolist() for name in names), strict=True)
        ):
            rows = self._rows.setdefault((stated[engine]["name"], call, again, prefill), {})
            rows[item, position] = value, columns["sketch"][at]

    def rows(self, name: str, phase: str, again: int = 0, call: int = 0) -> dict[tuple[int, int], Any]:
        """Return (hash, sketch) of an engine's rows, by reference and position."""
        return self._rows.get((name, call, again, int(phase == "prefill")), {})

    def equal(self, one: dict[tuple[int, int], Any], two: dict[tuple[int, int], Any]) -> str:
        """Return how many rows are bit-equal, of how many."""
        both = one.keys() & two.keys()
        return f"{sum(one[key][0] == two[key][0] for key in both)}/{len(both)}"

    def distance(self, one: str, two: str, phase: str) -> float:
        """Return the median distance of two engines' rows, estimated from their sketches (l2 of logits)."""
        a, b = self.rows(one, phase), self.rows(two, phase)
        return float(np.median([np.linalg.norm(a[key][1] - b[key][1]) for key in a.keys() & b.keys()]))

    def noise(self, name: str, phase: str) -> float:
        """Return the median distance of an engine's rows from those of its second time."""
        a, b = self.rows(name, phase, 0), self.rows(name, phase, 1)
        return float(np.median([np.linalg.norm(a[key][1] - b[key][1]) for key in a.keys() & b.keys()]))


def table(path: Path) -> Iterator[str]:
    """Return the tables, in lines."""
    engines = Engines(path)
    first = next(iter(engines.stated.values()))
    yield (
        f"vLLM {first['engine_version']}, {first['gpu'] or 'CPU'}, {first['sm_count']} SMs, torch "
        f"{first['torch_version']}, {first['dtype']}, eager; {len(engines.stated)} engines"
    )
    yield ""
    yield "Rows equal in a second run (alone: prefill, decode; together: prefill, decode), and the time of"
    yield f"one layer in microseconds, as a multiple of dense, for {', '.join(map(str, TIMED_ROWS))} rows"
    head = ("kernel of the quantized layers", "alone", "together")
    yield f"{'config':15} {head[0]:58} {head[1]:>15} {head[2]:>15}   time / dense"
    for name, one in engines.stated.items():
        cells = [
            " ".join(
                engines.equal(engines.rows(name, phase, 0, call), engines.rows(name, phase, 1, call))
                for phase in PHASES
            )
            for call in range(len(CALLS))
        ]
        yield f"{name:15} {kernel(one):58} {cells[0]:>15} {cells[1]:>15}   {times(engines, name)}"
    for kind in ("dense", "moe"):
        names = [name for name in engines.stated if name.startswith("moe:") == (kind == "moe")]
        if len(names) > 1:
            yield ""
            yield f"{kind}: median l2 of logits (from sketches), prefill above, decode below the diagonal;"
            yield "on the diagonal the distance of a second run's decode rows"
            yield f"{'':15} " + " ".join(f"{name.removeprefix('moe:')[:10]:>10}" for name in names)
            for i, one in enumerate(names):
                cells = [
                    engines.noise(one, "decode")
                    if i == j
                    else engines.distance(one, two, "prefill" if i < j else "decode")
                    for j, two in enumerate(names)
                ]
                yield f"{one:15} " + " ".join(f"{value:10.3g}" for value in cells)
    if engines.failed:
        yield ""
        yield "Not run here:"
        yield from (f"{name:15} {said}" for name, said in engines.failed.items())


def kernel(one: dict[str, Any]) -> str:
    """Return the kernels of an engine's quantized layers, as the engine calls their classes."""
    layers = one["quantized"]
    if not layers:
        own = one["kernel_class"].get("experts", "").rpartition("/")[2]
        return f"dense + {own} (experts)" if own else "dense"
    classes = {one["kernel_class"][layer].rpartition("/")[2]: layer == "experts" for layer in sorted(layers)}
    names = (f"{name} (experts)" if experts else name for name, experts in classes.items())
    return " + ".join(names)


def times(engines: Engines, name: str) -> str:
    """Return how long a layer takes, as multiples of the dense one's."""
    own = engines.stated[name].get("microseconds")
    dense = engines.stated.get("moe:none" if name.startswith("moe:") else "none", {}).get("microseconds")
    if not own or not dense:
        return engines.stated[name].get("timing_error", "–")[:40]
    return " ".join(f"{own[rows] / dense[rows]:.2f}" for rows in dense) + f" (dense: {dense})" * (
        own is dense
    )


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
    parser.add_argument("--only", default="", help="names of formats, separated by commas")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--jobs", type=int, default=6, help="engines at once")
    parser.add_argument("--memory", type=float, default=0.05, help="share of the GPU for each")
    parser.add_argument("--seconds", type=float, default=240, help="nothing is started that would end later")
    arguments = parser.parse_args()
    if arguments.what == "table":
        print("\n".join(table(arguments.out)))
        return
    record(arguments)


if __name__ == "__main__":
    main()
