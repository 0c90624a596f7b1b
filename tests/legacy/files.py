"""Files in the original experiment's structure, made of random numbers, with its analyses in plain Python.

Every function writes one form as the public repository
NaciCankaya/Floating_point_noise_GPU_verification has it, key by key; no number of it is here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

CONFIGS = {"awq": "awq", "awq_marlin": "awq_marlin", "gptq_marlin": "gptq_marlin", "gptq": "gptq"}
POSITIONS = ("pos_-3", "pos_-2", "pos_-1")
MACHINE = {
    "hostname": "pod", "platform": "Linux", "python_version": "3.12.3", "torch_version": "2.9.0+cu128",
    "cuda_version": "12.8", "cudnn_version": "91002", "transformers_version": "4.57.3",
    "numpy_version": "2.2.6", "gpu_name": "NVIDIA A100", "vllm_version": "0.11.2", "gpu_count": 1,
}  # fmt: skip
SIZES = [1, 2, 4]


def listed(generator: random.Random, pool: list[int], actual: int) -> dict[str, Any]:
    """One row's list: the actual token first, then the likeliest that are not it, five or six ids."""
    top = generator.sample(pool, 5)
    ids = list(dict.fromkeys([actual, *top]))
    return {"logprobs": {"token_ids": ids, "log_probs": [-generator.expovariate(0.4) for _ in ids]}}


