"""Files in the original experiment's structure, with its matrices computed in plain Python."""

from __future__ import annotations

import math
import random
from typing import Any

CONFIGS = {"awq": "awq", "awq_marlin": "awq_marlin", "gptq": "gptq", "gptq_marlin": "gptq_marlin"}
POSITIONS = ("pos_-3", "pos_-2", "pos_-1")


def listed(generator: random.Random, pool: list[int], actual: int) -> dict[str, Any]:
    """One row's list: the actual token first, then the likeliest that are not it, five or six ids."""
    top = generator.sample(pool, 5)
    ids = list(dict.fromkeys([actual, *top]))
    return {"logprobs": {"token_ids": ids, "log_probs": [-generator.expovariate(0.4) for _ in ids]}}


def results(seed: int = 0, references: int = 3, disjoint: bool = True) -> dict[str, Any]:
    """A result file; with `disjoint`, gptq's decode of reference 1 shares no id with anybody's."""
    generator = random.Random(seed)
    prompts = [[generator.randrange(1000) for _ in range(20 + 3 * r)] for r in range(references)]
    generations: dict[str, list[dict[str, Any]]] = {}
    for name in CONFIGS:
        generations[name] = []
        for r, prompt in enumerate(prompts):
            output = [generator.randrange(1000) for _ in range(10)]
            pool = list(range(5000, 5010)) if disjoint and name == "gptq" and r == 1 else list(range(9))
            generations[name].append(
                {
                    "ref_idx": r,
                    "prompt_ids": prompt,
                    "generated_ids": output,
                    "prompt_length": len(prompt),
                    "num_generated": len(output),
                    "prefill_signals": {
                        key: listed(generator, list(range(9)), prompt[i])
                        for key, i in zip(POSITIONS, (-3, -2, -1), strict=True)
                    },
                    "decode_signals": {
                        key: listed(generator, pool, output[i] if i % 2 else pool[0])
                        for key, i in zip(POSITIONS, (-3, -2, -1), strict=True)
                    },
                }
            )
    file: dict[str, Any] = {
        "metadata": {
            "environment": {"gpu_name": "NVIDIA A100", "vllm_version": "0.11.2", "torch_version": "2.9.0"},
            "model_configs": {
                name: {"model_name": f"Qwen/Qwen3-8B-{q[:4]}", "quantization": q, "dtype": "float16"}
                for name, q in CONFIGS.items()
            },
            "max_new_tokens": 10,
            "tokens_per_slice": 20,
            "num_references": references,
            "top_k_logprobs": 5,
            "timestamp": "2025-11-30T12:00:00",
        },
        "generations": generations,
        "noise_floors": {
            name: {"decode": math.inf if name == "gptq" else 0.0, "prefill": 0.0} for name in CONFIGS
        },
        "snr_analysis": {"prefill": {"snr": math.inf}},
    }
    for phase in ("prefill", "decode"):
        file[f"{phase}_sanity_check"] = check(generations, f"{phase}_signals", references)
    return file


def check(generations: dict[str, list[dict[str, Any]]], signals: str, references: int) -> dict[str, Any]:
    """The file's own matrices: infinity where nothing is shared."""
    names = list(generations)
    each = []
    for r in range(references):
        each.append(
            [[pair(generations[a][r][signals], generations[b][r][signals]) for b in names] for a in names]
        )
    count = range(len(names))
    matrix = [[sum(m[i][j] for m in each) / references for j in count] for i in count]
    off = [matrix[i][j] for i in count for j in count if i != j and not math.isinf(matrix[i][j])]
    return {
        "matrix": matrix,
        "per_reference_matrices": each,
        "off_diagonal_mean": sum(off) / len(off),
        "equivalent_pairs": [],
        "kernel_classes": [[name] for name in names],
        "pairwise_distances": {f"{a}-{b}": 1.0 for a in names for b in names if a < b},
    }


def pair(a: dict[str, Any], b: dict[str, Any]) -> float:
    found = []
    for key in POSITIONS:
        p, q = a[key]["logprobs"], b[key]["logprobs"]
        total, shared = 0.0, 0
        for i in range(5):
            for j in range(len(q["token_ids"])):
                if p["token_ids"][i] == q["token_ids"][j]:
                    total += (p["log_probs"][i] - q["log_probs"][j]) ** 2
                    shared += 1
        if shared:
            found.append(total**0.5)
    return sum(found) / len(found) if found else math.inf


def verification(references: int = 4) -> dict[str, Any]:
    """A verification file whose diagonal is the nearest but for gptq, which is noisy."""
    generator = random.Random(3)
    comparisons = []
    for r in range(references):
        for claimed in CONFIGS:
            for verifier in CONFIGS:
                base = 0.3 if claimed == verifier else 1.0 if claimed[:3] == verifier[:3] else 5.0
                base = 2.0 if claimed == verifier == "gptq" else base
                values = {key: base * (0.9 + 0.2 * generator.random()) for key in POSITIONS}
                gone = dict.fromkeys(POSITIONS, math.inf) if base == 5.0 else values
                comparisons.append(
                    {
                        "ref_idx": r,
                        "claimed_config": claimed,
                        "verify_config": verifier,
                        "is_diagonal": claimed == verifier,
                        "prefill_distances": values,
                        "decode_distances": gone,
                    }
                )
    return {
        "metadata": {
            "reference_gpu": "A100",
            "verifier_gpu": "H100",
            "reference_environment": {"torch": "2.8"},
            "verifier_environment": {"torch": "2.9"},
            "note": "kept",
        },
        "comparisons": comparisons,
        "prefill_analysis": {"correct": 7},
        "decode_analysis": {"correct": 8},
    }
