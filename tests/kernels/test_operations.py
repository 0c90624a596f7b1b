"""Small operations: their sums against lanes added one by one, their values against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import operations

EPSILON = 1e-5
DTYPES = [torch.float16, torch.bfloat16]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lane_by_lane(values: list[np.float32]) -> np.float32:
    """``cub::BlockReduce`` as its source has it: shuffles within a warp, lane 0's sums one after another."""
    total = None
    for first in range(0, len(values), 32):
        warp = list(values[first : first + 32])
        for offset in (1, 2, 4, 8, 16):
            warp = [
                warp[lane] + warp[lane + offset] if lane + offset < len(warp) else warp[lane]
                for lane in range(len(warp))
            ]
        total = warp[0] if total is None else total + warp[0]
    assert total is not None
    return total


@pytest.mark.parametrize("threads", [1, 5, 32, 72, 96, 1024])
def test_a_thread_block_adds_by_lanes_then_by_warps(threads: int) -> None:
    value_TB = drawn(3, threads).square()
    expected = [lane_by_lane(list(row)) for row in value_TB.numpy()]
    assert operations.block_sum(value_TB).tolist() == [float(value) for value in expected]


def test_the_order_shows() -> None:
    value_TB = drawn(200, 96).square()
    assert not torch.equal(operations.block_sum(value_TB), value_TB.sum(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "features"), [(1, 576), (3, 768), (256, 768), (2, 12288)])
def test_norms_are_norms_within_one_rounding(dtype: torch.dtype, tokens: int, features: int) -> None:
    x, residual = (drawn(tokens, features, seed=seed).to(dtype) for seed in (1, 2))
    weight = torch.rand(features, generator=torch.Generator().manual_seed(3)).to(dtype)

    def exact(value: Tensor) -> Tensor:
        wide = value.double()
        return wide * (wide.square().mean(1, keepdim=True) + EPSILON).rsqrt() * weight.double()

    step = torch.finfo(dtype).eps
    found = operations.rms_norm(x, weight, EPSILON)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact(x), rtol=0.51 * step, atol=1e-7)
    found, added = operations.fused_add_rms_norm(x, residual, weight, EPSILON)
    assert torch.equal(added, x + residual)
    torch.testing.assert_close(found.double(), exact(added), rtol=0.51 * step, atol=1e-7)


def test_256_tokens_change_the_order_of_a_rows_sum() -> None:
    x = drawn(256, 12288).half()
    weight = torch.ones(12288).half()
    many, few = operations.rms_norm(x, weight, EPSILON), operations.rms_norm(x[:255], weight, EPSILON)
    assert not torch.equal(many[:255], few)
    # with one turn a thread either way it is the same order
    x = drawn(256, 768).half()
    many, few = (
        operations.rms_norm(x, weight[:768], EPSILON),
        operations.rms_norm(x[:255], weight[:768], EPSILON),
    )
    assert torch.equal(many[:255], few)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_is_rounded_before_it_is_multiplied(dtype: torch.dtype) -> None:
    gate, up = drawn(4, 512, seed=4).to(dtype) * 4, drawn(4, 512, seed=5).to(dtype)
    found = operations.silu_and_mul(torch.cat((gate, up), 1))
    rounded = torch.nn.functional.silu(gate.double()).to(dtype)
    assert float((found == (rounded.float() * up.float()).to(dtype)).float().mean()) > 0.999
    once = (torch.nn.functional.silu(gate.double()) * up.double()).to(dtype)
    assert float((found == once).float().mean()) < 0.9


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_keeps_what_it_does_not_turn(dtype: torch.dtype) -> None:
    x = drawn(5, 3, 64, seed=6).to(dtype)
    angle = drawn(5, 16, seed=7)
    cache = torch.cat((angle.cos(), angle.sin()), 1).to(dtype)
    found = operations.rotary_embedding(x, cache)
    assert torch.equal(found[..., 32:], x[..., 32:])
    pair = torch.complex(x[..., :16].double(), x[..., 16:32].double())
    turned = pair * torch.complex(*(part[:, None].double() for part in cache.chunk(2, 1)))
    torch.testing.assert_close(
        found[..., :32].double(),
        torch.cat((turned.real, turned.imag), -1),
        rtol=0.51 * torch.finfo(dtype).eps,
        atol=1e-6,
    )


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(QdxError, match=r"rms_norm takes float16 or bfloat16 .* got float32 \(2, 16\)"):
        operations.rms_norm(drawn(2, 16), torch.ones(16), EPSILON)
    with pytest.raises(QdxError, match=r"features divisible by 8, got float16 \(2, 12\)"):
        operations.fused_add_rms_norm(
            drawn(2, 12).half(), drawn(2, 12).half(), torch.ones(12).half(), EPSILON
        )
    with pytest.raises(QdxError, match=r"cache is torch.float32 and rows are torch.float16"):
        operations.rotary_embedding(drawn(2, 1, 8).half(), drawn(2, 8))
