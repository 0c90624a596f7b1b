"""How much time is qdx's own, beside that of vLLM? ``python scripts/gpu/own_time.py OUT [key=value …]``

For every config a bare script is timed that does nothing but ``vllm.LLM(...)`` and the ``generate`` calls of
a job, with the same arguments, environment and tokens and no row kept; then a sweep of the same configs. Own
time of a job is its process's wall time minus the bare script's. Before the first job and after the last are
the sweep's start to its first job's start and its last job's end to its end.

    own_time.py OUT [--quants awq_marlin,awq_machete] [--tokens 256] [--new 32] [--references 4] [--repeats 3]
                [--model synthetic:…] [--seconds 500] [key=value …]

The first job warms up (files in memory, Triton's kernels compiled), so of several configs the first one has
no bare script. Further ``key=value`` go to the sweep and, as far as they are the backend's, to the bare
scripts, too. OUT gets own_time.json, from which ``own_time.py --table OUT/own_time.json`` prints the table
again. It runs on a CPU, too (``--dtype bfloat16`` and ``--quants none`` with a small model).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QWEN3_8B = "synthetic:layers=36,hidden=4096,mlp=12288,heads=32,kv_heads=8,head=128,vocab=151936,seed=0"
# What a job does, without qdx: the engine, its calls, and nothing else.
BARE = """
import json, sys
task = json.load(open(sys.argv[1]))
from vllm import LLM, SamplingParams
llm = LLM(**task["engine"])
for batch, forced in task["calls"]:
    prompts = [{"prompt_token_ids": ids} for ids in batch]
    parameters = [
        SamplingParams(
            temperature=0.0, max_tokens=len(ids), ignore_eos=True, detokenize=False,
            **({"trace_decode_token_ids": ids} if task["traces"] and ids[0] >= 0 else {}),
        )
        for ids in forced
    ]
    llm.generate(prompts, parameters, use_tqdm=False)
"""


WHOLE = "its file is whole"
READY = """
import sys, time
from qdx.models import hash_weights, resolve
path = resolve(sys.argv[1], format=sys.argv[2], progress=False).path
time.sleep(2.1)  # a file that was just written is not remembered
hash_weights(path)
"""


def plan(checkpoint: str, quant: str, dtype: str, options: dict[str, Any], into: Path) -> None:
    """Write the arguments and variables with which qdx would start the engine; in a process of its own."""
    before = dict(os.environ)
    import vllm

    from qdx.backends.vllm import backend, kernel_choice
    from qdx.backends.vllm.start import start
    from qdx.models import resolve
    from qdx.schema import Quant, VllmOptions

    form, kernel = QUANTS[quant]
    vllm.LLM = dict  # type: ignore[misc,assignment]  # keeps what it is called with
    settled = VllmOptions(**options)
    version = kernel_choice.installed_version()
    request = backend._request(Quant(quant, form, kernel), version, settled)
    engine = start(version, resolve(checkpoint, format=form), request, settled, dtype=dtype, seed=0)
    changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
    into.write_text(json.dumps({"engine": engine, "environment": changed}))


QUANTS = {
    "none": ("none", "dense"),
    "awq_marlin": ("awq", "marlin"),
    "awq_machete": ("awq", "machete"),
    "gptq": ("gptq", "exllama"),
    "gptq_marlin": ("gptq", "marlin"),
    "gptq_machete": ("gptq", "machete"),
}


def calls(prompts: list[list[int]], continuation: list[list[int]], new: int, repeats: int) -> list[Any]:
    """Return the calls of a job's engine: generation and replay in each repeat, and the replay of the first.

    A forced token of −1 stands for a free one.
    """
    free = [-1] * new
    each = [
        call
        for ids, forced in zip(prompts, continuation, strict=True)
        for call in ([[ids], [free]], [[ids], [forced]])
    ]
    return each * repeats + [[[prompts[0]], [continuation[0]]]]


def bare(task: dict[str, Any], folder: Path, limit: float) -> float | None:
    """Run the bare script once; return the seconds of its process, None where they are over the limit."""
    script, request = folder / "bare.py", folder / "task.json"
    script.write_text(BARE)
    request.write_text(json.dumps(task))
    started = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, str(script), str(request)],
            env={**os.environ, **task["environment"]},
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        return None
    took = time.monotonic() - started
    if done.returncode:
        raise SystemExit(f"the bare script failed: {done.stderr[-2000:]}")
    return took


def children(of: int) -> dict[int, str]:
    """Return the command lines of a process's children that serve requests, by process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if int(parent) == of and "qdx.sweep.job" in command:
            found[int(entry.name)] = command
    return found


