"""What capturing costs: plain generation, the hook of qdx's vLLM backend, and vLLM's own logprobs.

    python benchmarks/capture.py [MODEL] [--quant awq_marlin] [--tokens 8067] [--new 100] [--references 4]

Every engine is a process of its own (``--engines``), so that one command separates what could make generation
slow:

- ``backend``: as `qdx.backends.vllm` starts it (eager mode, vLLM's choice of scheduling)
- ``processor``: the same with a Python ``LogitsProcessor`` that does nothing, which is how tokens used to be
  pinned
- ``sync``: without asynchronous scheduling
- ``graphs``: with compiled and captured graphs

In an engine every way takes its turn in each round, with the references one at a time (batch 1) and all
together (``--batches`` names others). ``plain`` is before qdx has wrapped anything, ``closed`` with a wrapped
model that keeps nothing, ``drop`` with a hook that does its bookkeeping and keeps no row. ``engine`` is the
time of the engine's calls; ``drain`` is what follows them: hash, sketch, top-k and the rest, and writing the
file. Positions are the default ones: the last 64 prompt rows, the first output and every decode row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qdx.backends.vllm import VllmBackend, tap
from qdx.capture import CaptureSettings, Recorder
from qdx.dataset.layout import CONFIG_COORDS
from qdx.models import resolve
from qdx.prompts import Reference
from qdx.schema import Quant

QUANTS = {
    "none": Quant("none", "none", "dense"),
    "awq": Quant("awq", "awq", "awq_gemm"),
    "awq_marlin": Quant("awq_marlin", "awq", "marlin"),
    "awq_machete": Quant("awq_machete", "awq", "machete"),
    "gptq": Quant("gptq", "gptq", "exllama"),
    "gptq_marlin": Quant("gptq_marlin", "gptq", "marlin"),
    "gptq_machete": Quant("gptq_machete", "gptq", "machete"),
}
QWEN3_8B = "synthetic:layers=36,hidden=4096,mlp=12288,heads=32,kv_heads=8,head=128,vocab=151936,seed=0"
ENGINES: dict[str, dict[str, Any]] = {
    "backend": {},
    "processor": {},
    "sync": {"async_scheduling": False},
    "graphs": {"enforce_eager": False},
}
SLOW = ("logprobs=-1",)  # measured once, in the engine as the backend starts it


def now() -> float:
    """Return the time after everything on the GPU has ended."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def reference(index: int, tokens: int, new: int, vocab: int) -> Reference:
    """Make a prompt of random tokens."""
    numbers = np.random.default_rng(index)
    ids = numbers.integers(0, vocab, tokens + new).astype(np.int32)
    text = "random tokens"
    return Reference(f"ref_{index}", ids[:tokens], 0, tokens, 0, ids[tokens:], text, text, "", 0, text)


@contextmanager
def idle_processor() -> Iterator[None]:
    """Start engines with a logits processor that does nothing."""
    import vllm
    from vllm.v1.sample.logits_processor import LogitsProcessor

    class Idle(LogitsProcessor):
        def __init__(self, *_: Any) -> None: ...
        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None: ...
        def apply(self, logits: torch.Tensor) -> torch.Tensor:
            return logits

    plain = vllm.LLM
    vllm.LLM = lambda **arguments: plain(**arguments, logits_processors=[Idle])
    try:
        yield
    finally:
        vllm.LLM = plain


