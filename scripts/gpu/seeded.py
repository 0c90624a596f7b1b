"""What vLLM 0.33's second model runner draws with a seed: its noise, its rows and its answers.

    python scripts/gpu/seeded.py record OUT [engine] [none] [awq]
    python scripts/gpu/seeded.py table OUT

``record`` takes about three minutes on one GPU, with qdx and vLLM 0.33.0 importable. It makes a tiny
checkpoint whose weights are drawn on the CPU, so that any machine can make the same one, and starts three
processes beside each other. One runs the engine in the process itself: it calls the engine's own Gumbel
kernel, and keeps of every sampled token the row, what truncation left of it, seed, position and token
(OUT/noise.npz). The two others serve the unquantized and the AWQ checkpoint by vLLM's server, and keep
requests and responses as they were sent (OUT/none.jsonl, OUT/awq.jsonl). OUT/about.json says what ran.
``table`` recomputes the noise by `qdx.capture.noise` and says how many tokens it explains.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = "synthetic:layers=2,hidden=512,mlp=1024,heads=4,kv_heads=2,head=128,vocab=257,seed=7"
SHARPER = 8.0  # by which the output head is multiplied: rows of random weights are nearly flat
FORMATS = ("none", "awq")
ENVIRONMENT = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "HF_HUB_OFFLINE": "1",
}
TOKENS = 40
# Of each kind of request: how many, and how it is sampled.
KINDS: tuple[tuple[int, dict[str, Any]], ...] = (
    (32, {"temperature": 1.0}),
    (8, {"temperature": 0.7, "top_p": 0.9}),
    (4, {"temperature": 1.2, "top_k": 20, "min_p": 0.05}),
    (4, {"temperature": 1.0, "n": 2}),
)
NEUTRAL = {
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "min_tokens": 0, "n": 1,
}  # fmt: skip
SEEDS = (0, 1, -5, 2**31 + 11, 2**40 + 3, 2**63 - 1, -(2**63), 281128)
POSITIONS = (0, 1, 77, 4095, 100_000, 2**20 + 5, 3, 2_000_000)
IDS = 2_048  # of the noise that is kept bit by bit, half of them at the end of a large vocabulary
PURE = 4_096  # draws from flat rows by the engine's kernel, with a vocabulary of as many


def checkpoint(folder: Path, form: str) -> Path:
    """Make the checkpoint of a format, with weights that are drawn on the CPU.

    Parameters
    ----------
    folder : Path
    form : {"none", "awq"}

    Returns
    -------
    Path
        ``folder/form``.
    """
    import shutil

    from safetensors.torch import load_file, save_file

    from qdx.models.synthetic import synthetic_folder

    target = folder / form
    if not (target / "done").exists():
        shutil.copytree(synthetic_folder(SHAPE, form, folder / "cache"), target, dirs_exist_ok=True)
        state = load_file(target / "model.safetensors")
        state["lm_head.weight"] = state["lm_head.weight"] * SHARPER
        save_file(state, target / "model.safetensors", metadata={"format": "pt"})
        _write_tokenizer(target)
        (target / "done").write_text("")
    return target


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer all of whose tokens are ASCII, so that any answer is a text that spells its ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)]
    pairs = [(a, b) for a in letters[32:58] for b in letters[32:58]][: 256 - len(letters)]
    names = [*letters, *("".join(pair) for pair in pairs)]
    core = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=pairs))
    core.add_special_tokens([AddedToken("<|end|>", special=True)])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>").save_pretrained(folder)


def requests() -> list[dict[str, Any]]:
    """Return the requests: random prompts, each with a seed of its own."""
    found = []
    for count, sampling in KINDS:
        for _ in range(count):
            i = len(found)
            numbers = np.random.default_rng(1000 + i)
            prompt = numbers.integers(0, 256, 12 + 5 * (i % 7))
            found.append(
                {
                    "model": "tiny",
                    "prompt": [int(one) for one in prompt],
                    "max_tokens": TOKENS,
                    "ignore_eos": True,
                    "return_token_ids": True,
                    **NEUTRAL,
                    **sampling,
                    "seed": 5_000_000_000 * (i % 3) + 100 + 10 * i,
                }
            )
    return found


def record(out: Path, only: tuple[str, ...]) -> int:
    """Run the three processes, or those that are named, and say how each ended."""
    out.mkdir(parents=True, exist_ok=True)
    begun = time.time()
    folder = Path(os.environ.get("SEEDED_WORK", "/tmp/qdx-seeded"))
    for form in FORMATS:  # where no GPU is visible, weights are drawn on the CPU
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, __file__, "make", str(folder), form]
        subprocess.run(command, env=hidden, check=True)
    print(f"{time.time() - begun:5.0f} s checkpoints", flush=True)
    jobs = {
        "engine": ["engine", str(folder / "none"), str(out / "noise.npz")],
        **{form: ["serve", str(folder / form), str(out / f"{form}.jsonl"), form] for form in FORMATS},
    }
    running = {}
    for name in only or tuple(jobs):
        arguments = jobs[name]
        with (out / f"{name}.log").open("wb") as log:
            running[name] = subprocess.Popen(
                [sys.executable, __file__, *arguments],
                env={**os.environ, **ENVIRONMENT},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
    failed = 0
    for name, process in running.items():
        try:
            code = process.wait(max(1.0, 500 - (time.time() - begun)))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        failed |= code != 0
        tail = "" if not code else "\n" + (out / f"{name}.log").read_text(errors="replace")[-3000:]
        print(f"{time.time() - begun:5.0f} s {name}: exit status {code}{tail}", flush=True)
    digests = {form: _sha256(folder / form / "model.safetensors") for form in FORMATS}
    about = {"shape": SHAPE, "sharper": SHARPER, "weights_sha256": digests}
    (out / "about.json").write_text(json.dumps(about | _versions(), indent=1) + "\n")
    for path in out.glob("*.log"):  # what is kept is small
        path.write_text(path.read_text(errors="replace")[-20_000:])
    return int(failed)


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _versions() -> dict[str, Any]:
    import importlib.metadata as metadata

    import torch

    names = ("vllm", "torch", "triton", "transformers")
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    found["torch_cuda"] = torch.version.cuda or ""
    return found


def engine(path: Path, out: Path) -> None:
    """Run the engine in this process, and keep what its sampler got and gave."""
    import torch

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm
    from vllm import LLM, SamplingParams

    found: dict[str, np.ndarray] = _noise()
    found |= _pure()
    np.savez_compressed(out, **found)  # what an engine that does not start cannot take away
    model = LLM(
        model=str(path), dtype="float16", enforce_eager=True, max_model_len=256, max_num_seqs=8,
        gpu_memory_utilization=0.15, kv_cache_memory_bytes=200_000_000, enable_prefix_caching=False,
    )  # fmt: skip
    from vllm.v1.worker.gpu.sample import sampler as module

    drawn, rows = list[tuple[Any, ...]](), list[Any]()
    original = module.gumbel_sample

    def hear(
        logits: Any, mapping: Any, temperature: Any, seed: Any, pos: Any, *more: Any, **named: Any
    ) -> Any:
        sampled = original(logits, mapping, temperature, seed, pos, *more, **named)
        at = mapping.long()
        parts = (logits.float(), temperature[at], seed[at], pos, sampled)
        drawn.append(tuple(one.detach().cpu().clone() for one in parts))
        return sampled

    module.gumbel_sample = hear

    def install(worker: Any) -> str:
        runner = worker.model_runner
        inner = runner.model
        compute = inner.compute_logits

        def keep(hidden: Any, *more: Any, **named: Any) -> Any:
            logits = compute(hidden, *more, **named)
            rows.append(logits.detach().cpu().clone())
            return logits

        inner.compute_logits = keep
        return f"{type(runner).__module__}.{type(runner).__name__}"

    runner = model.collective_rpc(install)[0]
    rows.clear()
    drawn.clear()
    asked = [one for one in requests() if one["n"] == 1]
    chosen = [*asked[:8], *asked[32:36], *asked[40:44]]
    parameters = [
        SamplingParams(
            temperature=one["temperature"], top_p=one["top_p"], top_k=one["top_k"], min_p=one["min_p"],
            seed=one["seed"], max_tokens=TOKENS, ignore_eos=True,
        )
        for one in chosen
    ]  # fmt: skip
    prompts: list[Any] = [{"prompt_token_ids": one["prompt"]} for one in chosen]
    outputs = model.generate(prompts, parameters, use_tqdm=False)
    columns = [torch.cat(parts) for parts in zip(*drawn, strict=True)]
    processed, temperature, seed, position, token = (one.numpy() for one in columns)
    raw = torch.cat([part for part in rows if len(part)]).numpy()
    answers = np.array([list(one.outputs[0].token_ids) for one in outputs], np.int32)
    found |= {
        "row": raw.astype(np.float16),
        "kept": np.packbits(np.isfinite(processed), axis=1),
        "processed": processed[::16].astype(np.float32),
        "row_temperature": temperature.astype(np.float32),
        "row_seed": seed.astype(np.int64),
        "row_position": position.astype(np.int64),
        "row_token": token.astype(np.int32),
        "answer_token": answers,
        "answer_seed": np.array([one["seed"] for one in chosen], np.int64),
        "answer_prompt_length": np.array([len(one["prompt"]) for one in chosen], np.int32),
        "answer_sampler": np.array(
            [[one["temperature"], one["top_k"], one["top_p"], one["min_p"]] for one in chosen]
        ),
        "stated": np.array(
            json.dumps({"vllm": vllm.__version__, "runner": runner, **_versions(), "rows": list(raw.shape)})
        ),
    }
    np.savez_compressed(out, **found)


def _noise() -> dict[str, np.ndarray]:
    """Bits, uniform number and noise of the engine's own kernels, and their distance from float64."""
    import torch

    found: dict[str, list[np.ndarray]] = {"hash": [], "uniform": [], "noise": []}
    ids = torch.cat([torch.arange(IDS // 2), torch.arange(151_936 - IDS // 2, 151_936)]).to(torch.int32)
    for seed, position in zip(SEEDS, POSITIONS, strict=True):
        values = _of_engine(seed, position, ids)
        for name, value in zip(found, values, strict=True):
            found[name].append(value.cpu().numpy())
    worst = torch.zeros(4, dtype=torch.float64)
    edges = (0.0, 1e-6, 0.25, 0.9, 1.0)
    for part in range(16):  # 16.8 million draws
        many = torch.arange(part << 20, (part + 1) << 20, dtype=torch.int32)
        bits, _, noise = _of_engine(281128, 7, many)
        u = ((bits.to(torch.int64) & 0xFFFFFFFF).to(torch.float64) + 0.5) * 2.0**-32
        exact = -torch.log(-torch.log1p(-u))
        off = (noise.to(torch.float64) - exact).abs()
        for i in range(4):
            inside = (u >= edges[i]) & (u < edges[i + 1])
            if bool(inside.any()):
                worst[i] = max(worst[i], off[inside].max().cpu())
    return {
        "noise_seed": np.array(SEEDS, np.int64),
        "noise_position": np.array(POSITIONS, np.int64),
        "noise_id": ids.numpy(),
        "noise_hash": np.stack(found["hash"]).view(np.uint32),
        "noise_uniform": np.stack(found["uniform"]),
        "noise_value": np.stack(found["noise"]),
        "worst_edges": np.array(edges),
        "worst_off": worst.numpy(),
    }


def _of_engine(seed: int, position: int, ids: Any) -> tuple[Any, Any, Any]:
    import torch

    kernel = _kernel()
    device, count = "cuda", len(ids)
    bits = torch.empty(count, dtype=torch.int32, device=device)
    uniform, noise = (torch.empty(count, dtype=torch.float32, device=device) for _ in range(2))
    where = (torch.tensor([value], dtype=torch.int64, device=device) for value in (seed, position))
    kernel[(-(-count // 1024),)](bits, uniform, noise, *where, ids.to(device), count, BLOCK=1024)
    return bits, uniform, noise


def _pure() -> dict[str, np.ndarray]:
    """Tokens that the engine's kernel draws from flat rows: nothing but its noise decides."""
    import torch
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    numbers = np.random.default_rng(11)
    seeds = numbers.integers(-(2**63), 2**63 - 1, 64)
    positions = numbers.integers(0, 200_000, PURE)
    request = np.arange(PURE) % len(seeds)
    sampled = gumbel_sample(
        torch.zeros(PURE, PURE, dtype=torch.float32, device="cuda"),
        torch.from_numpy(request.astype(np.int32)).cuda(),
        torch.ones(len(seeds), dtype=torch.float32, device="cuda"),
        torch.from_numpy(seeds).cuda(),
        torch.from_numpy(positions).cuda(),
        apply_temperature=False,
        is_drafting=False,
    )
    return {
        "pure_seed": seeds[request],
        "pure_position": positions,
        "pure_token": sampled.cpu().numpy().astype(np.int32),
    }


def _kernel() -> Any:
    """A Triton kernel that stores what the engine's own functions return."""
    import importlib.util
    import tempfile

    global _LOADED
    if _LOADED is None:  # Triton reads a kernel's source, which has to stand in a file
        folder = Path(tempfile.mkdtemp())
        (folder / "qdx_noise_kernel.py").write_text(KERNEL)
        spec = importlib.util.spec_from_file_location("qdx_noise_kernel", folder / "qdx_noise_kernel.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _LOADED = module.store
    return _LOADED


_LOADED: Any = None
KERNEL = """
from vllm.triton_utils import tl, triton
from vllm.v1.worker.gpu.sample.gumbel import _log1p_neg_stable, murmur3_hash32, murmur3_uniform32


@triton.jit
def store(bits_ptr, uniform_ptr, noise_ptr, seed_ptr, position_ptr, id_ptr, count, BLOCK: tl.constexpr):
    block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = block < count
    seed = tl.load(seed_ptr)
    position = tl.load(position_ptr)
    ids = tl.load(id_ptr + block, mask=mask, other=0)
    bits = murmur3_hash32(seed, position, ids)
    u = murmur3_uniform32(seed, position, ids)
    noise = -tl.log(-_log1p_neg_stable(u))
    tl.store(bits_ptr + block, bits.to(tl.int32, bitcast=True), mask=mask)
    tl.store(uniform_ptr + block, u, mask=mask)
    tl.store(noise_ptr + block, noise, mask=mask)
"""


def serve(path: Path, out: Path, form: str) -> None:
    """Keep the requests, and the responses of vLLM's own server as they are sent.

    Where the server does not start, the engine answers in this process, in the server's own types.
    """
    asked = requests()
    try:
        answers, how = _of_server(path, out, form, asked), "by vLLM's server"
    except (RuntimeError, OSError) as error:
        print(f"{error}: the engine answers in this process", flush=True)
        answers, how = _of_engine_alone(path, asked), "by vLLM's engine, in the types of its server"
    lines = [
        json.dumps({"request": one, "response": json.loads(answer)})
        for one, answer in zip(asked, answers, strict=True)
    ]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    out.with_suffix(".how.txt").write_text(f"{len(lines)} answers, {how}\n")


def _of_server(path: Path, out: Path, form: str, asked: list[dict[str, Any]]) -> list[str]:
    port = 18000 + FORMATS.index(form)
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port),
        "--max-model-len", "256", "--max-num-seqs", "8", "--generation-config", "vllm",
        "--no-enable-prefix-caching", "--enforce-eager",
        *os.environ.get("SEEDED_OPTIONS", GPU_OPTIONS).split(),
    ]  # fmt: skip
    server = subprocess.Popen(command, env=_with_orjson(out.parent))
    base = f"http://127.0.0.1:{port}"
    try:
        seconds = int(os.environ.get("SEEDED_SECONDS", "200"))
        for _ in range(seconds):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with exit status {server.returncode}")
            try:
                version = json.loads(_get(f"{base}/version"))
                break
            except OSError:
                time.sleep(1)
        else:
            raise RuntimeError(f"the server did not start in {seconds} s")
        print(f"vLLM {version}", flush=True)
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda one: _post(f"{base}/v1/completions", one), asked))
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def _of_engine_alone(path: Path, asked: list[dict[str, Any]]) -> list[str]:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.entrypoints.openai.completion.protocol import CompletionResponse, CompletionResponseChoice
    from vllm.entrypoints.serve.engine.protocol import UsageInfo
    from vllm.entrypoints.serve.utils.fingerprint import build_system_fingerprint

    model = LLM(
        model=str(path), dtype="float16", enforce_eager=True, max_model_len=256, max_num_seqs=8,
        gpu_memory_utilization=0.15, kv_cache_memory_bytes=200_000_000, enable_prefix_caching=False,
        generation_config="vllm",
    )  # fmt: skip
    names = ("n", "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "ignore_eos", "min_tokens")
    parameters = [SamplingParams(**{name: one[name] for name in names}) for one in asked]
    prompts: list[Any] = [{"prompt_token_ids": one["prompt"]} for one in asked]
    found = []
    for one in model.generate(prompts, parameters, use_tqdm=False):
        choices = [
            CompletionResponseChoice(
                index=each.index, text=each.text, finish_reason=each.finish_reason,
                stop_reason=each.stop_reason, token_ids=list(each.token_ids),
                prompt_token_ids=list(one.prompt_token_ids),
            )
            for each in one.outputs
        ]  # fmt: skip
        read, made = len(one.prompt_token_ids), sum(len(each.token_ids) for each in one.outputs)
        response = CompletionResponse(
            model="tiny",
            choices=choices,
            system_fingerprint=build_system_fingerprint(model.llm_engine.vllm_config),
            usage=UsageInfo(prompt_tokens=read, completion_tokens=made, total_tokens=read + made),
        )
        found.append(response.model_dump_json())
    return found


def _with_orjson(folder: Path) -> dict[str, str]:
    """Return an environment in which the server finds orjson: where there is none, json under that name."""
    import importlib.util

    if importlib.util.find_spec("orjson") is not None:
        return dict(os.environ)
    place = folder / "shim"
    place.mkdir(exist_ok=True)
    (place / "orjson.py").write_text(ORJSON)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(place)])}


ORJSON = """
import json
from json import JSONDecodeError

OPT_NON_STR_KEYS = OPT_SERIALIZE_NUMPY = 0


def dumps(value, default=None, option=None):
    return json.dumps(value, default=default, ensure_ascii=False).encode()


loads = json.loads
"""
GPU_OPTIONS = "--dtype float16 --gpu-memory-utilization 0.15 --kv-cache-memory-bytes 200000000"


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def _post(url: str, body: dict[str, Any]) -> str:
    message = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(message, timeout=200) as answer:
        return str(answer.read().decode())


def table(out: Path) -> list[str]:
    """Say how much of what the engine drew the noise that is recomputed here explains."""
    import torch

    from qdx.capture import noise

    lines = []
    with np.load(out / "noise.npz") as data:
        ids = torch.from_numpy(data["noise_id"].astype(np.int64))
        pairs = list(zip(data["noise_seed"].tolist(), data["noise_position"].tolist(), strict=True))
        bits = torch.stack([noise.murmur_bits(*pair, ids) for pair in pairs])
        equal = bits.numpy() == data["noise_hash"]
        lines.append(f"bits: {int(equal.sum()):,} of {equal.size:,} equal")
        u = noise.uniform_of(bits)
        equal = u.numpy() == data["noise_uniform"]
        lines.append(f"uniform numbers: {int(equal.sum()):,} of {equal.size:,} equal")
        off = np.abs(noise.gumbel_of(u).numpy() - data["noise_value"].astype(np.float64))
        lines.append(f"noise: at most {off.max():.2e} apart")
        worst = ", ".join(f"{value:.2e}" for value in data["worst_off"])
        lines.append(f"engine ~ float64 over 16.8 million draws, by u in {data['worst_edges']}: {worst}")
        drawn = zip(
            data["pure_seed"].tolist(), data["pure_position"].tolist(), data["pure_token"], strict=True
        )
        ids = torch.arange(PURE)
        right = sum(
            int(noise.gumbel_of(noise.uniform_of(noise.murmur_bits(seed, at, ids))).argmax()) == token
            for seed, at, token in drawn
        )
        lines.append(f"flat rows: {right:,} of {len(data['pure_token']):,} tokens")
        if "row" in data:
            lines.append(_of_rows(data))
    return lines


def _of_rows(data: Any) -> str:
    """How many of the engine's tokens are the greatest of its own rows and the noise computed here."""
    import torch

    from qdx.capture import noise

    rows, right = data["row"].astype(np.float32), 0
    kept = np.unpackbits(data["kept"], axis=1)[:, : rows.shape[1]].astype(bool)
    ids = torch.arange(rows.shape[1])
    columns = ("row_seed", "row_position", "row_token", "row_temperature")
    for i, (seed, at, token, temperature) in enumerate(zip(*(data[name] for name in columns), strict=True)):
        scaled = np.where(kept[i], rows[i] / temperature, -np.inf)
        here = noise.gumbel_of(noise.uniform_of(noise.murmur_bits(int(seed), int(at), ids))).numpy()
        right += int((scaled + here).argmax()) == token
    return f"sampled rows: {right:,} of {len(rows):,} tokens"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("record", "table", "make", "engine", "serve"))
    parser.add_argument("arguments", nargs="+")
    given = parser.parse_args()
    paths = [Path(one) for one in given.arguments]
    if given.command == "record":
        sys.exit(record(paths[0], tuple(given.arguments[1:])))
    elif given.command == "table":
        print("\n".join(table(paths[0])))
    elif given.command == "make":
        checkpoint(paths[0], given.arguments[1])
    elif given.command == "engine":
        engine(paths[0], paths[1])
    else:
        serve(paths[0], paths[1], given.arguments[2])


if __name__ == "__main__":
    main()
