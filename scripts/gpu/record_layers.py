"""Record what every operation of vLLM's forward pass gives on this card, for `qdx.kernels` to be compared.

    PYTHONPATH=/tmp/site:. python scripts/gpu/record_layers.py OUT

Needs a GPU and vLLM 0.33.0; two to four minutes on 16 cores, its parts run side by side. OUT gets a log and:

layers.npz
    The model of `small_model`, eager, float16, by AWQ, Marlin and TRITON_ATTN: keys
    ``awq_marlin_triton/<case>/<step>/<operation>``, the outputs of all operations of a prefill and of decode
    steps, at batch 1 and 4. Of a long prompt 64-bit hashes of rows alone.
others.npz
    The same with other kernels, formats and FLASH_ATTN: batch 1 whole, batch 4 hashes of rows.
attention.npz
    Triton's unified attention and FlashAttention 3 alone, for many lengths; the compiled Triton kernels.
cublas.npz
    ``torch.nn.functional.linear`` at the model's shapes: outputs, cuBLAS's kernels, and what probes of the
    order of summation give; and how many outputs of vLLM's own small operations differ from
    `qdx.kernels.operations`.

``tests/kernels/test_recorded_layers.py`` compares them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import small_model
import torch
from numpy.typing import NDArray
from torch import Tensor

CONFIGS: dict[str, dict[str, str]] = {
    "awq_marlin_triton": {"form": "awq", "kernel": "marlin", "attention": "TRITON_ATTN"},
    "awq_marlin_flash": {"form": "awq", "kernel": "marlin", "attention": "FLASH_ATTN"},
    "awq_machete_triton": {"form": "awq", "kernel": "machete", "attention": "TRITON_ATTN"},
    "gptq_marlin_triton": {"form": "gptq", "kernel": "marlin", "attention": "TRITON_ATTN"},
    "gptq_machete_flash": {"form": "gptq", "kernel": "machete", "attention": "FLASH_ATTN"},
    "none_triton": {"form": "none", "kernel": "", "attention": "TRITON_ATTN"},
}
FIRST = "awq_marlin_triton"
CASES = {"one": (23,), "four": (20, 27, 33, 40), "long": (300,), "short": (6,)}  # tokens of the prompts
NEW = {"one": 5, "four": 5, "long": 17, "short": 3}
SHAPES = ((768, 1280), (768, 768), (768, 3072), (1536, 768), (768, 49152))
ROWS = (1, 2, 4, 8, 16, 20, 23, 27, 33, 40, 64, 120)
COLUMNS = 128  # of a matrix product, at each end, that are kept whole
# Query heads, heads of keys, head size.
HEADS = ((12, 4, 64), (32, 8, 128))
PREFILLS = (
    (1,),
    (5,),
    (8,),
    (9,),
    (20,),
    (33,),
    (64,),
    (128,),
    (129,),
    (300,),
    (512,),
    (513,),
    (700,),
    (20, 27, 33, 40),
)
DECODES = (
    *(
        (length,)
        for length in (1, 7, 16, 17, 32, 33, 100, 192, 193, 256, 257, 600, 768, 769, 1000, 1200, 2000, 4100)
    ),
    (21, 28, 34, 41),
    (20, 33, 100, 600),
    tuple(range(5, 45)),
)
BLOCK = 16  # keys of a page


def hashes(value: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each row's bytes."""
    rows = np.ascontiguousarray(value).reshape(len(value), -1)
    return np.array([int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:8], "little") for row in rows])


# --------------------------------------------------------------------------------------------------------
# The whole model