class Bench:
    """One engine and the ways to run it."""

    def __init__(self, arguments: argparse.Namespace, engine: str) -> None:
        from vllm import SamplingParams

        self._parameters, self._new = SamplingParams, arguments.new
        quant = QUANTS[arguments.quant]
        checkpoint = resolve(arguments.model, format=quant.format)
        config = json.loads((checkpoint.path / "config.json").read_text())
        self.layers = config["num_hidden_layers"]
        self.references = [
            reference(i, arguments.tokens, arguments.new, config["vocab_size"])
            for i in range(arguments.references)
        ]
        self.backend = VllmBackend(
            checkpoint,
            quant,
            arguments.dtype,
            max_model_len=arguments.tokens + arguments.new + 8,
            max_num_batched_tokens=max(16384, arguments.references * arguments.tokens),
            gpu_memory_utilization=arguments.gpu_memory_utilization,
            kv_cache_memory_bytes=arguments.kv_cache_memory_bytes,
            model_runner=arguments.model_runner,
            **ENGINES[engine],
        )
        self.facts = self.backend.observe()
        self._llm = self.backend._engine

    def generate(self, batch: int, *, logprobs: int | None = None, wanted: str = "") -> tuple[float, float]:
        """Generate without a recorder; return the seconds."""
        started = now()
        for first in range(0, len(self.references), batch):
            prompts = [one.token_ids.tolist() for one in self.references[first : first + batch]]
            if wanted:
                none = [np.empty(0, np.int32)] * len(prompts)
                self._llm.collective_rpc(tap.open_tap, args=(tap.Wanted(none, rows=False),))
            parameters = [
                self._parameters(
                    temperature=0.0,
                    max_tokens=self._new,
                    ignore_eos=True,
                    detokenize=False,
                    logprobs=logprobs,
                    extra_args={tap.ITEM: item},
                )
                for item in range(len(prompts))
            ]
            self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False)
            if wanted:
                self._llm.collective_rpc(tap.drain)
        return now() - started, 0.0

    @contextmanager
    def unwrapped(self) -> Iterator[None]:
        """Give the engine its own methods back for a while."""
        self._llm.collective_rpc(lambda worker: worker.qdx_tap.unwrap())
        try:
            yield
        finally:
            self._llm.collective_rpc(lambda worker: worker.qdx_tap.wrap())

    def plain(self, batch: int) -> tuple[float, float]:
        """Generate as if qdx were not there."""
        with self.unwrapped():
            return self.generate(batch)

    def capture(self, batch: int, mode: str, folder: Path) -> tuple[float, float]:
        """Record every reference's generation; return the seconds of the engine and of what follows it."""
        coords: dict[str, Any] = {
            name: {"i4": 0, "bool": False}.get(variable.dtype, "x")
            for name, variable in CONFIG_COORDS.items()
        }
        engine = 0.0
        run = self.backend._run

        def timed(*arguments: Any, **keywords: Any) -> Any:
            nonlocal engine
            started = now()
            result = run(*arguments, **keywords)
            engine += now() - started
            return result

        recorder = Recorder(
            folder / "run.nc",
            references=self.references,
            repeats=1,
            output_tokens=self._new,
            vocab=self.facts.vocab,
            dtype=getattr(torch, self.facts.dtype),
            capture=CaptureSettings(mode=mode),
            label="x",
            coords=coords,
        )
        self.backend._run = timed  # type: ignore[method-assign]
        started = now()
        try:
            with recorder:
                for first in range(0, len(self.references), batch):
                    items = list(range(first, min(first + batch, len(self.references))))
                    self.backend.prefill_generate(
                        [self.references[i].token_ids.tolist() for i in items],
                        self._new,
                        recorder,
                        lambda phase, items=items: recorder.begin(phase, 0, items),
                    )
                    recorder.sync()
                raise KeyboardInterrupt  # no replay, so the file is not finished
        except KeyboardInterrupt:
            pass
        finally:
            self.backend._run = run  # type: ignore[method-assign]
        return engine, now() - started - engine

    def ways(self, batch: int, folder: Path) -> dict[str, Callable[[], tuple[float, float]]]:
        """Return what is measured, by name; the first is what the others are compared with."""
        return {
            "plain": lambda: self.plain(batch),
            "closed": lambda: self.generate(batch),
            "drop": lambda: self.generate(batch, wanted="none"),
            "hook, full": lambda: self.capture(batch, "full", folder),
            "hook, top-20": lambda: self.capture(batch, "topk", folder),
            "logprobs=20": lambda: self.generate(batch, logprobs=20),
            "logprobs=-1": lambda: self.generate(batch, logprobs=-1),
        }


