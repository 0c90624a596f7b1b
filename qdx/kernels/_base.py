"""Provide what the kernel models share: argument checks, bias, and work memory that outlives a call."""

from __future__ import annotations

import threading
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels.weights import QuantizedWeight

_LOCAL = threading.local()


def scratch(slot: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uninitialised work memory of this thread; the next call with the same `slot` reuses it.

    Fresh pages cost more than the matmul that fills them (a 24 x 49 x 1536 product: 2.2 ms into new memory,
    0.6 ms into old). Whoever takes it writes every element before reading.
    """
    slots: dict[tuple[str, torch.dtype], Tensor] = _LOCAL.__dict__.setdefault("slots", {})
    size = prod(shape)
    memory = slots.get((slot, dtype))
    if memory is None or memory.numel() < size:
        with torch.inference_mode(False):  # what is made inside that mode may not be written outside it
            memory = torch.empty(size, dtype=dtype)
        slots[slot, dtype] = memory
    return memory[:size].view(shape)


class KernelModel(torch.nn.Module):  # type: ignore[misc]  # mypy skips torch
    """A linear layer computed with the rounding order of one GPU kernel.

    Subclasses implement `multiply`. The weights are plain attributes, not parameters: ``module.half()``
    must not touch the float32 values that stand for fp16 ones.

    Attributes
    ----------
    name : str
        Normalized kernel name.
    dtypes : tuple of torch.dtype
        Activation dtypes that the GPU kernel takes.
    multiples : tuple of int
        What the kernel needs in-features and out-features to be divisible by.
    """

    name: ClassVar[str]
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float16, torch.bfloat16)
    multiples: ClassVar[tuple[int, int]] = (1, 1)

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        if bias is not None and tuple(bias.shape) != (out_features,):
            raise QdxError(
                f"kernel {self.name!r}: bias has shape {tuple(bias.shape)}, must be ({out_features},), "
                "one value for each out-feature"
            )
        self.bias = None if bias is None else bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the weights.

        Parameters
        ----------
        x : Tensor
            (..., in_features) of one of `dtypes`; the product of the leading dims is the number of rows,
            by which the kernel chooses its path.

        Returns
        -------
        Tensor
            (..., out_features), dtype of `x`.

        Raises
        ------
        QdxError
            For a dtype that the GPU kernel does not take, or another last dim.
        """
        if x.dtype not in self.dtypes:
            takes = " or ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
            raise QdxError(
                f"kernel {self.name!r} takes {takes} activations, got {str(x.dtype).removeprefix('torch.')}: "
                "set the model's dtype or choose another kernel"
            )
        if x.shape[-1] != self.in_features:
            raise QdxError(
                f"kernel {self.name!r}: input has {x.shape[-1]} features, the weights have {self.in_features}"
            )
        x_MK = x.reshape(-1, self.in_features)
        if x_MK.shape[0] == 0:
            return x.new_empty(*x.shape[:-1], self.out_features)
        return self.multiply(x_MK).view(*x.shape[:-1], self.out_features)

    def multiply(self, x_MK: Tensor) -> Tensor:
        """Return (rows, out_features), bias added, in the dtype of `x_MK`."""
        raise NotImplementedError

    def exact_known(self, rows: int) -> bool:
        """Return whether `exact` knows the kernel's sums of that many rows."""
        return True

    def exact(self, x_MK: Tensor, rows: Tensor | None = None, columns: Tensor | None = None) -> Tensor:
        """Return chosen outputs with the very sums of a Hopper GPU's tensor cores, bit for bit.

        `forward` sums in float32 by the CPU's BLAS, which is faster and differs in the last bits of a few
        outputs of a thousand. Compared with an H100's (docs/results); of a dense layer only where cuBLAS does
        not cut K, which it does for few output tiles. Compiled where numba is installed
        (``pip install "qdx[exact]"``), some 15 times slower without it.

        Parameters
        ----------
        x_MK : Tensor
            (rows, in_features), float16. The kernel chooses its path by the number of all rows.
        rows, columns : Tensor, optional
            int64 indices of the outputs that are wanted; all without them.

        Returns
        -------
        Tensor
            (len(rows), len(columns)), float16.

        Raises
        ------
        QdxError
            For another dtype, and for a kernel and number of rows whose sums are not known bit for bit.
        """
        if not self.exact_known(len(x_MK)):
            raise QdxError(
                f"kernel {self.name!r}: its sums of {len(x_MK)} rows are not known bit for bit with "
                f"{self.in_features} in-features and {self.out_features} out-features: use forward"
            )
        if x_MK.dtype != torch.float16:
            raise QdxError(f"kernel {self.name!r}: sums were measured with float16, got {x_MK.dtype}")
        rows = torch.arange(len(x_MK)) if rows is None else rows
        columns = torch.arange(self.out_features) if columns is None else columns
        return self.multiply_exactly(x_MK, rows, columns)

    def multiply_exactly(self, x_MK: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Return what `exact` does, bias added."""
        raise NotImplementedError

    def add_bias(self, y_MN: Tensor, columns: Tensor | None = None) -> Tensor:
        """Add the bias to a rounded product, as an elementwise kernel does: one more rounding."""
        if self.bias is None:
            return y_MN
        return y_MN.add_((self.bias if columns is None else self.bias[columns]).to(y_MN.dtype))

    def extra_repr(self) -> str:
        """Show the shape in ``print(model)``."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


def check_shape(
    kernel: str, in_features: int, out_features: int, group_size: int, multiples: tuple[int, int]
) -> None:
    """Refuse a shape or group size that the GPU kernel cannot take.

    Parameters
    ----------
    kernel : str
    in_features, out_features, group_size : int
    multiples : tuple of int
        What in-features and out-features must be divisible by.

    Raises
    ------
    QdxError
        Names the got and the needed in-features, out-features or group size.
    """
    if in_features % multiples[0] or out_features % multiples[1]:
        raise QdxError(
            f"kernel {kernel!r} needs in-features divisible by {multiples[0]} and out-features divisible by "
            f"{multiples[1]}, got in-features {in_features} and out-features {out_features}: "
            "pad the model with zeros or choose another kernel"
        )
    if group_size not in (32, 64, 128, in_features):
        raise QdxError(
            f"kernel {kernel!r} needs group size 32, 64, 128 or in-features ({in_features}), "
            f"got {group_size}: quantize again"
        )


def check_weight(kernel: type[KernelModel], weight: QuantizedWeight) -> None:
    """Refuse weights whose shape or group size the GPU kernel cannot take; see `check_shape`."""
    check_shape(kernel.name, weight.in_features, weight.out_features, weight.group_size, kernel.multiples)
