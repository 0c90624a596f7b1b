"""What capturing costs on a GPU: plain generation, the hook of qdx's vLLM backend, and vLLM's own logprobs.

    python benchmarks/capture.py MODEL [--quant awq_marlin] [--tokens 8067] [--new 100] [--references 4]

One engine, one run; every way of capturing takes its turn in each round, references one at a time (batch 1).
``engine`` is the time of the engine's calls, in which the hook only keeps rows on the device; ``drain`` is
what follows them: hash, sketch, top-k and the rest, and writing the file. Positions are the default ones:
the last 64 prompt rows, the first output and every decode row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qdx.backends.vllm import VllmBackend
from qdx.capture import CaptureSettings, Recorder
from qdx.dataset.layout import CONFIG_COORDS
from qdx.models import Checkpoint
from qdx.prompts import Reference
from qdx.schema import Quant

QUANTS = {
    "awq": Quant("awq", "awq", "awq_gemm"),
    "awq_marlin": Quant("awq_marlin", "awq", "marlin"),
    "awq_machete": Quant("awq_machete", "awq", "machete"),
    "gptq": Quant("gptq", "gptq", "exllama"),
    "gptq_marlin": Quant("gptq_marlin", "gptq", "marlin"),
    "gptq_machete": Quant("gptq_machete", "gptq", "machete"),
}


def reference(index: int, tokens: int, new: int, vocab: int) -> Reference:
    """Make a prompt of random tokens."""
    numbers = np.random.default_rng(index)
    ids = numbers.integers(0, vocab, tokens + new).astype(np.int32)
    text = "random tokens"
    return Reference(f"ref_{index}", ids[:tokens], 0, tokens, 0, ids[tokens:], text, text, "", 0, text)


def capture(
    backend: VllmBackend, references: list[Reference], new: int, mode: str, folder: Path
) -> tuple[float, float]:
    """Record every reference's generation; return the seconds of the engine and of what follows it."""
    facts = backend.observe()
    coords: dict[str, Any] = dict.fromkeys(CONFIG_COORDS, "x") | {
        "batch_size": 1,
        "sm_count": 0,
        "simulated": False,
    }
    engine = 0.0
    run = backend._run

    def timed(*arguments: Any, **keywords: Any) -> Any:
        nonlocal engine
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = run(*arguments, **keywords)
        torch.cuda.synchronize()
        engine += time.perf_counter() - start
        return result

    backend._run = timed  # type: ignore[method-assign]
    recorder = Recorder(
        folder / "run.nc",
        references=references,
        repeats=1,
        output_tokens=new,
        vocab=facts.vocab,
        dtype=torch.float16,
        capture=CaptureSettings(mode=mode),
        label="x",
        coords=coords,
    )
    start = time.perf_counter()
    try:
        with recorder:
            for index, one in enumerate(references):
                backend.prefill_generate(
                    [one.token_ids.tolist()],
                    new,
                    recorder,
                    lambda phase, i=index: recorder.begin(phase, 0, [i]),
                )
                recorder.sync()
            raise KeyboardInterrupt  # no replay, so the file is not finished
    except KeyboardInterrupt:
        pass
    finally:
        backend._run = run  # type: ignore[method-assign]
    return engine, time.perf_counter() - start - engine


def generate(backend: VllmBackend, references: list[Reference], new: int, logprobs: int | None) -> float:
    """Generate without qdx's hook; return the seconds."""
    from vllm import SamplingParams

    parameters = SamplingParams(
        temperature=0.0, max_tokens=new, ignore_eos=True, detokenize=False, logprobs=logprobs
    )
    torch.cuda.synchronize()
    start = time.perf_counter()
    for one in references:
        backend._engine.generate([{"prompt_token_ids": one.token_ids.tolist()}], parameters, use_tqdm=False)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path)
    parser.add_argument("--quant", choices=tuple(QUANTS), default="awq_marlin")
    parser.add_argument("--tokens", type=int, default=8067)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--references", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the table here, too")
    arguments = parser.parse_args()
    quant = QUANTS[arguments.quant]
    config = json.loads((arguments.model / "config.json").read_text())
    checkpoint = Checkpoint(arguments.model, quant.format, str(arguments.model), "", "", "")
    backend = VllmBackend(
        checkpoint,
        quant,
        "float16",
        max_model_len=arguments.tokens + arguments.new + 8,
        gpu_memory_utilization=0.8,
    )
    facts = backend.observe()
    references = [
        reference(i, arguments.tokens, arguments.new, config["vocab_size"])
        for i in range(arguments.references)
    ]
    times: dict[str, list[float]] = {}
    drains: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways: dict[str, Callable[[], Any]] = {
            "plain": lambda: (generate(backend, references, arguments.new, None), 0.0),
            "hook, full": lambda: capture(backend, references, arguments.new, "full", folder),
            "hook, top-20": lambda: capture(backend, references, arguments.new, "topk", folder),
            "logprobs=20": lambda: (generate(backend, references, arguments.new, 20), 0.0),
        }
        for way in ways.values():
            way()
        for _ in range(arguments.rounds):
            for label, way in ways.items():
                engine, drain = way()
                times.setdefault(label, []).append(engine)
                drains.setdefault(label, []).append(drain)
        times["logprobs=-1"] = [generate(backend, references, arguments.new, -1)]
        drains["logprobs=-1"] = [0.0]
    print(
        f"vLLM {facts.engine_version}, {facts.gpu}, {facts.observed_kernel}, "
        f"{config['num_hidden_layers']} layers, "
        f"{arguments.references} x ({arguments.tokens} + {arguments.new}) tokens, {arguments.rounds} rounds"
    )
    plain = statistics.median(times["plain"])
    rows = []
    for label, seconds in times.items():
        ratios = [mine / base for mine, base in zip(seconds, times["plain"], strict=False)]
        row = {
            "way": label,
            "engine_s": round(statistics.median(seconds), 4),
            "least_s": round(min(seconds), 4),
            "most_s": round(max(seconds), 4),
            "ratio_to_plain": round(statistics.median(ratios), 3),
            "ratio_of_medians": round(statistics.median(seconds) / plain, 3),
            "drain_s": round(statistics.median(drains[label]), 3),
        }
        rows.append(row)
        print(
            f"{label:14} engine {row['engine_s']:8.3f} s ({row['least_s']:.3f} – {row['most_s']:.3f})  "
            f"{row['ratio_to_plain']:7.3f} x plain   drain {row['drain_s']:.2f} s",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"model": str(arguments.model), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