def measure(arguments: argparse.Namespace, engine: str) -> dict[str, Any]:
    """Measure one engine, in this process; return its rows."""
    if engine == "processor":
        with idle_processor():
            bench = Bench(arguments, engine)
    else:
        bench = Bench(arguments, engine)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for batch in arguments.batches or sorted({1, arguments.references}):
            ways = bench.ways(batch, Path(name))
            if arguments.ways:
                unknown = [label for label in arguments.ways if label not in ways]
                if unknown:
                    raise SystemExit(f"--ways: no {unknown[0]!r}, only {'; '.join(ways)}")
                ways = {label: ways[label] for label in ("plain", *arguments.ways)}
            elif engine != "backend" or batch != arguments.references:
                ways = {label: way for label, way in ways.items() if label not in SLOW}
            times: dict[str, list[tuple[float, float]]] = {label: [] for label in ways}
            for turn in range(arguments.rounds + 1):
                for label, way in ways.items():
                    if label in SLOW and turn != 1:
                        continue
                    took = way()
                    if turn:  # the first turn warms up
                        times[label].append(took)
            for label, pairs in times.items():
                seconds = [one for one, _ in pairs]
                ratios = [mine / base for mine, (base, _) in zip(seconds, times["plain"], strict=False)]
                rows.append(
                    {
                        "engine": engine,
                        "batch": batch,
                        "way": label,
                        "engine_s": round(statistics.median(seconds), 4),
                        "least_s": round(min(seconds), 4),
                        "most_s": round(max(seconds), 4),
                        "tokens_per_s": round(
                            arguments.references * arguments.new / statistics.median(seconds)
                        ),
                        "ratio_to_plain": round(statistics.median(ratios), 3),
                        "drain_s": round(statistics.median(drain for _, drain in pairs), 3),
                    }
                )
    head = (
        f"vLLM {bench.facts.engine_version}, {bench.facts.gpu or 'CPU'}, {bench.facts.observed_kernel}, "
        f"{bench.layers} layers, {arguments.references} x ({arguments.tokens} + {arguments.new}) tokens, "
        f"{arguments.rounds} rounds"
    )
    return {"head": head, "settings": dict(bench.facts.settings), "rows": rows}


def lines(engine: str, measured: dict[str, Any]) -> list[str]:
    """Return what is printed of an engine."""
    return [
        measured["head"],
        *(
            f"{engine:9} batch {row['batch']}  {row['way']:13} engine {row['engine_s']:8.3f} s "
            f"({row['least_s']:.3f} – {row['most_s']:.3f})  {row['ratio_to_plain']:7.3f} x plain   "
            f"drain {row['drain_s']:.2f} s   {row['tokens_per_s']} tokens/s"
            for row in measured["rows"]
        ),
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?", default=QWEN3_8B, help="folder, hub id or synthetic:…")
    parser.add_argument("--quant", choices=tuple(QUANTS), default="awq_marlin")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--tokens", type=int, default=8067)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--batches", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument(
        "--ways",
        type=lambda text: [part.strip() for part in text.split(";")],
        help='what to measure beside plain, separated by semicolons: "hook, full;logprobs=-1"',
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.8)
    parser.add_argument(
        "--kv-cache-memory-bytes", type=int, help="size of the cache; by default what the share above leaves"
    )
    parser.add_argument("--engines", default=",".join(ENGINES), help="which engines, separated by commas")
    parser.add_argument("--model-runner", default="auto", choices=("auto", "v1", "v2"))
    parser.add_argument("--json", type=Path, help="write the tables here, too")
    parser.add_argument("--one", choices=tuple(ENGINES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        arguments.json.write_text(json.dumps(measure(arguments, arguments.one)))
        return
    found = {}
    for engine in arguments.engines.split(","):
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / "rows.json"
            command = [sys.executable, *sys.argv, "--one", engine, "--json", str(file)]
            if subprocess.run(command).returncode:
                print(f"{engine}: failed, its messages are above", file=sys.stderr)
                continue
            found[engine] = json.loads(file.read_text())
        print("\n".join(lines(engine, found[engine])), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"model": arguments.model, **found}, indent=1) + "\n")
    sys.exit(len(found) != len(arguments.engines.split(",")))


if __name__ == "__main__":
    main()
