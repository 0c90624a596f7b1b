"""Check a checkpoint's weight files, read from their headers, against its config.json.

Nothing here needs torch or reads weights: a header names every tensor with its type, shape and place. What
is found wrong would otherwise end in a wrong number (scales that nobody applies, one of two heads) or in a
traceback hours later.
"""

from __future__ import annotations

import json
import math
import operator
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # and how numpy reads their bytes
# Bits of a number, as safetensors counts them.
WIDTHS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
AT_ONCE = 1 << 22  # numbers of two tensors that are compared at once
HEADS = ("lm_head.weight", "embed_out.weight")
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
# What a model computes itself, and older checkpoints hold all the same: no weights.
BUFFERS = re.compile(
    r"(rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|attention\.bias|attention\.masked_bias|position_ids"
    r"|token_type_ids|num_batches_tracked)$"
)
OWN = ("none", "awq", "gptq")  # formats that qdx reads itself; an engine holds the others to their config
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
READ = (".json", ".jinja", ".model", ".txt", ".safetensors")  # what is read of a checkpoint's folder
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
INDEX = "model.safetensors.index.json"
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
    index = path / INDEX
    found: dict[str, Stored] = {}
    for file in weight_files(path):
        if file.name == GGUF:  # held against what it states when its folder was made
            continue
        for name, tensor in _header(file).items():
            twice = found.get(name)
            if twice is not None and not index.is_file():
                raise QdxError(
                    f"checkpoint {path}: {name} stands in {twice.file.name} and in {file.name}, two "
                    "sets of weights in one folder: keep one of them"
                )
            if twice is not None and not _same_bytes(twice, tensor):
                raise QdxError(
                    f"checkpoint {path}: {name} stands in {twice.file.name} and in {file.name} with other "
                    "values, and engines differ in which they take: download the checkpoint again"
                )
            found[name] = tensor
    if index.is_file():
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]  # `weight_files` has checked it
        held = {file: set(_header(path / file)) for file in set(where.values())}
        wrong = [name for name, file in where.items() if name not in held[file]]
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
        state = file.stat()
        if not stat.S_ISREG(state.st_mode):
            raise damaged("it is not a regular file")
        size = state.st_size
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
                if not all(isinstance(value, str) for value in one.values()):
                    raise ValueError("its __metadata__ holds more than strings")
                continue
            start, end = map(operator.index, one["data_offsets"])
            shape = tuple(int(n) for n in one["shape"])
            width = WIDTHS.get(str(one["dtype"]))
            if width is not None and (end - start) * 8 != math.prod(shape) * width:
                raise ValueError(f"{name} of {one['dtype']} {shape} has {end - start} bytes")
            found[name] = Stored(file, str(one["dtype"]), shape, 8 + length + start, 8 + length + end)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(f"its header is none of safetensors: {type(error).__name__}: {error}") from error
    for name, one in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if one.start != 8 + length + last:
            raise damaged(f"its header is none of safetensors: {name} does not begin where another one ends")
        last = one.end - 8 - length
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
    for file in path.iterdir():
        if file.suffix in READ and file.is_symlink() and not file.exists():
            raise QdxError(
                f"{file} is a link to a file that is not there: the checkpoint is damaged, download it again"
            )
    for name in ADAPTERS:
        if (path / name).exists():
            raise QdxError(
                f"checkpoint {path} holds {name}, an adapter, which would not be applied: merge it into the "
                "weights, and remove it"
            )
    one, index = path / "model.safetensors", path / INDEX
    if one.exists() and index.is_file() and one not in weight_files(path):
        raise QdxError(
            f"checkpoint {path} holds two sets of weights, {one.name} and the shards of {index.name}; "
            "engines differ in which they take: remove one"
        )
    tensors = contents(path)
    if format in OWN:
        _all_floats(path, tensors, format)
    if any(name.endswith(HEADS) for name in tensors) and _is_tied(path):
        _one_head(path, tensors)


def _all_floats(path: Path, tensors: Mapping[str, Stored], format: str) -> None:
    """Refuse scales, and integer or 8-bit weights, that nothing in config.json tells how to read."""
    layers = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    layers = layers if format != "none" else set()
    others = {name: one for name, one in tensors.items() if name.rpartition(".")[0] not in layers}
    packed = [name for name in others if name.rpartition(".")[2] in PACKINGS]
    narrow = [name for name, one in others.items() if one.dtype not in FLOATS and _is_weight(name, one)]
    if format == "none":
        said = "its config.json states no quantization_config"
        remedy = "give the dense checkpoint, or one whose config.json states how it is quantized"
    else:
        said = f"its config.json says {format}, which stores its layers otherwise"
        remedy = "give a checkpoint that is quantized in one way, or leaves its other layers dense"
    for names, what in ((packed, "quantized"), (narrow, "integer or 8-bit")):
        if names:
            raise QdxError(
                f"checkpoint {path} holds {len(names)} {what} tensors, such as {names[0]} "
                f"({tensors[names[0]].dtype}), and {said}: quant={format} would compute with weights that "
                f"nobody scales; {remedy}"
            )


def _is_weight(name: str, tensor: Stored) -> bool:
    """Tell weights from masks, position ids and tables of whole numbers, which are stored as they are."""
    table = tensor.dtype in ("I64", "I32") and not name.endswith((".weight", ".bias"))
    return not table and not BUFFERS.search(name)


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
        if not embeddings:
            raise QdxError(
                f"checkpoint {path} holds {head} and no embedding, and its config.json says "
                "tie_word_embeddings=true, by which engines drop the head and look for the embedding: save "
                "the tensor under the embedding's name (which ends in embed_tokens.weight in most models)"
            )
        same_size = [name for name in embeddings if tensors[name].shape == tensors[head].shape]
        if any(same_values(tensors[name], tensors[head]) for name in same_size):
            continue
        raise QdxError(
            f"checkpoint {path} holds {head}, and its config.json says tie_word_embeddings=true, by which "
            "engines drop it and take the embedding instead: the two differ, so its logits depend on the "
            "engine; set tie_word_embeddings=false if the head is meant, else remove the tensor"
        )


def _same_bytes(one: Stored, other: Stored) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        for start in range(0, one.end - one.start, AT_ONCE):
            size = min(AT_ONCE, one.end - one.start - start)
            if first.read(size) != second.read(size):
                return False
    return True


def same_values(one: Stored, other: Stored) -> bool:
    """Return whether two tensors of one shape hold the same numbers, in whatever floating-point types."""
    count = math.prod(one.shape)
    for start in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - start)
        a, b = (_values(tensor, start, size) for tensor in (one, other))
        if not np.array_equal(a, b):
            return False
    return True


def _values(tensor: Stored, start: int, count: int) -> Any:
    """Return some numbers of a tensor, exactly."""
    width = WIDTHS[tensor.dtype] // 8
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start + start * width)
        data = stream.read(count * width)
    if tensor.dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, FLOATS[tensor.dtype])
