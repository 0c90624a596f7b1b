"""Elementary functions of a card: their tables, their bounds and what they do with numbers that are none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from qdx.kernels import elementary
from qdx.kernels.elementary import (
    ex2_approx,
    ex2_approx_ftz,
    expf,
    fma,
    rcp_approx,
    rcp_approx_ftz,
    rsqrt_approx,
    rsqrt_approx_ftz,
)

INF, NAN = np.inf, np.nan
LEAST = np.float32(2.0**-126)
# Of the very tables with which all 2^32 arguments were compared on an H100.
SHA256 = {
    "ex2": "b2a42c4a626469c986e33e43f16f41bde9d84de94347cd9ceaa1bd68d36bcdf0",
    "rcp": "c408381446132e07fa5581e930dc33fb790bea7ec4276ef3621e322df2492a55",
    "rsqrt1": "c733e1437c713cd7e87f4c7e52e9aab270b2107f274cda35309dc8586ad6ec22",
    "rsqrt2": "fd7b866f4085a9e88ef6abdd9ba2726eb26708fb17d173619dac4405acb06bc0",
}


def drawn(least: float, most: float, count: int = 200_000) -> NDArray[np.float32]:
    """Draw numbers of every size between two powers of two."""
    numbers = np.random.default_rng(1)
    return np.exp2(numbers.uniform(least, most, count)).astype(np.float32)


def ulps(found: NDArray[np.float32], exact: NDArray[np.float64]) -> int:
    return int(np.abs(found.view(np.int32) - exact.astype(np.float32).view(np.int32)).max())


@pytest.mark.parametrize("name", SHA256)
def test_a_table_is_the_one_that_was_compared_with_the_card(name: str) -> None:
    values = elementary.table(name)
    assert values.shape == (1 << 23,) and not values.flags.writeable
    assert hashlib.sha256(values.tobytes()).hexdigest() == SHA256[name]


@pytest.mark.parametrize(
    ("function", "exact", "argument", "most"),
    [
        (ex2_approx_ftz, np.exp2, drawn(-20, 6.9), 2),
        (ex2_approx_ftz, np.exp2, -drawn(-20, 6.9), 2),
        (ex2_approx, np.exp2, -drawn(6.98, 7.2), 2),  # subnormal results
        (rsqrt_approx, lambda x: 1 / np.sqrt(x), drawn(-149, 127), 2),
        (rsqrt_approx_ftz, lambda x: 1 / np.sqrt(x), drawn(-126, 127), 2),
        (rcp_approx, lambda x: 1 / x, drawn(-127.9, 127), 1),
        (rcp_approx_ftz, lambda x: 1 / x, -drawn(-126, 126), 1),
        (expf, np.exp, drawn(-20, 6.4), 2),
        (expf, np.exp, -drawn(-20, 6.6), 2),
    ],
)
def test_a_function_is_within_ulps_of_the_exact_one(
    function: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    exact: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    argument: NDArray[np.float32],
    most: int,
) -> None:
    found = function(argument)
    assert found.dtype == np.float32
    difference = ulps(found, exact(argument.astype(np.float64)))
    assert 0 < difference <= most  # it is not the correctly rounded function either


@pytest.mark.parametrize(
    ("function", "pairs"),
    [
        (
            ex2_approx_ftz,
            [(0, 1), (-0.0, 1), (1e-40, 1), (-1e-40, 1), (127, 2.0**127), (128, INF), (-126, LEAST)],
        ),
        (
            ex2_approx_ftz,
            [(-126.5, 0), (INF, INF), (-INF, 0), (-3, 0.125), (-(2.0**-24), 1), (1e30, INF), (-1e30, 0)],
        ),
        (ex2_approx, [(-128, 2.0**-128), (-148, 2.0**-148), (-151, 0), (-INF, 0), (INF, INF), (7, 128)]),
        (
            rsqrt_approx_ftz,
            [(0, INF), (-0.0, -INF), (1e-40, INF), (-1e-40, -INF), (INF, 0), (-1, NAN), (4, 0.5)],
        ),
        (rsqrt_approx, [(0, INF), (-0.0, -INF), (2.0**-140, 2.0**70), (-1e-40, NAN), (-INF, NAN), (INF, 0)]),
        (
            rcp_approx_ftz,
            [(0, INF), (-0.0, -INF), (1e-40, INF), (INF, 0), (-INF, -0.0), (2.0**127, 0), (-4, -0.25)],
        ),
        (
            rcp_approx,
            [(0, INF), (-0.0, -INF), (2.0**-127, 2.0**127), (2.0**-149, INF), (2.0**127, 2.0**-127)],
        ),
        (expf, [(0, 1), (-0.0, 1), (INF, INF), (-INF, 0), (89, INF), (-104, 0), (1e-40, 1)]),
    ],
)
def test_infinities_zeros_and_subnormal_numbers(
    function: Callable[[NDArray[np.float32]], NDArray[np.float32]], pairs: list[tuple[float, float]]
) -> None:
    found = function(np.array([*(x for x, _ in pairs), NAN], np.float32))
    expected = np.array([*(y for _, y in pairs), NAN], np.float32)
    assert np.array_equal(found, expected, equal_nan=True)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))
    assert (found[~numbers].view(np.uint32) == 0x7FFFFFFF).all()  # the card's NaN


def test_a_negative_argument_is_its_ones_complement() -> None:
    """It is taken one step of 2^-23 lower than it is, unless it is an integer."""
    x = np.array([0.25, 0.5, 1.5, 2.75], np.float32)
    fixed = (8 << 23) - (x * 2**23).astype(np.int64) - 1
    expected = np.ldexp(elementary.table("ex2")[fixed % (1 << 23)], (fixed >> 23) - 8)
    assert np.array_equal(ex2_approx_ftz(-x), expected)
    whole = np.array([1, 2, 60], np.float32)
    assert np.array_equal(ex2_approx_ftz(-whole), np.exp2(-whole))


def test_fma_rounds_once() -> None:
    numbers = np.random.default_rng(2)
    size = np.exp2(numbers.integers(-30, 30, (3, 4000)))
    a, b, c = (numbers.standard_normal((3, 4000)) * size).astype(np.float32)
    c[:2000] = -(a * b)[:2000] * np.float32(1 + 2.0**-20)  # what is left is small
    a[-1], b[-1], c[-1] = 1 + 2.0**-12, 1 + 2.0**-12, 2.0**-90  # a tie but for c
    found = fma(a, b, c)
    exact = [
        Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r)) for p, q, r in zip(a, b, c, strict=True)
    ]
    for value, own in zip(exact, found.tolist(), strict=True):
        error = abs(value - Fraction(own))
        above, below = (Fraction(float(np.nextafter(np.float32(own), np.float32(to)))) for to in (INF, -INF))
        assert error <= min(abs(value - above), abs(value - below))
    assert found[-1] == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert np.float32(np.float64(a[-1]) * np.float64(b[-1]) + np.float64(c[-1])) != found[-1]


def test_differences_are_packed_in_two_bits_or_refused() -> None:
    residual = np.random.default_rng(3).integers(-2, 2, 1 << 12)
    assert np.array_equal(elementary._unpacked(elementary.packed(residual)), residual)
    with pytest.raises(ValueError, match=r"are -2 … 2 ulp, 2 bits hold -2 … 1"):
        elementary.packed(np.array([-2, 0, 1, 2]))
