"""Stream a checkpoint's layers out of its safetensors files, one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import check_shape
from qdx.kernels.weights import QuantizedWeight
from qdx.models import awq, gptq
from qdx.models.bits import rows_per_group, unpack_columns
from qdx.models.checkpoint import format_of, read_config
from qdx.models.identity import weight_files
from qdx.models.stated import group_size_of, quantization_of

WORDS = ("qweight", "qzeros")
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
    group_size = group_size_of(kind, quantization_of(config, path), path)
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


def check_packing(
    path: Path, kernel: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Refuse a quantized checkpoint that cannot be read, or whose layers a kernel does not take, early.

    Only what is small is read of its weights: the order of rows and the zero points.

    Parameters
    ----------
    path : Path
        Checkpoint folder, awq or gptq.
    kernel : str
        What will compute its layers.
    shapes : Mapping
        Shape of every tensor in its files.

    Returns
    -------
    dense : dict
        Shape of every tensor that is not a part of a packed layer.
    packed : dict
        (out, in) of every packed layer, by its name.

    Raises
    ------
    QdxError
        As `iter_quantized` and the kernels do; the message names the module.
    """
    config = read_config(path)
    kind = format_of(config, path)
    stated = quantization_of(config, path)
    group_size = group_size_of(kind, stated, path)
    if kind == "gptq" and stated.get("sym") is False:
        raise QdxError(f"checkpoint {path}: config.json states sym=false: {gptq.ASYMMETRIC}")
    modules = [name.removesuffix(".qweight") for name in shapes if name.endswith(".qweight")]
    if not modules:
        raise QdxError(f"checkpoint {path} has no quantized layer (*.qweight), its config.json says {kind}")
    kept = {
        name: shape
        for name, shape in shapes.items()
        if not (name.rpartition(".")[2] in PARTS and f"{name.rpartition('.')[0]}.qweight" in shapes)
    }
    layout = awq if kind == "awq" else gptq
    packed: dict[str, tuple[int, ...]] = {}
    with _opened(path) as where:
        for module in modules:
            small = {
                part: where[f"{module}.{part}"].get_tensor(f"{module}.{part}")
                for part in ("qzeros", "g_idx")
                if f"{module}.{part}" in where
            }
            own = {part: shapes[f"{module}.{part}"] for part in PARTS if f"{module}.{part}" in shapes}
            try:
                _stored_once(where, module, shapes)
                rows, columns = layout.check(own, small, group_size)
                if kind == "gptq":
                    stored = unpack_columns(small["qzeros"])
                    if not bool((stored == 7).all()):
                        raise QdxError(gptq.SECOND if bool((stored == 8).all()) else gptq.ASYMMETRIC)
                check_shape(kernel, rows, columns, rows_per_group(rows, group_size))
            except QdxError as error:
                raise QdxError(f"checkpoint {path}, {module}: {error}") from error
            packed[module] = columns, rows
    return kept, packed


def _stored_once(where: Mapping[str, Any], module: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a layer that is stored as a dense weight too, or in words of another size."""
    if f"{module}.weight" in shapes:
        raise QdxError(
            "the layer is stored twice, packed (qweight) and as a dense weight, and engines differ in which "
            "they take: remove one of the two"
        )
    for name in (f"{module}.{part}" for part in WORDS if f"{module}.{part}" in shapes):
        if (dtype := where[name].get_slice(name).get_dtype()) != "I32":
            raise QdxError(
                f"quantized layer: {name.rpartition('.')[2]} is {dtype}, must be I32: only 8 × 4 bits in an "
                "int32 word are read"
            )


def zero_biases(path: Path) -> set[str]:
    """Return the biases of packed layers that are 0 throughout.

    AutoGPTQ wrote one for every layer that it packed, also where the model has none. Engines skip these.
    """
    with _opened(Path(path)) as where:
        names = [name for name in where if name.endswith(".bias") and f"{name[:-5]}.qweight" in where]
        return {name for name in names if not bool(where[name].get_tensor(name).any())}


def dense_state(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a checkpoint that is not part of a quantized layer's packing, as stored.

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
