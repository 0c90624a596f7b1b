"""Check a checkpoint's weight files, read from their headers, against its config.json.

Nothing here needs torch or reads weights: a header names every tensor with its type, shape and place. What
is found wrong would otherwise end in a wrong number (scales that nobody applies, one of two heads) or in a
traceback hours later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdx.errors import QdxError
from qdx.models.identity import GGUF, weight_files
from qdx.models.stated import read_object

MOST_HEADER = 100 << 20  # bytes; safetensors itself reads no longer one
# What only weights are packed with. Masks and position ids are whole numbers, too, and are not weights.
PACKINGS = (
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
    "weight_zero_point",
    "input_scale",
    "k_scale",
    "v_scale",
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "SCB",
    "weight_format",
)
FLOATS = ("F64", "F32", "F16", "BF16")
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
LFS = b"version https://git-lfs"


@dataclass(frozen=True)
class Stored:
    """One tensor of a weight file.

    Attributes
    ----------
    file : Path
    dtype : str
        As safetensors names it: ``F16``, ``BF16``, ``F8_E4M3``, ``I32`` …
    shape : tuple of int
    start, end : int
        First and last + 1 byte in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def contents(path: Path) -> dict[str, Stored]:
    """Return every tensor of a checkpoint folder, by name.

    Raises
    ------
    QdxError
        When a file is cut off or no safetensors file, a tensor stands in two files, or the index names
        tensors that are not where it says.
    """
    path = Path(path)
    found: dict[str, Stored] = {}
    for file in weight_files(path):
        if file.name == GGUF:  # held against what it states when its folder was made
            continue
        for name, tensor in _header(file).items():
            if name in found:
                raise QdxError(
                    f"checkpoint {path}: {name} stands in {found[name].file.name} and in {file.name}, two "
                    "sets of weights in one folder: keep one of them"
                )
            found[name] = tensor
    index = path / "model.safetensors.index.json"
    if index.is_file():
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]  # `weight_files` has checked it
        wrong = [name for name, file in where.items() if name not in found or found[name].file.name != file]
        if wrong:
            raise QdxError(
                f"checkpoint {path}: {index.name} names {len(wrong)} tensors that are not in the file "
                f"that it says, such as {wrong[0]}: it is of another set of weights, download both again"
            )
    return found


def _header(file: Path) -> dict[str, Stored]:
    def damaged(why: object) -> QdxError:
        return QdxError(f"checkpoint file {file} cannot be read ({why}): download it again")

    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            first = stream.read(8)
            if first == LFS[:8]:
                raise QdxError(
                    f"checkpoint file {file} is a pointer of Git LFS, not the weights: run git lfs pull there"
                )
            length = int.from_bytes(first, "little")
            if len(first) < 8 or length > min(size - 8, MOST_HEADER):
                raise damaged(f"no safetensors header, or it is cut off at {size} bytes")
            stated: Any = json.loads(stream.read(length))
    except OSError as error:
        raise damaged(error.strerror or error) from error
    except (ValueError, RecursionError) as error:
        raise damaged(f"its header is not JSON: {error}") from error
    found, last = {}, 0
    try:
        for name, one in stated.items():
            if name == "__metadata__":
                continue
            start, end = one["data_offsets"]
            last = max(last, end)
            shape = tuple(int(n) for n in one["shape"])
            found[name] = Stored(file, str(one["dtype"]), shape, 8 + length + start, 8 + length + end)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(f"its header is none of safetensors: {type(error).__name__}") from error
    if 8 + length + last != size:
        raise damaged(f"it has {size} bytes, its header tells of {8 + length + last}")
    return found


def check_contents(path: Path, format: str) -> None:
    """Refuse weight files that do not hold what config.json says, whatever engine runs them.

    Parameters
    ----------
    path : Path
        Checkpoint folder.
    format : str
        As config.json says.

    Raises
    ------
    QdxError
        A file of settings that is not JSON, a second set of weights, an adapter, packed or 8-bit weights
        without a quantization_config, or a stored head under ``tie_word_embeddings=true`` that is not the
        embedding.
    """
    path = Path(path)
    for name in SETTINGS:
        if (path / name).is_symlink() or (path / name).exists():
            read_object(path / name)
    for name, what in (
        ("adapter_config.json", "an adapter, which would not be applied: merge it into the weights"),
        ("adapter_model.safetensors", "an adapter, which would not be applied: merge it into the weights"),
    ):
        if (path / name).exists():
            raise QdxError(f"checkpoint {path} holds {name}, {what}, and remove it")
    one, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if one.exists() and index.is_file() and one not in weight_files(path):
        raise QdxError(
            f"checkpoint {path} holds two sets of weights, {one.name} and the shards of {index.name}; "
            "engines differ in which they take: remove one"
        )
    tensors = contents(path)
    if format == "none":
        _not_packed(path, tensors)
    if any(name.endswith(HEADS) for name in tensors) and _is_tied(path):
        _one_head(path, tensors)


def _not_packed(path: Path, tensors: Mapping[str, Stored]) -> None:
    packed = [name for name in tensors if name.rpartition(".")[2] in PACKINGS]
    narrow = [
        name
        for name, one in tensors.items()
        if one.dtype not in FLOATS and name.endswith(".weight") and len(one.shape) >= 2
    ]
    for names, what in ((packed, "quantized"), (narrow, "integer or 8-bit")):
        if names:
            raise QdxError(
                f"checkpoint {path} holds {len(names)} {what} tensors, such as {names[0]} "
                f"({tensors[names[0]].dtype}), and its config.json states no quantization_config: quant=none "
                "would compute with weights that nobody scales; give the dense checkpoint, or one whose "
                "config.json states how it is quantized"
            )


def _is_tied(path: Path) -> bool:
    """Return whether the model's head is its embedding, as config.json says, or else its architecture."""
    config = read_object(path / "config.json")
    inner = config.get("text_config")
    stated = [one.get("tie_word_embeddings") for one in (config, inner) if isinstance(one, dict)]
    known = [value for value in stated if value is not None]
    if known:
        return any(known)
    from transformers import AutoConfig

    try:
        read = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (
        Exception
    ):  # an architecture that this transformers does not know: its backend says so, vLLM may run it
        return False
    return bool(getattr(read.get_text_config(), "tie_word_embeddings", False))


def _one_head(path: Path, tensors: Mapping[str, Stored]) -> None:
    heads = [name for name in tensors if name.endswith(HEADS)]
    pattern = re.compile(rf"(^|\.)({'|'.join(EMBEDDINGS)})\.weight$")
    embeddings = [name for name in tensors if pattern.search(name)]
    for head in heads:
        same_size = [name for name in embeddings if tensors[name].shape == tensors[head].shape]
        if any(_bytes(tensors[name]) == _bytes(tensors[head]) for name in same_size or []):
            continue
        raise QdxError(
            f"checkpoint {path} holds {head}, and its config.json says tie_word_embeddings=true, by which "
            "engines drop it and take the embedding instead: the two differ, so its logits depend on the "
            "engine; set tie_word_embeddings=false if the head is meant, else remove the tensor"
        )


def _bytes(tensor: Stored) -> tuple[str, bytes]:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        return tensor.dtype, stream.read(tensor.end - tensor.start)
