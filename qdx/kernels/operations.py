"""The small operations of a decoder as vLLM's CUDA kernels compute them, bit for bit, on a CPU.

Every sum is taken in the order of the kernel's threads, and every rounding is where the kernel rounds.
Products of two 16-bit numbers are exact in float32, so it does not matter whether a compiler fuses them with
the sum.

Source: vLLM 0.20 and later, ``csrc/libtorch_stable/layernorm_kernels.cu``, ``activation_kernels.cu`` and
``pos_encoding_kernels.cu``; ``cub::BlockReduce``. ``scripts/gpu/prove_operations.py`` compares these
functions on a card with kernels that are written as vLLM's are: on an H100 no output differs (docs/results).
vLLM's own binaries were not compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels.elementary import expf, rsqrt_approx

VECTOR = 8  # elements that a thread reads at once
WARP = 32
FEW_TOKENS = 256  # fewer than that have thread blocks of 1024


def _threads(tokens: int, most: int) -> int:
    return min(most, 1024 if tokens < FEW_TOKENS else 256)


def block_sum(value_TB: Tensor) -> Tensor:
    """Add the threads' numbers as ``cub::BlockReduce`` does: float32 (tokens, threads) to (tokens,).

    Warp by warp a lane adds the one 1, 2, 4, 8 and 16 lanes on; the warps' sums are added in their order.
    """
    tokens, threads = value_TB.shape
    warps = -(-threads // WARP)
    value_TWL = torch.nn.functional.pad(value_TB, (0, warps * WARP - threads)).view(tokens, warps, WARP)
    while value_TWL.shape[-1] > 1:
        value_TWL = value_TWL[..., 0::2] + value_TWL[..., 1::2]
    total_T = value_TWL[:, 0, 0].clone()
    for warp in range(1, warps):
        total_T += value_TWL[:, warp, 0]
    return total_T


def _normalized(x_TH: Tensor, weight_H: Tensor, sum_T: Tensor, epsilon: float) -> Tensor:
    mean_T = sum_T / torch.tensor(float(x_TH.shape[1])) + torch.tensor(epsilon, dtype=torch.float32)
    factor_T = torch.from_numpy(rsqrt_approx(mean_T.numpy()))
    return (x_TH.float() * factor_T[:, None] * weight_H.float()).to(x_TH.dtype)


def _check(operation: str, x_TH: Tensor) -> None:
    if x_TH.dtype not in (torch.float16, torch.bfloat16) or x_TH.ndim != 2 or x_TH.shape[1] % VECTOR:
        raise QdxError(
            f"{operation} takes float16 or bfloat16 (tokens, features), features divisible by {VECTOR}, got "
            f"{str(x_TH.dtype).removeprefix('torch.')} {tuple(x_TH.shape)}"
        )


def _vectors(x_TH: Tensor, threads: int) -> Tensor:
    """Lay out what each thread reads: float32 (tokens, turns, threads, 8), zeros where it reads nothing."""
    tokens, features = x_TH.shape
    vectors = features // VECTOR
    turns = -(-vectors // threads)
    padded = torch.nn.functional.pad(x_TH.float(), (0, (turns * threads - vectors) * VECTOR))
    return padded.view(tokens, turns, threads, VECTOR)


def rms_norm(x_TH: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
    """Divide each row by its root mean square and multiply by the weight, rounding once.

    Parameters
    ----------
    x_TH, weight_H : Tensor
        float16 or bfloat16 (tokens, features), contiguous, and (features,).
    epsilon : float
        Added to the mean square.

    Returns
    -------
    Tensor
        Like `x_TH`. The number of tokens decides the number of threads, and so the order of the sum.

    Raises
    ------
    QdxError
        For another dtype, and features that are not divisible by 8.
    """
    _check("rms_norm", x_TH)
    threads = _threads(x_TH.shape[0], x_TH.shape[1] // VECTOR)
    x_TJBV = _vectors(x_TH, threads)
    sum_TB = torch.zeros(x_TH.shape[0], threads)
    for turn in range(x_TJBV.shape[1]):
        for element in range(VECTOR):
            sum_TB += x_TJBV[:, turn, :, element].square()
    return _normalized(x_TH, weight_H, block_sum(sum_TB), epsilon)


def fused_add_rms_norm(
    x_TH: Tensor, residual_TH: Tensor, weight_H: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Add the residual, rounding to 16 bits, and normalize the rounded sum as `rms_norm` does.

    Its threads add the squares two by two, and the thread block has as many threads as there are features, at
    most 1024 or 256.

    Returns
    -------
    tuple of Tensor
        The normalized rows and the new residual.

    Raises
    ------
    QdxError
        As `rms_norm`.
    """
    _check("fused_add_rms_norm", x_TH)
    added_TH = (x_TH.float() + residual_TH.float()).to(x_TH.dtype)
    threads = _threads(x_TH.shape[0], x_TH.shape[1])
    x_TJBV = _vectors(added_TH, threads)
    sum_TB = torch.zeros(x_TH.shape[0], threads)
    for turn in range(x_TJBV.shape[1]):
        own_TB = torch.zeros_like(sum_TB)
        for element in range(0, VECTOR, 2):
            pair = x_TJBV[:, turn, :, element : element + 2].square()
            own_TB += pair[..., 0] + pair[..., 1]
        sum_TB += own_TB
    return _normalized(added_TH, weight_H, block_sum(sum_TB), epsilon), added_TH


def silu_and_mul(x_TH: Tensor) -> Tensor:
    """Return silu(first half) · second half: x / (1 + expf(-x)) is rounded to 16 bits before the product.

    Parameters
    ----------
    x_TH : Tensor
        float16 or bfloat16 (tokens, 2 · features).
    """
    _check("silu_and_mul", x_TH)
    gate_TH, up_TH = x_TH.chunk(2, dim=1)
    gate = gate_TH.float()
    divisor = torch.from_numpy(expf(-gate.numpy())) + 1
    return ((gate / divisor).to(x_TH.dtype).float() * up_TH.float()).to(x_TH.dtype)


def rotary_embedding(x_THD: Tensor, cos_sin_TR: Tensor) -> Tensor:
    """Rotate pairs (i, i + R / 2) of each head's first R elements, as models of the NeoX style do.

    Parameters
    ----------
    x_THD : Tensor
        float16 or bfloat16 (tokens, heads, head size).
    cos_sin_TR : Tensor
        Cosines, then sines, of each token's position: (tokens, R), of the same dtype. With a float32 cache it
        would matter which product the compiler fuses.

    Raises
    ------
    QdxError
        For a cache of another dtype.
    """
    if cos_sin_TR.dtype != x_THD.dtype:
        raise QdxError(
            f"rotary_embedding: the cache is {cos_sin_TR.dtype} and rows are {x_THD.dtype}; only equal "
            "dtypes are known bit for bit: convert the cache"
        )
    half = cos_sin_TR.shape[1] // 2
    cos, sin = (part[:, None].float() for part in cos_sin_TR.split(half, dim=1))
    x, y = x_THD[..., :half].float(), x_THD[..., half : 2 * half].float()
    rotated = torch.cat((x * cos - y * sin, y * cos + x * sin), dim=-1).to(x_THD.dtype)
    return torch.cat((rotated, x_THD[..., 2 * half :]), dim=-1)
