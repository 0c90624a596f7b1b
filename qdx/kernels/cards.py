"""How the tensor cores of each card add up: a table of constants.

One step of a tensor core adds a few products to what its accumulator holds. Everywhere the rule is the same,
and only its constants differ: the products and the accumulator are aligned with the largest exponent among
them (a product's is the sum of its factors'), each is cut off toward zero some bits further down, the sum of
what is left is exact, and it is cut off, or rounded to nearest, to the accumulator's format.

Sources. P. Li, S. Chen and others, "MMA-Sim", arXiv 2511.10909 (T4; products of a step). F. A. Khattak and
M. Mikaitis, "Accurate Models of NVIDIA Tensor Cores", arXiv 2512.07004, and their MATLAB-tensor-core: the
hardware's results that they publish are in ``tests/kernels/tensor_cores`` and are reproduced, all of them, for
every row of the table that `Rule.compared` marks. H100: also vLLM's kernels (docs/results) and
``scripts/gpu/prove_tensor_cores.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from qdx.errors import QdxError

# Exponent of the least normal number of each format of the factors. A subnormal number keeps it.
LEAST_NORMAL = {"fp16": -14, "bf16": -126, "tf32": -126, "e4m3": -6, "e5m2": -14}
FLOAT32_BITS, FLOAT16_BITS = 23, 10


@dataclass(frozen=True)
class Rule:
    """The constants of one card, format of the factors and format of the accumulator.

    Attributes
    ----------
    factors : str
        A key of `LEAST_NORMAL`.
    accumulator : str
        ``float32`` or ``float16``.
    products : int
        Products of one step. More of them in one instruction are several steps, in their order.
    fraction_bits : int
        Bits that are kept below the largest exponent when products and accumulator are aligned.
    least : int or None
        The largest exponent counts as at least this one.
    result_bits : int
        Fraction bits of a result.
    nearest : bool
        Whether a result is rounded to nearest, ties to even; cut off toward zero otherwise.
    accumulator_last : bool
        Whether the products' sum alone is aligned and cut, to float32, and the accumulator is added to it in
        one more step, rounded to nearest.
    compared : bool
        Whether results of the hardware were compared; published constants alone otherwise.
    """

    factors: str
    accumulator: str
    products: int
    fraction_bits: int
    least: int | None
    result_bits: int = FLOAT32_BITS
    nearest: bool = False
    accumulator_last: bool = False
    compared: bool = True

    @property
    def least_normal(self) -> int:
        """Exponent of the least normal number of the accumulator's format."""
        return -14 if self.accumulator == "float16" else -126


def _volta() -> list[Rule]:
    return [
        Rule("fp16", "float32", 4, 23, None),
        Rule("fp16", "float16", 4, 23, -19, FLOAT16_BITS, nearest=True),
    ]


def _turing() -> list[Rule]:
    return [
        Rule("fp16", "float32", 8, 24, -132, compared=False),
        Rule("fp16", "float16", 8, 24, -20, FLOAT16_BITS, nearest=True, compared=False),
    ]


def _sixteen_bits(products: int, extra: int, tf32: int) -> list[Rule]:
    """Rules of Ampere and later: `extra` bits under float32's last one."""
    bits, least = FLOAT32_BITS + extra, -131 - extra
    return [
        Rule("fp16", "float32", products, bits, least),
        Rule("fp16", "float16", products, bits, -19 - extra, FLOAT16_BITS, nearest=True),
        Rule("bf16", "float32", products, bits, least),
        Rule("tf32", "float32", tf32, bits, least),
    ]


def _eight_bits(products: int, bits: int, least: int, result_bits: int = FLOAT32_BITS) -> list[Rule]:
    return [
        rule
        for factors in ("e4m3", "e5m2")
        for rule in (
            Rule(factors, "float32", products, bits, least, result_bits),
            Rule(factors, "float16", products, bits, least, FLOAT16_BITS, nearest=True),
        )
    ]


_AMPERE = _sixteen_bits(8, 1, 4)
_ADA = [*_AMPERE, *_eight_bits(16, 13, -132, 13)]
_HOPPER = [*_sixteen_bits(16, 2, 8), *_eight_bits(32, 13, -133, 13)]
_BLACKWELL = [*_sixteen_bits(16, 2, 8), *_eight_bits(32, 25, -133)]

CARDS: dict[str, dict[tuple[str, str], Rule]] = {
    card: {(rule.factors, rule.accumulator): rule for rule in rules}
    for card, rules in {
        "v100": _volta(),
        "t4": _turing(),
        "a100": _AMPERE,
        "a2": _AMPERE,
        "a40": _AMPERE,
        "l40s": _ADA,
        "ada": _ADA,
        "h100": _HOPPER,
        "h200": _HOPPER,
        "b200": _BLACKWELL,
    }.items()
}


def rule_of(card: str, factors: str = "fp16", accumulator: str = "float32") -> Rule:
    """Return the constants of a card.

    Raises
    ------
    QdxError
        For a card, or for formats of it, whose constants are not known here.
    """
    if card not in CARDS:
        raise QdxError(f"card {card!r}: its tensor cores' sums are not known: one of {', '.join(CARDS)}")
    try:
        return CARDS[card][factors, accumulator]
    except KeyError:
        known = ", ".join(f"{a} to {b}" for a, b in CARDS[card])
        raise QdxError(
            f"card {card!r}: sums of {factors} in a {accumulator} accumulator are not known: one of {known}"
        ) from None
