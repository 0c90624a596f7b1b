"""Read what a checkpoint's config files state about its quantization, in one spelling.

AutoAWQ wrote ``w_bit`` and ``q_group_size``, and its ``quant_config.json`` beside a config.json that says
nothing. AutoGPTQ did the same with ``quantize_config.json``. Engines read all of these, and so does qdx.
"""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from qdx.errors import QdxError

SPELLINGS = {"w_bit": "bits", "q_group_size": "group_size", "q_bits": "bits"}
SIDE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # and whose they usually are
MODELOPT = "hf_quant_config.json"
CHANGING = ("rotation", "adapter")  # of GPTQModel: a rotation of activations, a low-rank correction


def read_object(file: Path) -> dict[str, Any]:
    """Return the object that a JSON file of a checkpoint holds.

    Raises
    ------
    QdxError
        When it cannot be read, is not JSON, or not an object.
    """
    try:
        if file.exists() and not file.is_file():
            raise OSError("it is not a regular file")
        content = file.read_bytes()
        if content.startswith(codecs.BOM_UTF8):
            raise QdxError(
                f"{file} begins with a byte order mark, which engines do not read: save it without one"
            )
        value = json.loads(content.decode("utf-8"), parse_constant=_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise QdxError(
            f"{file} is not JSON ({error}): the checkpoint is damaged, download it again"
        ) from error
    if not isinstance(value, dict):
        raise QdxError(
            f"{file} holds {type(value).__name__}, must be a JSON object: the checkpoint is damaged"
        )
    return value


def _constant(name: str) -> float:
    """Return an infinity, which settings state for "no limit"; nothing can be computed with NaN."""
    if name == "NaN":
        raise ValueError("it states NaN for a number")
    return float(name)


def quantization_of(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return how a checkpoint says that it is quantized; empty when it says that it is not.

    Parameters
    ----------
    config : dict
        Its config.json.
    path : Path
        Its folder; the side files of early AutoGPTQ and AutoAWQ, and of ModelOpt, are looked for there.

    Returns
    -------
    dict
        With ``quant_method``, and with ``bits`` and ``group_size`` where the files spell them otherwise.

    Raises
    ------
    QdxError
        For a statement that is not an object, or two files that contradict each other.
    """
    stated = config.get("quantization_config")
    if stated is None:  # where a multimodal model keeps its language model's
        inner = config.get("text_config")
        stated = inner.get("quantization_config") if isinstance(inner, dict) else None
    if stated is None:  # compressed-tensors' older name, which engines read
        stated = config.get("compression_config")
    if stated is not None and not isinstance(stated, dict):
        raise QdxError(
            f"checkpoint {path}: quantization_config of config.json is {stated!r:.40}, must be an "
            "object: the checkpoint is damaged"
        )
    found = _spelt(stated, path / "config.json") if stated else {}
    if found and not isinstance(found.get("quant_method"), str):
        raise QdxError(
            f"checkpoint {path}: quantization_config of config.json states "
            f"quant_method={found.get('quant_method')!r}, so engines do not know how to read its weights: "
            f'add "quant_method": "{_method(found, "gptq")}" if that is how they were made'
        )
    for name, method in SIDE_FILES.items():
        if not (path / name).is_file():
            continue
        beside = _spelt(read_object(path / name), path / name)
        if not isinstance(beside.get("quant_method"), str):
            beside["quant_method"] = _method(beside, method)
        for key in ("bits", "group_size", "desc_act", "quant_method") if found else ():
            if key in found and key in beside and found[key] != beside[key]:
                raise QdxError(
                    f"checkpoint {path}: config.json states {key}={found[key]!r}, {name} {beside[key]!r}: "
                    "keep the one that describes its tensors"
                )
        found = found or beside
    if not found and (path / MODELOPT).is_file():
        inner = read_object(path / MODELOPT).get("quantization")
        algorithm = inner.get("quant_algo") if isinstance(inner, dict) else None
        if algorithm:
            return {"quant_method": f"modelopt {algorithm}"}
    return found


def _method(stated: dict[str, Any], usual: str) -> str:
    """Tell whose statement a side file without a method is: its own keys say it better than its name."""
    if {"zero_point", "version"} & set(stated):
        return "awq"
    return "gptq" if {"desc_act", "damp_percent"} & set(stated) else usual


def _spelt(stated: dict[str, Any], file: Path) -> dict[str, Any]:
    found = dict(stated)
    if isinstance(found.get("quant_method"), str):
        found["quant_method"] = found["quant_method"].lower()  # as engines compare it
    for old, new in SPELLINGS.items():
        if old not in found:
            continue
        value = found.pop(old)
        if found.setdefault(new, value) != value:
            raise QdxError(
                f"{file} states {old}={value!r} and {new}={found[new]!r}: keep the one that describes its "
                "tensors"
            )
    return found


def group_size_of(kind: str, stated: dict[str, Any], path: Path) -> int:
    """Return the group size that config.json states, and refuse packings that are not read here.

    Raises
    ------
    QdxError
        Naming the key, its value, and what is read.
    """
    wanted: list[tuple[str, Any, Any]] = [("bits", None, 4)]
    if kind == "awq":
        wanted += [("version", "gemm", "gemm"), ("format", "gemm", "gemm")]
    else:
        wanted += [("desc_act", False, False), ("checkpoint_format", "gptq", "gptq")]
        wanted += [("format", "gptq", "gptq"), ("is_marlin_format", False, False)]
    for key, default, value in wanted:
        got = stated.get(key)
        got = default if got is None else got
        if (got.lower() if isinstance(got, str) else got) != value:
            raise QdxError(
                f"checkpoint {path}: {kind} with {key}={got!r}, only {value!r} is read: use another "
                "checkpoint"
            )
    rules = stated.get("dynamic") or {}
    # a rule that begins with "-" leaves layers dense, which their tensors show
    if not isinstance(rules, dict) or not all(str(rule).startswith("-:") for rule in rules):
        raise QdxError(
            f"checkpoint {path}: {kind} with dynamic={str(rules)[:60]}, rules that give layers their own "
            "bits or groups; only one packing for all layers is read: use another checkpoint"
        )
    for key in CHANGING:
        if stated.get(key):
            raise QdxError(
                f"checkpoint {path}: {kind} with {key}={str(stated[key])[:60]}, which changes what its "
                "layers compute and is not read: use another checkpoint"
            )
    if str(word := stated.get("pack_dtype") or "int32").removeprefix("torch.") != "int32":
        raise QdxError(
            f"checkpoint {path}: {kind} with pack_dtype={word!r}, only 'int32' is read: use another "
            "checkpoint"
        )
    size = stated.get("group_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < -1 or size == 0:
        raise QdxError(
            f"checkpoint {path}: config.json states group_size={size!r}, must be a number such as 128 or -1"
        )
    return size