def sweep(arguments: list[str], folder: Path, quants: list[str], limit: float) -> dict[str, Any]:
    """Run a sweep, and note when its child processes begin and end and when it says what."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "qdx", "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    said: list[tuple[float, str]] = []

    def listen() -> None:
        for line in process.stdout or ():
            said.append((round(time.monotonic() - started, 2), line.rstrip()))

    listener = threading.Thread(target=listen)
    listener.start()
    whole_files: set[str] = set()
    born: dict[int, float] = {}
    gone: dict[int, float] = {}
    while process.poll() is None:
        now = time.monotonic() - started
        alive = children(process.pid)
        for one in alive:
            born.setdefault(one, now)
        for quant in quants:
            if quant not in whole_files and (folder / quant / "run.nc").exists():
                whole_files.add(quant)
                said.append((round(now, 2), f"{quant}: {WHOLE}"))
        for one in born:
            if one not in alive:
                gone.setdefault(one, now)
        if now > limit:
            process.terminate()
        time.sleep(0.02)
    whole = time.monotonic() - started
    listener.join()
    served = [(round(born[one], 2), round(gone.get(one, whole), 2)) for one in born]
    unfinished = process.returncode != 0
    return {"served": served, "whole_s": round(whole, 2), "said": said, "unfinished": unfinished}


def table(found: dict[str, Any]) -> Iterator[str]:
    """Return the printed lines."""
    yield found["head"]
    said, whole = found["sweep"]["said"], found["sweep"]["whole_s"]
    prepared, *jobs = found["sweep"]["served"]
    for (begun, ended), quant in zip(jobs, found["quants"], strict=False):
        wall, times = ended - begun, found["bare_s"].get(quant, [])
        own = "not measured: it warms up"
        if times:
            own = (
                f"bare script {', '.join(f'{s:.1f}' for s in times)} s   own time {wall - min(times):5.1f} s"
            )
        yield f"{quant:13} job {wall:6.1f} s   {own}   ({parts(said, quant, begun, ended)})"
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(jobs)]
    if jobs:
        yield (
            f"before the first job {jobs[0][0]:.1f} s (of which preparing {prepared[1] - prepared[0]:.1f}), "
            f"between jobs {', '.join(f'{gap:.1f}' for gap in gaps) or '-'} s, "
            f"after the last {whole - jobs[-1][1]:.1f} s, whole sweep {whole:.1f} s"
        )
    yield from (f"  {at:6.1f} s {line}" for at, line in said if found.get("unfinished"))


def parts(said: list[tuple[float, str]], label: str, begun: float, ended: float) -> str:
    """Say how long a job took until each line that it printed."""
    lines = [(at, line) for at, line in said if line.startswith(f"{label}: ") and begun <= at <= ended + 0.1]
    marks = [
        ("until loading", "loading the model"),
        ("loading", "running"),
        ("running", "replaying its own"),
        ("finishing its file", WHOLE),
    ]
    at = begun
    found = []
    for name, mark in marks:
        reached = next((when for when, line in lines if line.startswith(f"{label}: {mark}")), None)
        if reached is None:
            continue
        found.append(f"{name} {reached - at:.1f}")
        at = reached
    return ", ".join([*found, f"ending the process {ended - at:.1f}"])


def main() -> None:
    """Measure and print, or print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("overrides", nargs="*", help="key=value for the sweep")
    parser.add_argument("--table", type=Path, help="print what an earlier run measured")
    parser.add_argument("--model", default=QWEN3_8B)
    parser.add_argument("--quants", default="awq_marlin,awq_machete")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1, help="times that each bare script runs")
    parser.add_argument("--seconds", type=float, default=500, help="nothing may take longer than this in all")
    parser.add_argument("--plan", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_intermixed_args()
    if chosen.table:
        print("\n".join(table(json.loads(chosen.table.read_text()))))
        return
    if chosen.plan:
        checkpoint, quant, options, into = chosen.plan
        plan(checkpoint, quant, chosen.dtype, json.loads(options), Path(into))
        return
    measure(chosen, time.monotonic() + chosen.seconds)


def measure(chosen: argparse.Namespace, deadline: float) -> None:
    """Run the sweep and the bare scripts; what is known is written after each of them."""
    quants = chosen.quants.split(",")
    own = [part.removeprefix("backend.").split("=", 1) for part in chosen.overrides if part[:8] == "backend."]
    options = {
        name: json.loads(value) if value[:1].isdigit() or value in ("true", "false", "null") else value
        for name, value in own
    }
    for form in sorted({QUANTS[quant][0] for quant in quants}):
        subprocess.run([sys.executable, "-c", READY, chosen.model, form], check=True)
    found: dict[str, Any] = {
        "head": f"{chosen.model}, {chosen.references} x ({chosen.tokens} + {chosen.new}) tokens, "
        f"{chosen.repeats} repeats, one by one; weights hashed before",
        "quants": quants,
        "bare_s": {},
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        swept = [
            "model=synthetic",
            f"model.checkpoint.none='{chosen.model}'",
            f"model.dtype={chosen.dtype}",
            "backend=vllm",
            f"quant={chosen.quants}",
            "prompts=pydoc",
            f"prompts.references={chosen.references}",
            f"prompts.snippet_tokens={chosen.tokens}",
            f"generate.tokens={chosen.new}",
            f"repeats={chosen.repeats}",
            f"hydra.sweep.dir={folder / 'sweep'}",
            *chosen.overrides,
        ]
        found["sweep"] = sweep(swept, folder / "sweep", quants, deadline - time.monotonic())
        found["unfinished"] = found["sweep"].pop("unfinished")
        save(chosen.out, found)
        for quant in quants[1:] or quants:
            task = planned(chosen, quant, options, folder)
            for _ in range(chosen.rounds):
                left = deadline - time.monotonic()
                if left > 0 and (took := bare(task, folder, left)) is not None:
                    found["bare_s"].setdefault(quant, []).append(took)
                    save(chosen.out, found)
    print("\n".join(table(found)))


def save(out: Path, found: dict[str, Any]) -> None:
    """Write what is known."""
    (out / "own_time.json").write_text(json.dumps(found, indent=1) + "\n")


def planned(chosen: argparse.Namespace, quant: str, options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the bare script of a config is to do."""
    import numpy as np

    file = folder / f"{quant}.json"
    command = [sys.executable, __file__, "--dtype", chosen.dtype]
    subprocess.run([*command, "--plan", chosen.model, quant, json.dumps(options), str(file)], check=True)
    task: dict[str, Any] = json.loads(file.read_text())
    drawn = np.random.default_rng(0)
    # About a sweep's prompts: a template's few tokens come to its snippets.
    prompts = drawn.integers(0, 256, (chosen.references, chosen.tokens + 40)).tolist()
    forced = drawn.integers(0, 256, (chosen.references, chosen.new)).tolist()
    task["calls"] = calls(prompts, forced, chosen.new, chosen.repeats)
    task["traces"] = bool(task["engine"].get("enable_trace_replay"))
    return task


if __name__ == "__main__":
    main()