def record_model(name: str, out: Path) -> None:
    """Run the cases with one config, and write what its operations gave."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_USE_FLASHINFER_SAMPLER="0"
    )
    config = CONFIGS[name]
    folder = Path(tempfile.mkdtemp()) / "model"
    small_model.write(folder, config["form"])
    from vllm import LLM, SamplingParams

    arguments: dict[str, Any] = {"attention_backend": config["attention"]}
    if config["kernel"]:
        arguments |= {"quantization": config["form"], "linear_backend": config["kernel"]}
    llm = LLM(
        model=str(folder),
        dtype="float16",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=1024,
        enable_prefix_caching=False,
        generation_config="vllm",
        gpu_memory_utilization=0.05,
        kv_cache_memory_bytes=1 << 28,  # without profiling, which several engines on a card disturb
        max_num_seqs=8,
        seed=0,
        **arguments,
    )
    steps: list[dict[str, Tensor]] = []
    about = llm.collective_rpc(lambda worker: _watch(worker, steps))[0]
    found: dict[str, NDArray[Any]] = {}
    for case, lengths in CASES.items():
        steps.clear()
        prompts = [
            {"prompt_token_ids": small_model.prompt(f"{case} {index}", length)}
            for index, length in enumerate(lengths)
        ]
        wanted = SamplingParams(temperature=0, max_tokens=NEW[case], ignore_eos=True, detokenize=False)
        done = llm.generate(prompts, wanted, use_tqdm=False)
        found[f"{name}/{case}/tokens"] = np.array([one.outputs[0].token_ids for one in done])
        whole = case in ("one", "short") or (case == "four" and name == FIRST)
        for step, values in enumerate(steps):
            for key, value in values.items():
                raw = value.cpu().numpy()
                small = key in ("ids", "positions") or key.startswith("about")
                if not (whole or small):
                    key, raw = f"{key}.hash", hashes(raw)
                found[f"{name}/{case}/{step}/{key}"] = raw
    if name == FIRST:
        found["cos_sin"] = about.pop("cos_sin")
    about.pop("cos_sin", None)
    found[f"{name}/about"] = np.array(json.dumps(about))
    np.savez(out, **found)


def _watch(worker: Any, steps: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Hook every operation of the worker's model; returns what it is made of."""
    from vllm.forward_context import get_forward_context

    runner = worker.model_runner
    model = runner.get_model() if hasattr(runner, "get_model") else runner.model
    about: dict[str, Any] = {
        "runner": f"{type(runner).__module__}.{type(runner).__name__}",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "block_size": worker.vllm_config.cache_config.block_size,
    }

    def begin(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(zip(("input_ids", "positions"), args, strict=False)) | kwargs
        steps.append({"ids": given["input_ids"].clone(), "positions": given["positions"].clone()})

    def keep(key: str, value: Any) -> None:
        if steps:
            steps[-1][key] = value.detach().clone()

    def after(key: str, parts: tuple[str, ...]) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            name = key
            if key.endswith("rotary_emb"):  # all layers share one module
                layer = sum(one.endswith("rotary_emb.q") for one in steps[-1]) if steps else 0
                name = f"{layer}.self_attn.rotary_emb"
            for part, value in zip(parts, outputs, strict=False):
                if isinstance(value, Tensor):
                    keep(f"{name}{part}", value)

        return hook

    def attention_about(module: Any, args: tuple[Any, ...], output: Any) -> None:
        data = get_forward_context().attn_metadata
        data = data[module.layer_name] if isinstance(data, dict) else data
        for key in ("query_start_loc", "seq_lens", "scheduler_metadata", "block_table", "slot_mapping"):
            value = getattr(data, key, None)
            if isinstance(value, Tensor):
                keep(f"about.{key}", value)
        numbers = [
            int(getattr(data, key, None) or -1)
            for key in ("max_query_len", "max_seq_len", "max_num_splits", "seq_threshold_3D")
        ]
        keep("about.numbers", torch.tensor(numbers))

    outputs = {
        "embed_tokens": ("",),
        "input_layernorm": ("", ".residual"),
        "post_attention_layernorm": ("", ".residual"),
        "norm": ("", ".residual"),
        "rotary_emb": (".q", ".k"),
    }
    model.register_forward_pre_hook(begin, with_kwargs=True)
    for name, module in model.named_modules():
        short = name.split(".")[-1]
        if short in (
            *outputs,
            "qkv_proj",
            "attn",
            "o_proj",
            "gate_up_proj",
            "act_fn",
            "down_proj",
        ):
            key = name.removeprefix("model.").removeprefix("layers.")
            module.register_forward_hook(after(key, outputs.get(short, ("",))))
            about[key] = type(module).__name__
            if (method := getattr(module, "quant_method", None)) is not None:
                about[key] += f" {type(method).__name__} {type(getattr(method, 'kernel', None)).__name__}"
        if short == "attn":
            about[key] += f" {type(getattr(module, 'impl', None)).__name__}"
            module.register_forward_hook(attention_about)
        if short == "rotary_emb":
            about["cos_sin"] = module.cos_sin_cache.detach().cpu().numpy()
    compute = model.compute_logits

    def logits(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        value = compute(hidden, *args, **kwargs)
        keep("head_input", hidden)
        keep("logits", value)
        return value

    model.compute_logits = logits
    return about


# --------------------------------------------------------------------------------------------------------
# Attention alone


def attention_inputs(
    heads: tuple[int, int, int], queries: tuple[int, ...], lengths: tuple[int, ...]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return float16 queries (tokens, heads, size), and of each sequence keys and values."""
    count, kv_count, size = heads
    name = f"{heads} {queries} {lengths}"
    q = small_model.halves(f"q {name}", 3071, -10, sum(queries), count, size)
    k = [small_model.halves(f"k{i} {name}", 3071, -10, n, kv_count, size) for i, n in enumerate(lengths)]
    v = [small_model.halves(f"v{i} {name}", 3071, -11, n, kv_count, size) for i, n in enumerate(lengths)]
    return q, k, v


def attention_cases() -> list[tuple[str, tuple[int, int, int], tuple[int, ...], tuple[int, ...]]]:
    """Return name, heads, queries of each sequence and its length."""
    found = []
    for heads in HEADS:
        for lengths in PREFILLS:
            if heads[2] > 64 and sum(lengths) > 64:  # a file of OUT holds 16 MiB
                continue
            found.append((f"prefill/{heads}/{lengths}", heads, lengths, lengths))
        for lengths in DECODES:
            found.append((f"decode/{heads}/{lengths}", heads, (1,) * len(lengths), lengths))
        extended = ((7, 100), (30, 100), (30, 300))  # queries after a context
        for new, length in extended:
            found.append((f"extend/{heads}/{new} of {length}", heads, (new,), (length,)))
    return found


def record_attention(out: Path) -> None:
    """Call vLLM's attention kernels as its backends do."""
    cache_folder = Path(tempfile.mkdtemp())
    os.environ["TRITON_CACHE_DIR"] = str(cache_folder)
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention

    found: dict[str, NDArray[Any]] = {}
    errors: dict[str, str] = {}
    for name, heads, queries, lengths in attention_cases():
        q, k, v = attention_inputs(heads, queries, lengths)
        pages = [-(-length // BLOCK) for length in lengths]
        cache = torch.zeros(sum(pages) + 1, heads[1], BLOCK, 2 * heads[2], dtype=torch.float16)
        table = torch.zeros(len(lengths), max(pages), dtype=torch.int32)
        first = 1
        for i, count in enumerate(pages):
            table[i, :count] = torch.arange(first, first + count)
            both = torch.zeros(count * BLOCK, heads[1], 2 * heads[2], dtype=torch.float16)
            both[: lengths[i]] = torch.cat((k[i], v[i]), dim=-1)
            cache[first : first + count] = both.view(count, BLOCK, heads[1], -1).transpose(1, 2)
            first += count
        cache, table, q = cache.cuda(), table.cuda(), q.cuda()
        key_cache, value_cache = cache.transpose(1, 2).split(heads[2], dim=-1)
        starts = torch.tensor([0, *itertools.accumulate(queries)], dtype=torch.int32).cuda()
        used = torch.tensor(lengths, dtype=torch.int32).cuda()
        one = torch.ones(1).cuda()
        threshold = 128 // heads[1]
        segments = (threshold, heads[0], 16)  # rows as vLLM allocates them
        partial = torch.zeros(*segments, heads[2]).cuda()
        maximum, total = torch.zeros(*segments).cuda(), torch.zeros(*segments).cuda()
        result = torch.empty_like(q)
        scale = heads[2] ** -0.5
        try:
            unified_attention(
                q=q,
                k=key_cache,
                v=value_cache,
                out=result,
                cu_seqlens_q=starts,
                max_seqlen_q=max(queries),
                seqused_k=used,
                max_seqlen_k=max(lengths),
                softmax_scale=scale,
                causal=True,
                window_size=(-1, -1),
                block_table=table,
                softcap=0,
                q_descale=None,
                k_descale=one.expand(len(lengths), heads[1]),
                v_descale=one.expand(len(lengths), heads[1]),
                seq_threshold_3D=threshold,
                num_par_softmax_segments=16,
                softmax_segm_output=partial,
                softmax_segm_max=maximum,
                softmax_segm_expsum=total,
            )
            found[f"triton/{name}"] = result.cpu().numpy()
            if "(12, 4, 64)/(600,)" in name and name.startswith("decode"):
                found[f"triton_partial/{name}"] = partial[:1].cpu().numpy()
                found[f"triton_maximum/{name}"] = maximum[:1].cpu().numpy()
                found[f"triton_total/{name}"] = total[:1].cpu().numpy()
        except Exception as error:
            errors[f"triton/{name}"] = repr(error)[:300]
        try:
            from vllm.vllm_flash_attn.flash_attn_interface import flash_attn_varlen_func

            result = torch.empty_like(q)
            _, lse = flash_attn_varlen_func(
                q=q,
                k=key_cache,
                v=value_cache,
                out=result,
                cu_seqlens_q=starts,
                max_seqlen_q=max(queries),
                seqused_k=used,
                max_seqlen_k=max(lengths),
                softmax_scale=scale,
                causal=True,
                block_table=table,
                fa_version=3,
                return_softmax_lse=True,
            )[:2]
            found[f"flash/{name}"] = result.cpu().numpy()
            found[f"flash_lse/{name}"] = lse.cpu().numpy()
        except Exception as error:
            errors[f"flash/{name}"] = repr(error)[:300]
    for path in sorted(cache_folder.rglob("*")):
        if path.suffix in (".ptx", ".cubin") or (path.suffix == ".json" and "__grp__" not in path.name):
            key = f"compiled/{path.parent.name[:8]}/{path.name}"
            found[key] = np.frombuffer(path.read_bytes(), np.uint8)
    found["errors"] = np.array(json.dumps(errors))
    np.savez_compressed(out, **found)
    print(f"attention: {len(found)} arrays, {len(errors)} errors {list(errors.values())[:2]}", flush=True)


# --------------------------------------------------------------------------------------------------------
# Matrix products and small operations


def product_inputs(rows: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return float16 (rows, in-features) and (out-features, in-features)."""
    x = small_model.halves(f"x {rows} {shape}", 3071, -10, rows, shape[0])
    return x, small_model.halves(f"w {shape}", 1023, -13, shape[1], shape[0])


def probe(features: int, columns: int, start: int) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """Return weights that show the order of summation, for rows of ones.

    Column n is 2^-14 everywhere but 2^15 at i and -2^15 at j. Numbers that a sum takes in while it holds 2^15
    are lost. So the output, in units of 2^-14, counts those that were added elsewhere or after both.
    """
    pairs = np.array(
        [(i, j) for j in range(0, features, 16) for i in range(j % 32 // 4, features, 4) if i != j]
    )
    chosen = pairs[(start + np.arange(columns)) % len(pairs)]
    weight = np.full((columns, features), 2.0**-14, np.float16)
    weight[np.arange(columns), chosen[:, 0]] = 2.0**15
    weight[np.arange(columns), chosen[:, 1]] = -(2.0**15)
    return torch.from_numpy(weight), chosen[:, 0], chosen[:, 1]


def record_cublas(out: Path) -> None:
    """Multiply as vLLM's unquantized layers do, and say which kernels ran."""
    from torch.profiler import ProfilerActivity, profile

    from qdx.kernels import rotary as own

    found: dict[str, NDArray[Any]] = {}
    lines = [torch.cuda.get_device_name()]
    for shape in SHAPES:
        weight = product_inputs(1, shape)[1].cuda()
        for rows in ROWS:
            x = product_inputs(rows, shape)[0].cuda()
            torch.nn.functional.linear(x, weight)
            torch.cuda.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                y = torch.nn.functional.linear(x, weight)
                torch.cuda.synchronize()
            names = sorted({event.key for event in seen.key_averages() if "cuda" not in event.key.lower()})
            lines.append(f"{shape[0]} x {shape[1]}, {rows} rows: {' + '.join(names)}")
            raw = y.cpu().numpy()
            key = f"linear/{shape}/{rows}"
            found[key] = np.concatenate((raw[:, :COLUMNS], raw[:, -COLUMNS:]), axis=1)
            found[f"{key}.hash"] = hashes(raw)
            for turn in range(3 if shape[1] < 10_000 else 1):
                weights, _, _ = probe(*shape, turn * shape[1])
                counted = torch.nn.functional.linear(torch.ones_like(x), weights.cuda()).float() * 2.0**14
                if bool((counted == counted[:1]).all()):
                    counted = counted[:1]
                found[f"probe/{shape}/{rows}/{turn}"] = counted.cpu().numpy().astype(np.int32)
    for base in (10_000.0, 100_000.0, 500_000.0, 1_000_000.0, 5_000_000.0):
        for rotary in (64, 128):
            exponent = torch.arange(0, rotary, 2, dtype=torch.float, device="cuda") / rotary
            frequency = 1.0 / (base**exponent)
            found[f"inverse_frequencies/{base:.0f}/{rotary}"] = frequency.cpu().numpy()
            turned = torch.einsum(
                "i,j -> ij", torch.arange(8192, dtype=torch.float, device="cuda"), frequency
            )
            angle = turned.cpu().numpy()
            mine = np.arange(8192, dtype=np.float32)[:, None] * own.inverse_frequencies(base, rotary)[None]
            counts = [
                int((mine != angle).sum()),
                int((own.cosf(angle) != turned.cos().cpu().numpy()).sum()),
                int((own.sinf(angle) != turned.sin().cpu().numpy()).sum()),
            ]
            lines.append(f"rotary {base:.0f} {rotary}: angles, cosines, sines that differ {counts}")
    try:
        lines += compare_operations()
    except Exception:
        lines.append(traceback.format_exc())
    found["lines"] = np.array("\n".join(lines))
    np.savez_compressed(out, **found)
    print("\n".join(lines), flush=True)


def compare_operations() -> list[str]:
    """Compare vLLM's own binaries of the small operations with `qdx.kernels.operations`."""
    import vllm._custom_ops  # noqa: F401  registers torch.ops._C
    from vllm.model_executor.layers.activation import SiluAndMul  # noqa: F401

    from qdx.kernels import operations

    lines = []

    def compare(name: str, card: Tensor, own: Tensor) -> None:
        differ = int((card.cpu().view(torch.int16) != own.view(torch.int16)).sum())
        lines.append(f"vLLM's {name}: {own.numel()} outputs, {differ} differ")

    for tokens in (1, 4, 23, 120, 255, 256, 300, 1000):
        x = small_model.halves(f"norm x {tokens}", 3071, -9, tokens, 768)
        residual = small_model.halves(f"norm r {tokens}", 3071, -9, tokens, 768)
        weight = small_model.norm_weight("norm")
        y = torch.empty_like(x).cuda()
        torch.ops._C.rms_norm(y, x.cuda(), weight.cuda(), 7.5e-6)
        compare(f"rms_norm, {tokens} tokens", y, operations.rms_norm(x, weight, 7.5e-6))
        y, r = x.cuda(), residual.cuda()
        torch.ops._C.fused_add_rms_norm(y, r, weight.cuda(), 7.5e-6)
        out, added = operations.fused_add_rms_norm(x, residual, weight, 7.5e-6)
        compare(f"fused_add_rms_norm, {tokens} tokens", y, out)
        compare(f"fused_add_rms_norm's residual, {tokens} tokens", r, added)
        x = small_model.halves(f"act x {tokens}", 3071, -9, tokens, 3072)
        y = torch.empty(tokens, 1536, dtype=torch.float16).cuda()
        torch.ops._C.silu_and_mul(y, x.cuda())
        compare(f"silu_and_mul, {tokens} tokens", y, operations.silu_and_mul(x))
        q = small_model.halves(f"rope q {tokens}", 3071, -9, tokens, 12, 64)
        k = small_model.halves(f"rope k {tokens}", 3071, -9, tokens, 4, 64)
        cache = small_model.halves(f"rope cache {tokens}", 2047, -11, tokens, 64)
        q_card, k_card = q.view(tokens, -1).cuda(), k.view(tokens, -1).cuda()
        torch.ops._C.rotary_embedding(torch.arange(tokens).cuda(), q_card, k_card, 64, cache.cuda(), True)
        compare(
            f"rotary_embedding, {tokens} tokens", q_card.view(q.shape), operations.rotary_embedding(q, cache)
        )
        compare(
            f"rotary_embedding's keys, {tokens}", k_card.view(k.shape), operations.rotary_embedding(k, cache)
        )
    return lines


# --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the parts side by side and gather their files."""
    if len(sys.argv) > 2:
        part, out = sys.argv[1], Path(sys.argv[2])
        if part == "attention":
            record_attention(out)
        elif part == "cublas":
            record_cublas(out)
        else:
            record_model(part, out)
        return
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    folder, start = Path(tempfile.mkdtemp()), time.time()
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "VLLM_LOGGING_LEVEL": "ERROR"}
    running = {}
    for part in (*CONFIGS, "attention", "cublas"):
        log = (folder / f"{part}.log").open("w")
        running[part] = subprocess.Popen(
            [sys.executable, __file__, part, str(folder / f"{part}.npz")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        time.sleep(2)
    for part, process in running.items():
        try:
            code: int | str = process.wait(timeout=max(1.0, 400 - (time.time() - start)))
        except subprocess.TimeoutExpired:
            process.kill()
            code = "out of time"
        text = (folder / f"{part}.log").read_text()
        print(f"== {part}: {code}, {time.time() - start:.0f} s\n{text[-1500:]}", flush=True)
        (out / "log.txt").open("a").write(f"== {part}: {code}\n{text[-20000:]}\n")
    others: dict[str, NDArray[Any]] = {}
    for part in running:
        path = folder / f"{part}.npz"
        if not path.exists():
            continue
        if part == FIRST or part not in CONFIGS:
            name = "layers" if part == FIRST else part
            with np.load(path) as file:
                np.savez_compressed(out / f"{name}.npz", **file)
        else:
            with np.load(path) as file:
                others.update(file)
    np.savez_compressed(out / "others.npz", **others)
    for path in sorted(out.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
