"""Eight nibbles in an int32 word, and what both layouts check on reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qdx.errors import QdxError

NATURAL = (0, 1, 2, 3, 4, 5, 6, 7)


def pack_columns(values_RC: Tensor, order: Sequence[int] = NATURAL) -> Tensor:
    """Pack uint8 (rows, columns) of 0…15 into int32 (rows, columns / 8).

    Nibble k of word i holds column 8·i + order[k].

    Raises
    ------
    QdxError
        When the columns are not a multiple of 8.
    """
    rows, columns = values_RC.shape
    if columns % 8:
        raise QdxError(
            f"pack: {columns} features are not a multiple of 8, which an int32 word holds: pad the layer"
        )
    values_RI8 = values_RC.view(rows, columns // 8, 8)[..., list(order)].to(torch.int32)
    word_RI = torch.zeros(rows, columns // 8, dtype=torch.int32, device=values_RC.device)
    for nibble in range(8):
        word_RI |= values_RI8[..., nibble] << (4 * nibble)
    return word_RI


def unpack_columns(word_RI: Tensor, order: Sequence[int] = NATURAL) -> Tensor:
    """Undo `pack_columns`: int32 (rows, words) → uint8 (rows, words × 8)."""
    rows, words = word_RI.shape
    values_RI8 = torch.empty(rows, words, 8, dtype=torch.uint8)
    for nibble in range(8):
        values_RI8[..., order[nibble]] = ((word_RI >> (4 * nibble)) & 15).to(torch.uint8)
    return values_RI8.view(rows, words * 8)


def present(shapes: Mapping[str, tuple[int, ...]], names: Sequence[str]) -> None:
    """Raise `QdxError` when a part of a packed layer is missing, or has not the right number of axes."""
    missing = [name for name in names if name not in shapes]
    if missing:
        raise QdxError(f"quantized layer: {', '.join(missing)} missing, got {', '.join(sorted(shapes))}")
    for name in names:
        axes = 1 if name == "g_idx" else 2
        if len(shapes[name]) != axes:
            raise QdxError(
                f"quantized layer: {name} has shape {shapes[name]}, expected {axes} axes: the file is of "
                "another format than config.json says"
            )


def checked(tensors: dict[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Return the named tensors; packed ones must be int32 matrices."""
    present({name: tuple(one.shape) for name, one in tensors.items()}, names)
    for name in ("qweight", "qzeros"):
        if tensors[name].dtype != torch.int32 or tensors[name].ndim != 2:
            raise QdxError(
                f"quantized layer: {name} is {tensors[name].dtype} {tuple(tensors[name].shape)}, must be "
                "an int32 matrix: only 8 × 4 bits in an int32 word are read"
            )
    return [tensors[name] for name in names]


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `QdxError` naming the first tensor whose shape does not fit 4 bits and the stated group size."""
    for name, shape in expected.items():
        if found[name] != shape:
            raise QdxError(
                f"quantized layer: {name} has shape {found[name]}, expected {shape} for 4 bits and this "
                "group size: config.json and tensors disagree, or the layer has other bits"
            )


def float16_scales(scale_GN: Tensor) -> Tensor:
    """Return scales as float16, exactly; bfloat16 or float32 scales that float16 cannot hold are refused.

    Raises
    ------
    QdxError
        When a scale would change: rounding it here would make another model of the checkpoint.
    """
    half_GN = scale_GN.to(torch.float16)
    changed = half_GN.to(torch.float32) != scale_GN.to(torch.float32)
    if bool(changed.any()):
        raise QdxError(
            f"quantized layer: {int(changed.sum())} of {changed.numel()} {scale_GN.dtype} scales are not "
            f"exact in float16, such as {float(scale_GN[changed][0]):.6g}: use one with float16 scales"
        )
    return half_GN


def rows_per_group(in_features: int, group_size: int) -> int:
    """Resolve group size -1 to all of in_features, and check that groups divide it."""
    size = in_features if group_size == -1 else group_size
    if size < 1 or in_features % size:
        raise QdxError(f"quantized layer: group size {group_size} does not divide {in_features} in-features")
    return size
