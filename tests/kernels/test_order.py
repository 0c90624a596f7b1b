"""The order of summation, against plain loops over numpy scalars."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from qdx.kernels import QuantizedWeight, make
from qdx.kernels.exllama import Exllama
from qdx.kernels.machete import stream_k
from qdx.kernels.marlin import stripes
from qdx.kernels.partition import Region, accumulate

from .builders import inputs, weights


def half_fma(a: np.float16, b: np.float16, c: np.float16) -> np.float16:
    """One rounding: float64 holds the exact value of every number drawn here."""
    return np.float16(np.float64(a) * np.float64(b) + np.float64(c))


def exllama_scalar(x_K: np.ndarray, weight: QuantizedWeight, column: int, order_B: list[int]) -> np.float16:
    """One output element of ``gemm_half_q_half_gptq_4bit_kernel``, one thread's steps."""
    q_K = weight.q_KN[:, column].numpy().astype(int) - 8
    blocks = []
    for offset in range(0, len(x_K), 128):
        total = np.float32(0)
        for k in range(offset, min(offset + 128, len(x_K)), 8):
            scale = np.float64(weight.scale_GN[k // weight.group_size, column].item())
            chains = []
            for lane in (0, 1):
                chain = np.float16(0)
                for i in range(4):
                    row = k + 2 * i + lane
                    chain = half_fma(np.float16(q_K[row]), x_K[row], chain)
                chains.append(np.float32(chain))
            total = np.float32(np.float64(np.float32(chains[0] + chains[1])) * scale + np.float64(total))
        blocks.append(np.float16(total))
    y = np.float16(0)
    for block in order_B:
        y = np.float16(y + blocks[block])
    return y


@pytest.mark.parametrize(
    ("in_features", "group_size"),
    [
        (32, 32),
        (96, 32),
        (128, 64),
        (128, 128),
        (288, 32),
        (288, 288),
        (320, 64),
        (512, 32),
        (512, 128),
        (512, 512),
    ],
)
def test_exllama_rounds_elsewhere_than_the_scalar_steps(in_features: int, group_size: int) -> None:
    weight = weights(in_features, 520, group_size, symmetric=True)
    x_MK = inputs(10, in_features)
    layer = make("exllama", weight, generator=torch.Generator().manual_seed(5))
    assert isinstance(layer, Exllama)
    order_RCB = layer.draw_orders(10)
    missing = order_RCB.shape[2] * 128 - in_features
    y_MN = layer.atomics(layer.block_sums(torch.nn.functional.pad(x_MK, (0, missing))), order_RCB)
    for row in (0, 7, 8, 9):
        for column in (0, 1, 37, 511, 512, 519):
            order_B = order_RCB[row // 8, column // 512].tolist()
            expected = exllama_scalar(x_MK[row].numpy(), weight, column, order_B)
            assert y_MN[row, column].item() == expected


@pytest.mark.parametrize("sm_count", [1, 40, 10**6])
def test_exllama_adds_blocks_as_late_as_the_grid_lets_them(sm_count: int) -> None:
    weight = weights(1280, 1024, 128, symmetric=True)
    layer = make("exllama", weight, sm_count=sm_count, generator=torch.Generator().manual_seed(5))
    assert isinstance(layer, Exllama)
    order_RCB = layer.draw_orders(17)  # 3 blocks of rows, 2 of columns
    late = sm_count / 6
    assert order_RCB.shape == (3, 2, 10)
    assert torch.equal(order_RCB.sort(-1).values, torch.arange(10).expand(3, 2, 10))
    if late < 1:
        assert torch.equal(order_RCB, torch.arange(10).expand(3, 2, 10))
    else:
        assert not torch.equal(order_RCB, torch.arange(10).expand(3, 2, 10))
    # a block comes before another one only if it is at most `late` behind it in K
    for order in order_RCB.view(-1, 10).tolist():
        assert all(later > earlier - late for at, later in enumerate(order) for earlier in order[:at])


def test_exllama_cuts_a_matmul_only_where_that_was_seen() -> None:
    for rows, sm_count, expected in ((53, 132, 4), (60, 132, 6), (65, 132, 1), (60, 108, 1)):
        layer = make("exllama", weights(768, 768, 128, symmetric=True), sm_count=sm_count)
        assert isinstance(layer, Exllama)
        parts = layer._parts(rows, 768 // 16)
        assert len(parts) == expected
        assert [step for part in parts for step in part] == list(range(48))


def test_exllama_forward_draws_another_order_than_it_shows() -> None:
    weight = weights(512, 64, 128, symmetric=True)
    layer = make("exllama", weight, generator=torch.Generator().manual_seed(5))
    again = make("exllama", weight, generator=torch.Generator().manual_seed(5))
    assert isinstance(again, Exllama)
    x_MK = inputs(3, 512)
    assert torch.equal(layer(x_MK), again.atomics(again.block_sums(x_MK), again.draw_orders(3)))


def exactly_summable(in_features: int, out_features: int) -> tuple[torch.Tensor, QuantizedWeight]:
    """Products that add up exactly in float32 (so the BLAS's order does not matter) but not in float16."""
    numbers = torch.Generator().manual_seed(2)
    weight = weights(in_features, out_features, 32, symmetric=False)
    scale_GN = torch.randint(1, 8, weight.scale_GN.shape, generator=numbers).half() / 64
    x_MK = torch.randint(-127, 128, (3, in_features), generator=numbers).half() / 64
    return x_MK, QuantizedWeight(weight.q_KN, weight.zero_GN, scale_GN, 32, False)


@pytest.mark.parametrize("in_features", [32, 288, 512, 1024])
def test_awq_gemm_rounds_elsewhere_than_the_scalar_steps(in_features: int) -> None:
    x_MK, weight = exactly_summable(in_features, 64)
    y_MN = make("awq_gemm", weight)(x_MK)
    many_MN = make("awq_gemm", weight)(x_MK.repeat(100, 1))[:3]
    differ = 0
    for row in range(3):
        for column in range(0, 64, 5):
            partials = [np.float32(0)] * 8
            for k in range(in_features):
                group = k // 32
                centred = np.float16(int(weight.q_KN[k, column]) - int(weight.zero_GN[group, column]))
                value = np.float16(centred * np.float16(weight.scale_GN[group, column].item()))
                split = k // 32 % 8
                partials[split] = np.float32(
                    partials[split] + np.float32(x_MK[row, k].item()) * np.float32(value)
                )
            total = np.float32(0)
            for partial in partials:
                total = np.float32(total + np.float32(np.float16(partial)))
            assert y_MN[row, column].item() == np.float16(total)
            assert many_MN[row, column].item() == np.float16(sum(map(np.float64, partials)))
            differ += y_MN[row, column].item() != many_MN[row, column].item()
    if in_features == 1024:
        assert differ  # or the test could not tell the paths apart


def ones(in_features: int, out_features: int) -> QuantizedWeight:
    """Weights that are all 1."""
    groups = in_features // 128
    return QuantizedWeight(
        torch.full((in_features, out_features), 9, dtype=torch.uint8),
        torch.full((groups, out_features), 8, dtype=torch.uint8),
        torch.ones(groups, out_features, dtype=torch.float16),
        128,
        True,
    )


def swallowing(rows: int, in_features: int, at: list[int], seed: int) -> torch.Tensor:
    """Inputs that are nonzero `at` these rows of K only: small ones, and two large ones of opposite sign.

    The large ones swallow small ones or not, as the order will have it.
    """
    numbers = torch.Generator().manual_seed(seed)
    values_MA = torch.randn(rows, len(at), generator=numbers) * 2.0**-10
    for row in range(rows):
        one, other = torch.randperm(len(at), generator=numbers)[:2].tolist()
        values_MA[row, one], values_MA[row, other] = 30000.0, -30000.0
    x_MK = torch.zeros(rows, in_features, dtype=torch.float16)
    x_MK[:, at] = values_MA.half()
    return x_MK


@pytest.mark.parametrize("rows", [1, 40, 70])
@pytest.mark.parametrize("sm_count", [132, 8, 4, 3])
def test_marlin_adds_in_another_order_than_the_scalar_steps(rows: int, sm_count: int) -> None:
    """One product an accumulator, so that only the order of the accumulators is left."""
    in_features, out_features = 512, 256
    told_apart = 0
    plan = stripes(rows, in_features, out_features, 128, sm_count)
    for first, count, tile_k, parts in plan:
        warps = tile_k // 32
        starts = [{cut // 32 for cut in part.cuts[:-1]} for part in parts]
        firsts = [{block + warp for block in blocks for warp in range(warps)} for blocks in starts]
        blocks = set.intersection(*firsts) & set(range(in_features // 32))
        x_MK = swallowing(rows, in_features, [32 * block + 3 for block in sorted(blocks)], seed=rows)
        y_MN = make("marlin", ones(in_features, out_features), sm_count=sm_count)(x_MK)
        for part in parts:
            for row in range(first + part.rows[0], min(first + part.rows[1], first + count)):
                slices = []
                for start, stop in pairwise(part.cuts):
                    sums = [np.float32(0)] * warps
                    for block in range(start // 32, stop // 32):
                        sums[block % warps] += np.float32(x_MK[row, 32 * block + 3].item())
                    tail = sums[1] if warps == 2 else sums[1] + (sums[3] + sums[2])
                    slices.append(sums[0] + tail)
                total = slices[-1]
                for above in reversed(slices[:-1]):
                    total = above + total
                assert total.dtype == np.float32
                for start, stop in part.columns:
                    assert (y_MN[row, start:stop].numpy() == np.float16(total)).all()
                told_apart += np.float16(total) != np.float16(sum(map(np.float32, x_MK[row].numpy())))
    if rows > 1:
        assert told_apart


def test_marlin_gives_the_warps_of_a_64_row_tile_other_blocks() -> None:
    """Two halves of an ULP of 30000 count only where one warp adds them before the other's 30000."""
    ((_, _, tile_k, (part,)),) = stripes(40, 512, 256, 128, 3)
    assert (tile_k, part.cuts) == (64, (0, 256, 512))
    x_MK = torch.zeros(40, 512, dtype=torch.float16)
    x_MK[:, 0] = x_MK[:, 64] = 2.0**-10  # warp 0: blocks 0 and 2 of 32 rows
    x_MK[:, 32] = 30000  # warp 1: block 1
    x_MK[:, 256] = -30000  # the slice below
    assert (make("marlin", ones(512, 256), sm_count=3)(x_MK) == 2.0**-9).all()


def test_machete_adds_in_another_order_than_the_scalar_steps() -> None:
    rows, in_features = 16, 4096
    (part,) = stream_k(rows, in_features, 128, 132)
    starts = [start + 3 for start in part.cuts[:-1]]
    assert len(starts) > 3
    x_MK = swallowing(rows, in_features, starts, seed=0)
    y_MN = make("machete", ones(in_features, 128))(x_MK)
    told_apart = 0
    for row in range(rows):
        values = [np.float32(x_MK[row, start].item()) for start in starts]
        total, backwards = np.float32(0), np.float32(0)
        for value in values:
            total = total + value
        for value in reversed(values):
            backwards = backwards + value
        assert (y_MN[row].numpy() == np.float16(total)).all()
        told_apart += np.float16(total) != np.float16(backwards)
    assert told_apart


@pytest.mark.parametrize("last_first", [True, False])
@pytest.mark.parametrize("accumulators", [((0,),), ((1, 3), (0, 2)), ((2,), (3,), (1,), (0,))])
def test_regions_are_added_in_another_order_than_the_scalar_steps(
    accumulators: tuple[tuple[int, ...], ...], last_first: bool
) -> None:
    """One product an accumulator; rows and columns cut at different places, into one slice to four."""
    in_features, columns = 512, 192
    two, three, four = (0, 256, 512), (0, 128, 384, 512), (0, 128, 256, 384, 512)
    even, odd, rest = ((0, 32), (64, 96)), ((32, 64), (96, 128)), ((128, 144), (150, 192), (144, 150))
    parts = [
        *(Region((0, 1), *part) for part in ((even, three), (odd, two), (rest, four))),
        *(Region((1, 4), *part) for part in ((even, three), (odd, four), (rest, (0, 512)))),
        Region((4, 5), ((0, 192),), (0, 512)),
    ]
    shares, warps = sum(map(len, accumulators)), len(accumulators)
    numbers = torch.Generator().manual_seed(1)
    x_MK = torch.randn(5, in_features, generator=numbers) * 10.0 ** torch.randint(
        -4, 5, (5, in_features), generator=numbers
    )
    x_MK[4, 128:] = 0  # so that this row, cut nowhere, has one product an accumulator as well
    weight_KN = torch.zeros(in_features, columns)
    for runs, starts in ((even, three[:-1]), (odd, two[:-1]), (rest, (0,))):
        for start, stop in runs:
            for k in starts:
                weight_KN[k : k + 32 * warps : 32, start:stop] = 1
    sum_MN = accumulate(
        x_MK.view(5, -1, shares, 32).permute(2, 0, 1, 3).reshape(shares, 5, -1),
        weight_KN.view(-1, shares, 32, columns).transpose(0, 1).reshape(shares, -1, columns),
        parts,
        accumulators=accumulators,
        last_first=last_first,
    )
    told_apart = 0
    for part in parts:
        for row in range(*part.rows):
            for column in (at for run in part.columns for at in range(*run)):
                products_K = (x_MK[row] * weight_KN[:, column]).numpy()
                slices = []
                for start, stop in pairwise(part.cuts):
                    # Block after block of 32 rows to its accumulator, the blocks' shares taking turns.
                    sums = [
                        products_K[start:stop].reshape(-1, warps, 32)[:, group[0] % warps].sum()
                        for group in accumulators
                    ]
                    total = sums[0]
                    for term in sums[1:]:
                        total = total + term
                    slices.append(total)
                ordered = slices[::-1] if last_first else slices
                total = ordered[0]
                for term in ordered[1:]:
                    total = total + term
                assert total.dtype == np.float32
                assert sum_MN[row, column].item() == total
                told_apart += total != np.float32(products_K.astype(np.float64).sum())
    assert told_apart
