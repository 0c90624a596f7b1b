"""Stream a checkpoint's layers out of its safetensors files, one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels.weights import QuantizedWeight
from qdx.models import awq, gptq
from qdx.models.checkpoint import format_of, read_config
from qdx.models.identity import weight_files

PARTS = ("qweight", "qzeros", "scales", "g_idx")


def iter_quantized(path: Path) -> Iterator[tuple[str, QuantizedWeight]]:
    """Yield every quantized linear layer of an awq or gptq checkpoint, in the order of its files.

    Parameters
    ----------
    path : Path
        Checkpoint folder; weights in one safetensors file or sharded.

    Yields
    ------
    tuple of str and QuantizedWeight
        The module's name, such as ``model.layers.0.mlp.down_proj``; only this layer is held in memory.

    Raises
    ------
    QdxError
        The checkpoint is not quantized, or a layer cannot be read; the message names the module.
    """
    path = Path(path)
    config = read_config(path)
    kind = format_of(config, path)
    if kind == "none":
        raise QdxError(f"checkpoint {path} is not quantized: its config.json has no quantization_config")
    group_size = _group_size(kind, config["quantization_config"], path)
    unpack = awq.unpack if kind == "awq" else gptq.unpack
    with _opened(path) as where:
        modules = [name.removesuffix(".qweight") for name in where if name.endswith(".qweight")]
        if not modules:
            raise QdxError(
                f"checkpoint {path} has no quantized layer (*.qweight), its config.json says {kind}"
            )
        for module in modules:
            names = [f"{module}.{part}" for part in PARTS if f"{module}.{part}" in where]
            tensors = {name.rpartition(".")[2]: where[name].get_tensor(name) for name in names}
            try:
                weight = unpack(tensors, group_size)
            except QdxError as error:
                raise QdxError(f"checkpoint {path}, {module}: {error}") from error
            yield module, weight


def dense_state(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a checkpoint that is no part of a quantized layer's packing, as stored.

    Norms, embeddings, an untied head, and the biases of quantized layers.

    Parameters
    ----------
    path : Path
        Checkpoint folder.

    Yields
    ------
    tuple of str and Tensor
        The tensor's name in the file, and the tensor.
    """
    with _opened(Path(path)) as where:
        for name, file in where.items():
            module, _, part = name.rpartition(".")
            if not (part in PARTS and f"{module}.qweight" in where):
                yield name, file.get_tensor(name)


def _group_size(kind: str, stated: dict[str, Any], path: Path) -> int:
    """Return the group size that config.json states, and refuse packings that are not read here."""
    wanted: list[tuple[str, Any, Any]] = [("bits", None, 4)]
    if kind == "awq":
        wanted.append(("version", "gemm", "gemm"))
    else:
        wanted += [("desc_act", False, False), ("checkpoint_format", "gptq", "gptq")]
    for key, default, value in wanted:
        got = stated.get(key, default)
        if (got.lower() if isinstance(got, str) else got) != value:
            raise QdxError(
                f"checkpoint {path}: {kind} with {key}={got!r}, only {value!r} is read: use another "
                "checkpoint"
            )
    size = stated.get("group_size")
    if not isinstance(size, int):
        raise QdxError(
            f"checkpoint {path}: config.json states group_size={size!r}, must be a number such as 128 or -1"
        )
    return size


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[dict[str, Any]]:
    """Open every weight file; gives tensor name → open file."""
    from safetensors import SafetensorError, safe_open

    with contextlib.ExitStack() as stack:
        where: dict[str, Any] = {}
        for file in weight_files(path):
            try:
                opened = stack.enter_context(safe_open(str(file), framework="pt"))
            except (SafetensorError, OSError) as error:
                raise QdxError(
                    f"checkpoint file {file} cannot be read ({error}): download it again"
                ) from error
            where.update(dict.fromkeys(opened.keys(), opened))
        yield where
