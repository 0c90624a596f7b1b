"""Formats that engines alone run: what is written, read back by their rules, is near the weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qdx.errors import QdxError
from qdx.models.checkpoint import format_of
from qdx.models.engine_formats import E2M1, WRITTEN, entry, pack

LARGEST = 0.25


def weight(rows: int = 256, columns: int = 384) -> Tensor:
    numbers = torch.Generator().manual_seed(5)
    drawn = torch.randn(rows, columns, generator=numbers) * 0.02
    drawn[:, :128] = 0  # a group of zeros, as widening leaves them
    return drawn.half()


def unpacked(words: Tensor, bits: int) -> Tensor:
    """Return the unsigned integers of int32 words, the lowest bits first, by Python's integers."""
    rows = []
    for row in words.tolist():
        values = []
        for word in row:
            values += [(word % 2**32) >> (bits * i) & (2**bits - 1) for i in range(32 // bits)]
        rows.append(values)
    return torch.tensor(rows)


def e2m1(codes: Tensor) -> Tensor:
    low, high = codes & 15, codes >> 4
    both = torch.stack((low, high), -1).flatten(-2).long()
    return torch.tensor(E2M1)[both & 7] * torch.where(both >= 8, -1.0, 1.0)


def decoded(parts: dict[str, Tensor], form: str) -> Tensor:
    match form:
        case "w4a16" | "w4a8":
            integers = unpacked(parts["weight_packed"], 4) - 8
            return integers * parts["weight_scale"].float().repeat_interleave(128, 1)
        case "w8a16":
            return (unpacked(parts["weight_packed"], 8) - 128) * parts["weight_scale"].float()
        case "w8a8":
            return parts["weight"].float() * parts["weight_scale"]
        case "fp8":
            return parts["weight"].float() * parts["weight_scale"]
        case "fp8_block":
            scale = parts["weight_scale_inv"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            return parts["weight"].float() * scale
        case "nvfp4":
            scale = parts["weight_scale"].float().repeat_interleave(16, 1)
            return e2m1(parts["weight_packed"]) * scale / parts["weight_global_scale"]
        case _:
            scale = torch.exp2(parts["weight_scale"].float() - 127).repeat_interleave(32, 1)
            return e2m1(parts["weight_packed"]) * scale


# The root mean square error of rounding, by the format's step at a normal weight: 4 bits about 10 %, e4m3
# about 2.5 %, 8-bit integers about 0.8 % of the weight's deviation. A layout read wrongly gives 100 %.
@pytest.mark.parametrize(
    ("form", "least", "most"),
    [
        ("w4a16", 0.05, 0.15),
        ("w4a8", 0.05, 0.15),
        ("w8a16", 0.003, 0.012),
        ("w8a8", 0.003, 0.012),
        ("fp8", 0.015, 0.04),
        ("fp8_block", 0.015, 0.04),
        ("nvfp4", 0.05, 0.15),
        ("mxfp4", 0.06, 0.2),
    ],
)
def test_a_layer_read_back_by_the_format_s_rules_is_the_weight(form: str, least: float, most: float) -> None:
    given = weight()
    parts = pack(given, form, LARGEST)
    back = decoded(parts, form)
    error = (back - given.float()).square().mean().sqrt() / given.float().square().mean().sqrt()
    assert least < float(error) < most
    assert bool((back[:, :128] == 0).all())
    assert all(value.is_contiguous() for value in parts.values())


def test_every_format_that_is_written_is_recognized_by_its_config(tmp_path: object) -> None:
    for form in WRITTEN:
        assert format_of({"quantization_config": entry(form)}, tmp_path) == form  # type: ignore[arg-type]


def test_ties_of_e2m1_go_to_the_even_code_and_nothing_beyond_six_is_lost() -> None:
    from qdx.models.engine_formats import _nibbles

    ties = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.25, 100.0, -7.0]])
    wanted = torch.tensor([[0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, -0.0, 6.0, -6.0]])
    assert torch.equal(e2m1(_nibbles(ties)), wanted)


def test_sizes_that_the_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(QdxError, match=r"format fp8_block: a weight of 100 x 128 does not divide"):
        pack(torch.zeros(100, 128), "fp8_block", 1.0)
    with pytest.raises(QdxError, match="format nvfp4: a weight of 4 x 100"):
        pack(torch.zeros(4, 100), "nvfp4", 1.0)
