"""Sums of tensor cores against what cards gave, and against the same rule in fractions."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.kernels import KERNELS, KernelModel, compiled_sums, make, tensor_core
from qdx.kernels.cards import CARDS, LEAST_NORMAL, Rule, rule_of
from tests.kernels.builders import inputs, weights

SAME_SUMS = ("dense", "awq_gemm", "marlin", "machete")
FOLDER = Path(__file__).with_name("tensor_cores")
TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
with np.load(FOLDER / "vectors.npz") as published:
    PUBLISHED = sorted(
        (key.split("/")[0], key.split("/")[1], "float16" if "fp16_acc" in key else "float32")
        for key in published.files
        if key.rsplit("/", 1)[1].startswith("d")
    )


RECORDED = [
    ("fp16", "float32"),
    ("fp16", "float16"),
    ("bf16", "float32"),
    ("tf32", "float32"),
    ("e4m3", "float32"),
    ("e4m3", "float16"),
    ("e5m2", "float32"),
    ("e5m2", "float16"),
]


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(compiled_sums, "available", lambda: False)
    else:
        pytest.importorskip("numba")
    return str(request.param)


def floats(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits.view(np.float32).copy())


def test_all_published_results_are_there() -> None:
    assert len(PUBLISHED) == 39
    assert {card.lower() for card, _, _ in PUBLISHED} == set(CARDS) - {"t4", "a40"}


@pytest.mark.parametrize(("card", "factors", "accumulator"), PUBLISHED)
def test_every_published_result_of_a_card_is_reproduced(
    way: str, card: str, factors: str, accumulator: str
) -> None:
    with np.load(FOLDER / "vectors.npz") as file:
        a, b, c = (floats(file[f"{card}/{factors}/{key}"]) for key in "abc")
        d = floats(file[f"{card}/{factors}/{'d' if accumulator == 'float32' else 'd_fp16_accumulator'}"])
    own = card in ("H100", "H200") and factors == "E4M3" and accumulator == "float32"
    rule = rule_of(card.lower(), factors.lower(), accumulator, "wgmma" if own else "mma")
    assert rule.compared
    held = torch.zeros_like(c) if own else c.half().float() if accumulator == "float16" else c
    equal = 0
    for first in range(0, len(c), 50):  # as 50 x 50 matrices, of which the diagonal is compared
        m = slice(first, first + 50)
        square = held[m, None].expand(-1, 50).contiguous()
        found = tensor_core.chain(a[m], b[m].t().contiguous(), rule, square).diagonal()
        equal += int((found == d[m]).sum())
    assert (equal, len(c)) == (1000, 1000)


@pytest.mark.parametrize("size", range(4))
@pytest.mark.parametrize(("kind", "accumulator"), RECORDED)
def test_an_h100s_sums_of_numbers_of_every_size_are_reproduced(
    way: str, kind: str, accumulator: str, size: int
) -> None:
    with np.load(FOLDER / "h100_mma.npz") as file:
        words = [file[f"{kind}_{accumulator}/{size}/{key}"] for key in "abcd"]
    a, b = (
        floats(value) if kind == "tf32" else torch.from_numpy(value.view(np.uint8)).view(TORCH[kind]).float()
        for value in words[:2]
    )
    c, d = (
        floats(value.astype(np.uint16).view(np.float16).astype(np.float32))
        if accumulator == "float16"
        else floats(value)
        for value in words[2:]
    )
    rule = rule_of("h100", kind, accumulator)
    found = torch.stack(
        [tensor_core.chain(a[t], b[t].t().contiguous(), rule, c[t].contiguous()) for t in range(len(a))]
    )
    assert torch.equal(found.isnan(), d.isnan())
    assert torch.equal(found.nan_to_num(1.5, torch.inf, -torch.inf), d.nan_to_num(1.5, torch.inf, -torch.inf))


def exponent(value: Fraction) -> int:
    """Return e of 2^e ≤ |value| < 2^(e + 1)."""
    e = value.numerator.bit_length() - value.denominator.bit_length()
    return e if abs(value) >= Fraction(2) ** e else e - 1


def cut(value: Fraction, last: int) -> Fraction:
    """Return the multiple of 2^last that is next to `value` toward zero."""
    unit = Fraction(2) ** last
    return (floor(abs(value) / unit) * unit) * (1 if value >= 0 else -1)


def by_fractions(x_K: list[float], weight_K: list[float], rule: Rule) -> float:
    held = Fraction(0)
    least = LEAST_NORMAL[rule.factors]
    for start in range(0, len(x_K), rule.products):
        k = slice(start, start + rule.products)
        pairs = [(Fraction(a), Fraction(b)) for a, b in zip(x_K[k], weight_K[k], strict=True) if a and b]
        tops = [max(exponent(a), least) + max(exponent(b), least) for a, b in pairs]
        tops += [max(exponent(held), rule.least_result)] if held else []
        if not tops:
            continue
        last = max(*tops, -1000 if rule.least is None else rule.least) - rule.fraction_bits
        total = cut(held, last) + sum(cut(a * b, last) for a, b in pairs)
        if not total:
            held = total
        elif rule.nearest:
            held = Fraction(float(np.float16(float(total))))
        else:
            held = cut(total, exponent(total) - rule.result_bits)
    return float(held)


@pytest.mark.parametrize(
    "rule",
    [rule_of("h100"), rule_of("h100", "fp16", "float16"), rule_of("v100"), rule_of("a100"), rule_of("t4")],
    ids=["h100", "h100 half", "v100", "a100", "t4"],
)
@pytest.mark.parametrize("spread", [0.0, 6.0, 14.0])
def test_a_chain_is_what_the_rule_says(way: str, spread: float, rule: Rule) -> None:
    numbers = torch.Generator().manual_seed(int(spread))

    def drawn(*shape: int) -> Tensor:
        size = torch.exp2(spread * (2 * torch.rand(shape, generator=numbers) - 1))
        value = (torch.randn(shape, generator=numbers) * size / (64 if rule.nearest else 1)).half()
        value[torch.rand(shape, generator=numbers) < 0.1] = 0.0
        return value.float()

    x_MK, weight_KN = drawn(4, 80), drawn(80, 6)
    x_MK[0] = 0.0
    x_MK[1, :16] = 0.0
    x_MK[2] *= 2.0**-24 / x_MK[2].abs().clamp_min(2.0**-24)  # subnormal float16 numbers
    found_MN = tensor_core.chain(x_MK, weight_KN, rule)
    expected = [
        [by_fractions(row, column, rule) for column in weight_KN.t().tolist()] for row in x_MK.tolist()
    ]
    assert found_MN.tolist() == expected
    assert any(value for row in expected for value in row)


@pytest.mark.parametrize("accumulator", ["float32", "float16"])
@pytest.mark.parametrize(("rows", "length", "columns"), [(1, 96, 130), (131, 70, 64), (3, 0, 5), (0, 32, 4)])
def test_compiled_sums_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, rows: int, length: int, columns: int, accumulator: str
) -> None:
    pytest.importorskip("numba")
    x_MK, weight_KN = inputs(rows, length).float(), inputs(length, columns, seed=2).float()
    if rows > 2 and length:
        x_MK[1, 3], x_MK[2, 5], weight_KN[7, 1] = torch.inf, torch.nan, -torch.inf
        weight_KN[3, 0] = 0.0  # times infinity
    monkeypatch.setattr(compiled_sums, "_ALONE", 0)  # threads for little work too
    rule = rule_of("h100", "fp16", accumulator)
    found = tensor_core.chain(x_MK, weight_KN, rule)
    monkeypatch.setattr(compiled_sums, "available", lambda: False)
    expected = tensor_core.chain(x_MK, weight_KN, rule)
    assert found.shape == expected.shape == (rows, columns)
    assert torch.equal(found.nan_to_num(7.5, 8.5, 9.5), expected.nan_to_num(7.5, 8.5, 9.5))
    assert bool(found.isnan().any()) == (rows > 2 and length > 0)


def test_bfloat16_numbers_beyond_float32s_scale_are_summed_too(way: str) -> None:
    numbers = torch.Generator().manual_seed(3)
    size = torch.exp2(torch.randint(-120, 120, (6, 64), generator=numbers).float())
    x_MK = (torch.randn(6, 64, generator=numbers) * size).bfloat16().float()
    weight_KN = torch.randn(64, 8, generator=numbers).bfloat16().float()
    rule = rule_of("h100", "bf16")
    expected = [
        [by_fractions(row, column, rule) for column in weight_KN.t().tolist()] for row in x_MK.tolist()
    ]
    assert tensor_core.chain(x_MK, weight_KN, rule).tolist() == expected


def test_it_is_no_float32_sum() -> None:
    x_MK, weight_KN = inputs(64, 768).float(), inputs(96, 768, seed=2).float().t().contiguous()
    rounded = (x_MK.double() @ weight_KN.double()).float()
    found = tensor_core.chain(x_MK, weight_KN)
    assert float((found == rounded).float().mean()) < 0.1
    # cut off toward zero after each of 48 instructions: never by more than 2^-22 of the largest sum
    bound = 48 * 17 * 2.0**-25 * torch.exp2(torch.log2(x_MK.abs() @ weight_KN.abs()).ceil())
    assert bool(((found - rounded).abs() <= bound).all())


def test_an_unknown_card_or_format_is_refused_with_what_is_known() -> None:
    with pytest.raises(QdxError, match=r"card 'h20': its tensor cores' sums are not known: one of v100, t4"):
        rule_of("h20")
    with pytest.raises(
        QdxError, match=r"card 'v100': sums of bf16 in float32 by mma are not known: one of fp16"
    ):
        rule_of("v100", "bf16")
    assert not rule_of("t4").compared


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


@pytest.mark.parametrize("rows", [51, 60, 65])  # cut into 4, into 6 and not
def test_exact_outputs_of_exllama_are_forwards_but_for_last_bits(rows: int) -> None:
    bias = torch.randn(768, generator=torch.Generator().manual_seed(5)).half()
    model = make("exllama", weights(768, 768, 64, symmetric=True), bias)
    x_MK = inputs(rows, 768)
    some_M, some_N = torch.arange(0, rows, 7), torch.tensor([0, 3, 64, 767])
    found, expected = model.exact(x_MK, some_M, some_N), model(x_MK)[some_M[:, None], some_N]
    assert float((found == expected).float().mean()) > 0.9
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-2, atol=4e-2)


def test_some_outputs_are_those_of_all() -> None:
    model = model_of("marlin", 768, 256, 128, bias=True)
    x_MK = inputs(70, 768)  # two launches
    some_M, some_N = torch.tensor([69, 3, 64]), torch.tensor([200, 5])
    assert torch.equal(model.exact(x_MK)[some_M[:, None], some_N], model.exact(x_MK, some_M, some_N))


def test_what_is_not_known_bit_for_bit_is_refused() -> None:
    known, unknown = (weights(768, columns, 128, symmetric=True) for columns in (768, 64))
    message = r"'exllama': its sums of {} rows are not known bit for bit with 768 in-features and {} out-"
    with pytest.raises(QdxError, match=message.format(50, 768)):
        make("exllama", known).exact(inputs(50, 768))
    with pytest.raises(QdxError, match=message.format(51, 64)):
        make("exllama", unknown).exact(inputs(51, 768))
    with pytest.raises(QdxError, match=message.format(51, 768)):
        make("exllama", known, sm_count=108).exact(inputs(51, 768))
    with pytest.raises(QdxError, match=r"measured with float16, got torch.bfloat16"):
        make("marlin", known).exact(inputs(4, 768).bfloat16())
    assert all(make(name, known).exact_known(4) for name in KERNELS if name not in ("dense", "exllama"))
