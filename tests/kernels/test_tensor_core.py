"""Sums of tensor cores, against the same rule in fractions; exact outputs of kernels against forward."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import pytest
import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import KERNELS, KernelModel, make, tensor_core
from tests.kernels.builders import inputs, weights

SAME_SUMS = ("dense", "awq_gemm", "marlin", "machete")


def exponent(value: Fraction) -> int:
    """Return e of 2^e ≤ |value| < 2^(e + 1)."""
    e = value.numerator.bit_length() - value.denominator.bit_length()
    return e if abs(value) >= Fraction(2) ** e else e - 1


def cut(value: Fraction, last: int) -> Fraction:
    """Return the multiple of 2^last that is next to `value` toward zero."""
    unit = Fraction(2) ** last
    return (floor(abs(value) / unit) * unit) * (1 if value >= 0 else -1)


def by_fractions(x_K: list[float], weight_K: list[float]) -> float:
    held = Fraction(0)
    for start in range(0, len(x_K), 16):
        pairs = [
            (Fraction(a), Fraction(b))
            for a, b in zip(x_K[start : start + 16], weight_K[start : start + 16], strict=True)
            if a and b
        ]
        tops = [exponent(a) + exponent(b) for a, b in pairs] + ([exponent(held)] if held else [])
        if not tops:
            continue
        last = max(tops) - 23 - 2
        total = cut(held, last) + sum(cut(a * b, last) for a, b in pairs)
        held = cut(total, exponent(total) - 23) if total else Fraction(0)
    return float(held)


@pytest.mark.parametrize("spread", [0.0, 6.0, 14.0])
def test_a_chain_is_what_the_rule_says(spread: float) -> None:
    numbers = torch.Generator().manual_seed(int(spread))

    def drawn(*shape: int) -> Tensor:
        size = torch.exp2(spread * (2 * torch.rand(shape, generator=numbers) - 1))
        value = (torch.randn(shape, generator=numbers) * size).half()
        value[torch.rand(shape, generator=numbers) < 0.1] = 0.0
        return value.float()

    x_MK, weight_KN = drawn(4, 80), drawn(80, 6)
    x_MK[0] = 0.0
    x_MK[1, :16] = 0.0
    x_MK[2] *= 2.0**-24 / x_MK[2].abs().clamp_min(2.0**-24)  # subnormal float16 numbers
    found_MN = tensor_core.chain(x_MK, weight_KN)
    expected = [[by_fractions(row, column) for column in weight_KN.t().tolist()] for row in x_MK.tolist()]
    assert found_MN.tolist() == expected
    assert any(value for row in expected for value in row)


def test_it_is_no_float32_sum() -> None:
    x_MK, weight_KN = inputs(64, 768).float(), inputs(96, 768, seed=2).float().t().contiguous()
    rounded = (x_MK.double() @ weight_KN.double()).float()
    found = tensor_core.chain(x_MK, weight_KN)
    assert float((found == rounded).float().mean()) < 0.1
    # cut off toward zero after each of 48 instructions: never by more than 2^-22 of the largest sum
    bound = 48 * 17 * 2.0**-25 * torch.exp2(torch.log2(x_MK.abs() @ weight_KN.abs()).ceil())
    assert bool(((found - rounded).abs() <= bound).all())


def model_of(kernel: str, in_features: int, out_features: int, group_size: int, bias: bool) -> KernelModel:
    weight = weights(in_features, out_features, group_size, symmetric=False)
    added = torch.randn(out_features, generator=torch.Generator().manual_seed(5)).half() if bias else None
    return make(kernel, weight.dequantize().t().contiguous() if kernel == "dense" else weight, added)


@pytest.mark.parametrize("kernel", SAME_SUMS)
@pytest.mark.parametrize(
    ("rows", "in_features", "group_size"), [(1, 768, 128), (20, 384, 384), (300, 1536, 64)]
)
def test_exact_outputs_are_forwards_but_for_last_bits(
    kernel: str, rows: int, in_features: int, group_size: int
) -> None:
    model = model_of(kernel, in_features, 256, group_size, bias=rows == 20)
    x_MK = inputs(rows, in_features)
    some_M, some_N = torch.arange(0, rows, 7), torch.tensor([0, 3, 64, 127, 128, 200, 255])
    found = model.exact(x_MK, some_M, some_N)
    expected = model(x_MK)[some_M[:, None], some_N]
    assert found.dtype == torch.float16 and found.shape == expected.shape
    assert float((found == expected).float().mean()) > 0.9
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-3, atol=2e-3)


def test_some_outputs_are_those_of_all() -> None:
    model = model_of("marlin", 768, 256, 128, bias=True)
    x_MK = inputs(70, 768)  # two launches
    some_M, some_N = torch.tensor([69, 3, 64]), torch.tensor([200, 5])
    assert torch.equal(model.exact(x_MK)[some_M[:, None], some_N], model.exact(x_MK, some_M, some_N))


def test_what_is_not_known_bit_for_bit_is_refused() -> None:
    weight = weights(256, 64, 128, symmetric=True)
    with pytest.raises(QdxError, match=r"'exllama': its sums are not known bit for bit: use forward"):
        make("exllama", weight).exact(inputs(4, 256))
    with pytest.raises(QdxError, match=r"measured with float16, got torch.bfloat16"):
        make("marlin", weight).exact(inputs(4, 256).bfloat16())
    assert [name for name, model in KERNELS.items() if not model.exact_known] == ["exllama"]