def results(seed: int = 0, references: int = 3, disjoint: bool = True) -> dict[str, Any]:
    """A result file; with `disjoint`, gptq's decode of reference 1 shares no id with anybody's.

    The outputs of one checkpoint are equal, the two checkpoints' split at token 4.
    """
    generator = random.Random(seed)
    prompts = [[generator.randrange(1000) for _ in range(20 + 3 * r)] for r in range(references)]
    outputs = [[generator.randrange(1000) for _ in range(10)] for _ in range(references)]
    generations: dict[str, list[dict[str, Any]]] = {}
    for name in CONFIGS:
        generations[name] = []
        for r, prompt in enumerate(prompts):
            output = (
                outputs[r]
                if name.startswith("awq")
                else [*outputs[r][:4], *(t + 1000 for t in outputs[r][4:])]
            )
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
    floors = {name: {"decode": 0.25 if name == "gptq" else 0.0, "prefill": 0.0} for name in CONFIGS}
    file: dict[str, Any] = {
        "metadata": {
            "environment": MACHINE,
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
        "noise_floors": floors,
    }
    for phase in ("prefill", "decode"):
        rows = [[generations[name][r][f"{phase}_signals"] for name in CONFIGS] for r in range(references)]
        file[f"{phase}_sanity_check"] = check(rows, list(CONFIGS), pair)
    signal = file["decode_sanity_check"]["off_diagonal_mean"]
    file["snr_analysis"] = {"noise_floor": 0.25 / 4, "signal": signal, "snr": signal / (0.25 / 4)}
    return file


def check(rows: list[list[Any]], keys: list[Any], distance: Callable[[Any, Any], float]) -> dict[str, Any]:
    """The file's own matrices of quantizations: infinity where nothing is shared."""
    each = [[[distance(a, b) for b in of] for a in of] for of in rows]
    count = range(len(keys))
    matrix = [[mean([m[i][j] for m in each]) for j in count] for i in count]
    off = [matrix[i][j] for i in count for j in count if i != j and not math.isinf(matrix[i][j])]
    return {
        "matrix": matrix,
        "per_reference_matrices": each,
        "off_diagonal_mean": mean(off),
        "equivalent_pairs": [],
        "kernel_classes": [[key] for key in keys],
        "pairwise_distances": {
            f"{keys[i]}_vs_{keys[j]}": (matrix[i][j] + matrix[j][i]) / 2
            for i in count
            for j in count
            if i < j
        },
    }


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def pair(a: dict[str, Any], b: dict[str, Any], whose: dict[str, Any] | None = None) -> float:
    """Mean over positions of the L2 at the first five ids of one row that both list."""
    found = []
    for key in POSITIONS:
        p, q = (row[key].get("signals", row[key])["logprobs"] for row in (a, b))
        first = p if whose is None else whose[key].get("signals", whose[key])["logprobs"]
        total, shared = 0.0, 0
        for token in first["token_ids"][:5]:
            if token in p["token_ids"] and token in q["token_ids"]:
                here = p["log_probs"][p["token_ids"].index(token)]
                total += (here - q["log_probs"][q["token_ids"].index(token)]) ** 2
                shared += 1
        if shared:
            found.append(total**0.5)
    return mean(found) if found else math.inf


def key_pair(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Mean over positions of the L2 of key vectors."""
    found = []
    for key in POSITIONS:
        p, q = (row[key].get("signals", row[key])["key_vectors"]["layer_28"] for row in (a, b))
        found.append(math.dist(p, q))
    return mean(found)


def distances(
    base: float, generator: random.Random, signals: tuple[str, ...] = ("logprobs",)
) -> dict[str, float]:
    """Mean and maximum of three positions."""
    found = {}
    for signal in signals:
        three = [base * (0.9 + 0.2 * generator.random()) for _ in POSITIONS]
        found |= {f"{signal}_mean": mean(three), f"{signal}_max": max(three)}
    return found


def verification(references: int = 4) -> dict[str, Any]:
    """A verification file whose diagonal is the nearest but for gptq, which is noisy."""
    generator = random.Random(3)
    comparisons = []
    for claimed in CONFIGS:
        for verifier in CONFIGS:
            for r in range(references):
                base = 0.3 if claimed == verifier else 1.0 if claimed[:3] == verifier[:3] else 5.0
                base = 2.0 if claimed == verifier == "gptq" else base
                comparisons.append(
                    {
                        "ref_idx": r,
                        "claimed_config": claimed,
                        "verify_config": verifier,
                        "is_diagonal": claimed == verifier,
                        "prefill_distances": distances(base, generator),
                        "decode_distances": distances(base / 2, generator),
                    }
                )
    file: dict[str, Any] = {
        "metadata": {
            "reference_gpu": "NVIDIA A100",
            "verifier_gpu": "NVIDIA H100",
            "reference_file": "a.json",
            "timestamp": "20251130_120000",
            "reference_environment": MACHINE,
            "verifier_environment": {**MACHINE, "gpu_name": "NVIDIA H100", "torch_version": "2.9.1+cu128"},
            "environment_validation": {"valid": False, "mismatches": [["torch_version", "2.9.1", "2.9.0"]]},
            "model_configs": {
                name: {"model_name": f"Qwen/Qwen3-8B-{q[:4]}", "quantization": q, "dtype": "float16"}
                for name, q in CONFIGS.items()
            },
            "prefill_equivalent_pairs": [],
            "decode_equivalent_pairs": [],
        },
        "comparisons": comparisons,
    }
    names = list(CONFIGS)
    for phase in ("prefill", "decode"):
        each = matrices(comparisons, "config", names, phase, "logprobs")
        own = across(each, names, [])
        noise = {
            f"{a}_vs_{b}": pair_ratio(own["matrix"], names.index(a), names.index(b))
            for a in names for b in names if names.index(a) < names.index(b)
        }  # fmt: skip
        file[f"{phase}_analysis"] = {
            "matrix": own["matrix"], "per_reference_matrices": each,
            **{k: own[k] for k in ("baseline_mean", "signal_all_mean", "signal_meaningful_mean", "snr_all",
                                   "snr_meaningful")},
            "excluded_pairs": [], "n_excluded_cells": 0, "n_meaningful_pairs": 12, "pairwise_snr": noise,
        }  # fmt: skip
    return file


def matrices(comparisons: list[Any], key: str, values: list[Any], phase: str, signal: str) -> list[Any]:
    """Per reference, claimed × verified."""
    reference = "ref_idx" if "ref_idx" in comparisons[0] else "ref_name"
    found = {
        (c[reference], c[f"claimed_{key}"], c[f"verify_{key}"]): c[f"{phase}_distances"][f"{signal}_mean"]
        for c in comparisons
    }
    references = sorted({c[reference] for c in comparisons})
    return [[[found[r, a, b] for b in values] for a in values] for r in references]


def across(each: list[Any], values: list[Any], excluded: list[list[Any]]) -> dict[str, Any]:
    """What the original made of matrices over references."""
    count = range(len(values))
    matrix = [[mean([m[i][j] for m in each]) for j in count] for i in count]
    gone = [(a, b) for a, b in excluded] + [(b, a) for a, b in excluded]
    off = [matrix[i][j] for i in count for j in count if i != j]
    kept = [matrix[i][j] for i in count for j in count if i != j and (values[i], values[j]) not in gone]
    diagonal = mean([matrix[i][i] for i in count])
    return {
        "matrix": matrix,
        "baseline_mean": diagonal,
        "signal_all_mean": mean(off),
        "signal_meaningful_mean": mean(kept) if kept else 0.0,
        "snr_all": mean(off) / diagonal if diagonal else math.inf,
        "snr_meaningful": (mean(kept) / diagonal if diagonal else math.inf) if kept else 1.0,
        "n_meaningful_pairs": len(kept),
    }


def pair_ratio(matrix: list[list[float]], i: int, j: int) -> dict[str, float]:
    signal, noise = (matrix[i][j] + matrix[j][i]) / 2, (matrix[i][i] + matrix[j][j]) / 2
    return {"signal": signal, "noise_floor": noise, "snr": signal / noise}


def batch_verification(style: str = "new", excluded: bool = True) -> dict[str, Any]:
    """A verification of batch sizes by Transformers: two signals; `style`: how analyses are laid out."""
    generator = random.Random(7)
    both = ("key_vectors", "logprobs")
    comparisons = [
        {
            "ref_name": f"ref_{r}",
            "claimed_batch_size": claimed,
            "verify_batch_size": verifier,
            "prefill_distances": distances(1.0, generator, both),
            "decode_distances": distances(0.5, generator, both),
        }
        for r in range(3)
        for claimed in SIZES
        for verifier in SIZES
    ]
    pairs = {"prefill": [[1, 2]] if excluded else [[1, 2], [1, 4], [2, 4]], "decode": []}
    file: dict[str, Any] = {
        "metadata": {
            "reference_environment": MACHINE, "verifier_environment": MACHINE, "batch_sizes": SIZES,
            "layer_indices": [28], "prefill_equivalent_pairs": pairs["prefill"],
            "decode_equivalent_pairs": pairs["decode"],
        },
        "comparisons": comparisons,
    }  # fmt: skip
    for phase in ("prefill", "decode"):
        node: dict[str, Any] = {}
        for signal, short in (("key_vectors", "key"), ("logprobs", "logprob")):
            each = matrices(comparisons, "batch_size", SIZES, phase, signal)
            own = across(each, SIZES, pairs[phase])
            if style == "new":
                node[f"per_reference_{short}_matrices"] = each
                node[signal] = own
            else:
                node.setdefault("matrices", {})[signal] = own["matrix"]
                node[signal] = {
                    "diagonal_mean": own["baseline_mean"], "off_diagonal_mean": own["signal_all_mean"],
                    "snr": own["snr_all"], "snr_meaningful": own["snr_meaningful"],
                }  # fmt: skip
        node["excluded_pairs"] = pairs[phase]
        file[f"{phase}_analysis"] = node
    return file


def batch_measurements(engine: str = "vllm") -> dict[str, Any]:
    """Rows of batch sizes on one machine, by vLLM or by Transformers (key vectors, one place further).

    Sizes 1 and 2 are bit-equal in prefill, and another size's list holds other ids, so that the two rules of
    comparing differ.
    """
    generator = random.Random(11)
    measurements: list[dict[str, Any]] = []
    rows: dict[str, list[list[Any]]] = {"prefill": [], "decode": []}
    for r in range(2):
        prompt = [generator.randrange(1000) for _ in range(12)]
        output = [generator.randrange(1000) for _ in range(6)]
        of: dict[str, list[Any]] = {"prefill": [], "decode": []}
        for size in SIZES:
            one: dict[str, Any] = {"ref_name": f"ref_{r}", "batch_size": size}
            if engine == "vllm":
                one |= {"prompt_length": 12, "num_generated": 6}
            one |= {
                "generated_ids": output,
                "prompt_token_ids": [
                    prompt,
                    *([generator.randrange(1000) for _ in prompt] for _ in range(size - 1)),
                ],
                "all_batch_generated_ids": [output] * size,
            }
            for phase in ("prefill", "decode"):
                if size == 2 and phase == "prefill":
                    signals = of["prefill"][0]
                else:
                    signals = {
                        key: forward(generator, engine, phase, 6 + i, 12 + 6 + i - 1)
                        for key, i in zip(POSITIONS, (-3, -2, -1), strict=True)
                    }
                one[f"{phase}_signals"] = signals
                of[phase].append(signals)
            measurements.append(one)
        for phase, signals_of in of.items():
            rows[phase].append(signals_of)
    file: dict[str, Any] = {
        "metadata": {"environment": MACHINE, "batch_sizes": SIZES},
        "measurements": measurements,
    }
    if engine == "vllm":
        file["metadata"] |= {"model": "Qwen", "timestamp": "t", "max_new_tokens": 6, "top_k_logprobs": 20}
    else:
        file["metadata"]["layer_indices"] = [28]
    for phase in ("prefill", "decode"):
        file[f"{phase}_sanity_check"] = within(rows[phase], engine)
    return file


def forward(generator: random.Random, engine: str, phase: str, step: int, position: int) -> dict[str, Any]:
    """One row of twenty ids; the first five of a pool of eight, in any order."""
    ids = generator.sample(range(8), 8) + list(range(100, 112))
    signals: dict[str, Any] = {
        "logprobs": {
            "token_ids": ids,
            "log_probs": sorted((-generator.expovariate(0.4) for _ in ids), reverse=True),
        }
    }
    if engine == "vllm":
        return signals
    signals = {"key_vectors": {"layer_28": [generator.gauss(0, 1) for _ in range(4)]}, **signals}
    return (
        signals if phase == "prefill" else {"step": step, "absolute_position": position, "signals": signals}
    )


def within(rows: list[list[Any]], engine: str) -> dict[str, Any]:
    """The original's analysis of batch sizes on one machine: vLLM's at the first size's ids, else own."""
    count = range(len(SIZES))
    upper = [(i, j) for i in count for j in count if i < j]
    found: dict[str, Any] = {}
    for short, signal in (("logprob", "logprobs"), ("key", "key_vectors")):
        if short == "key" and engine == "vllm":
            continue
        each = []
        for of in rows:
            whose = of[0] if engine == "vllm" else None
            distance = key_pair if short == "key" else lambda a, b, whose=whose: pair(a, b, whose)
            each.append([[0.0 if i == j else distance(of[i], of[j]) for j in count] for i in count])
        matrix = [[mean([m[i][j] for m in each]) for j in count] for i in count]
        triangle = [matrix[i][j] for i, j in upper]
        equal = [[SIZES[i], SIZES[j]] for i, j in upper if matrix[i][j] < 1e-9]
        classes = [[1, 2], [4]] if equal == [[1, 2]] else [[size] for size in SIZES]
        if engine == "vllm":
            found |= {
                "matrix": matrix, "per_reference_matrices": each, "off_diagonal_mean": mean(triangle),
                "off_diagonal_range": [min(triangle), max(triangle)], "equivalent_pairs": equal,
                "kernel_classes": classes,
            }  # fmt: skip
        else:
            found |= {
                f"{short}_matrix": matrix, f"per_reference_{short}_matrices": each,
                f"{signal}_mean": mean(triangle),
            }  # fmt: skip
            if short == "key":
                found |= {"equivalent_pairs": equal, "kernel_classes": classes}
    return found


def tp_measurements() -> dict[str, Any]:
    """Rows of tensor parallelism: an object by size, prefill only, no token ids."""
    generator = random.Random(5)
    sizes = ["1", "2", "4"]
    measurements = {
        size: [
            {"prefill_signals": {key: listed(generator, list(range(9)), 0) for key in POSITIONS}}
            for _ in range(3)
        ]
        for size in sizes
    }
    each = [
        [
            [
                0.0 if a == b else pair(*(measurements[s][r]["prefill_signals"] for s in (a, b, "1")))
                for b in sizes
            ]
            for a in sizes
        ]
        for r in range(3)
    ]
    return {
        "metadata": {
            "model": "Qwen", "dtype": "float16", "timestamp": "t", "tp_sizes": SIZES, "tokens_per_slice": 10,
            "num_references": 3, "top_k_logprobs": 5, "reproducibility_test_passed": True,
            "environments": {size: {**MACHINE, "tensor_parallel_size": int(size)} for size in sizes},
        },
        "prompt_texts": ["a", "b", "c"],
        "measurements": measurements,
        "within_hardware_analysis": {**parallel(each), "equivalent_pairs": []},
    }  # fmt: skip


def parallel(each: list[Any]) -> dict[str, Any]:
    """An analysis of tensor parallelism: null for an infinite ratio."""
    own = across(each, SIZES, [])
    return {
        "matrix": own["matrix"], "per_reference_matrices": each, "diagonal": own["baseline_mean"],
        "off_diagonal": own["signal_all_mean"],
        "snr": None if math.isinf(own["snr_all"]) else own["snr_all"],
    }  # fmt: skip


def tp_verification() -> dict[str, Any]:
    """Matrices of tensor parallelism on one machine and across two, and no rows."""
    generator = random.Random(9)
    each = [[[generator.random() for _ in SIZES] for _ in SIZES] for _ in range(3)]
    same = [[[0.0 if i == j else 0.2 for j in range(3)] for i in range(3)] for _ in range(3)]
    machines = {str(size): {**MACHINE, "tensor_parallel_size": size} for size in SIZES}
    return {
        "metadata": {
            "model": "Qwen", "dtype": "float16", "reference_file": "a.json", "timestamp": "t",
            "tp_sizes": SIZES,
            "reproducibility_test_passed": True, "reference_environments": machines,
            "verifier_environments": machines,
        },
        "within_hardware_analysis": {**parallel(same), "equivalent_pairs": []},
        "cross_hardware_analysis": parallel(each),
    }  # fmt: skip


def attention_verification() -> dict[str, Any]:
    """Mean matrices of attention implementations, of two signals."""
    generator = random.Random(13)
    names = ["eager", "sdpa", "flash_attention_2"]
    machines = {name: {**MACHINE, "attn_implementation": name} for name in names}
    phases = {}
    for phase in ("prefill", "decode"):
        node: dict[str, Any] = {}
        for short in ("key", "logprob"):
            own = across([[[generator.random() for _ in names] for _ in names]], names, [])
            node |= {
                f"{short}_matrix": own["matrix"], f"diagonal_{short}": own["baseline_mean"],
                f"off_diagonal_{short}": own["signal_all_mean"], f"{short}_snr": own["snr_all"],
            }  # fmt: skip
        phases[phase] = node
    return {
        "metadata": {
            "reference_file": "a.json", "reference_environments": machines, "verifier_environments": machines,
        },
        "cross_hardware": phases,
    }  # fmt: skip


def activations(kind: str = "batches") -> dict[str, Any]:
    """Vectors again and again, of batch sizes in float16 or of layers in bfloat16; rounded statistics."""
    generator = random.Random(17)
    names = [f"batch_size_{s}" for s in SIZES] if kind == "batches" else ["layer_1", "layer_7"]
    raw = {}
    for name in names:
        vector = [generator.gauss(0, 5) for _ in range(16)]
        raw[name] = [vector] * 4
    bits = 11 if kind == "batches" else 8
    norms = {name: rounded(math.hypot(*runs[0]), bits) for name, runs in raw.items()}
    file: dict[str, Any] = {
        "experiment": "e", "timestamp": "t", "model": "m",
        "config": {"repetitions": 4, "prompt_tokens": 9, "hidden_dim": 16,
                   "dtype": "float16" if kind == "batches" else "bfloat16"},
        "raw_activations": raw,
    }  # fmt: skip
    if kind == "batches":
        file["hardware"] = {"gpu": "NVIDIA A100", "pytorch": "2.9", "cuda": "12.8"}
        file["statistical_noise"] = {name: {"mean": 0.0, "std": 0.0} for name in names}
        file["systematic_deviations"] = {
            f"bs{a}_vs_bs{b}": rounded(math.dist(raw[f"batch_size_{a}"][0], raw[f"batch_size_{b}"][0]), bits)
            for a in SIZES for b in SIZES if a != b
        }  # fmt: skip
        file["activation_norms"] = norms
    else:
        file["layer_statistics"] = {
            name: {"mean_norm": norms[name], "std_within_reps": 0.0} for name in names
        }
        file["reproducibility"] = {"all_repetitions_identical": True}
    return file


def rounded(value: float, bits: int) -> float:
    """Rounded to a number of significant bits."""
    scale = 2.0 ** (math.floor(math.log2(value)) - bits + 1)
    return round(value / scale) * scale


FORMS: dict[str, Callable[[], dict[str, Any]]] = {
    "generations": results,
    "verification": verification,
    "batch_verification": batch_verification,
    "batch_verification_old": lambda: batch_verification("old"),
    "batch_measurements_vllm": batch_measurements,
    "batch_measurements_transformers": lambda: batch_measurements("transformers"),
    "tp_measurements": tp_measurements,
    "tp_verification": tp_verification,
    "attention_verification": attention_verification,
    "activations_of_batches": activations,
    "activations_of_layers": lambda: activations("layers"),
}
