"""List how the tensor cores of each card add up: a table of constants.

One step of a tensor core adds a few products to what its accumulator holds. Everywhere the rule is the same,
and only its constants differ. The products and the accumulator are aligned with the largest exponent among
them; a product's is the sum of its factors', and a subnormal number has the exponent of the least normal one.
Each is cut off toward zero some bits further down. The sum of what is left is exact, and is cut off, or
rounded to nearest, to the accumulator's format.

Sources. MMA-Sim, arXiv 2511.10909 (products of a step; T4). F. A. Khattak and M. Mikaitis, "Accurate Models
of NVIDIA Tensor Cores", arXiv 2512.07004, whose published results of hardware are in
``tests/kernels/tensor_cores``; all of them are reproduced. H100: also what ``scripts/gpu/record_mma.py``
recorded, with subnormal, huge and infinite numbers, and the outputs of vLLM's kernels (docs/results).
"""

from __future__ import annotations

from dataclasses import dataclass

from qdx.errors import QdxError

# Exponent of the least normal number of a format of factors.
LEAST_NORMAL = {"fp16": -14, "bf16": -126, "tf32": -126, "e4m3": -6, "e5m2": -14}
_FLOAT32_BITS, _FLOAT16_BITS = 23, 10


@dataclass(frozen=True)
class Rule:
    """The constants of one card, format of the factors, format of the accumulator and instruction.

    Attributes
    ----------
    factors : str
        A key of `LEAST_NORMAL`.
    accumulator : str
        ``float32`` or ``float16``.
    products : int
        Products of one step. An instruction of more products is several steps, in the order of K.
    fraction_bits : int
        Bits that are kept below the largest exponent.
    least : int or None
        The largest exponent counts as at least this one.
    result_bits : int
        Fraction bits of a result.
    nearest : bool
        Whether a result is rounded to nearest, ties to even; else it is cut off toward zero.
    converted : bool
        Whether the card has no such instruction and ``mma.sync`` of 32 products becomes two steps on float16
        numbers, which start from zero: first those of K whose remainder by 4 is 0 or 1. The accumulator is
        added last, rounded to nearest.
    compared : bool
        Whether results of the hardware were compared; published constants alone otherwise.
    """

    factors: str
    accumulator: str
    products: int
    fraction_bits: int
    least: int | None
    result_bits: int = _FLOAT32_BITS
    nearest: bool = False
    converted: bool = False
    compared: bool = True

    @property
    def least_factor(self) -> int:
        """Least exponent of a factor as the tensor core gets it."""
        return LEAST_NORMAL["fp16" if self.converted else self.factors]

    @property
    def least_result(self) -> int:
        """Exponent of the least normal number of the accumulator's format."""
        return -14 if self.accumulator == "float16" else -126

    @property
    def overflow(self) -> float:
        """The least size of a result that is infinite."""
        return 2.0**16 if self.accumulator == "float16" else 2.0**128


Key = tuple[str, str, str]  # factors, accumulator, instruction


def _sixteen_bits(
    products: int, extra: int, least: int | None, half_least: int, *, compared: bool = True
) -> dict[Key, Rule]:
    """Return rules of float16 factors: `extra` bits are kept under float32's last one."""
    bits = _FLOAT32_BITS + extra
    return {
        ("fp16", "float32", "mma"): Rule("fp16", "float32", products, bits, least, compared=compared),
        ("fp16", "float16", "mma"): Rule(
            "fp16", "float16", products, bits, half_least, _FLOAT16_BITS, nearest=True, compared=compared
        ),
    }


def _since_ampere(products: int, extra: int, tf32: int) -> dict[Key, Rule]:
    bits, least = _FLOAT32_BITS + extra, -131 - extra
    return {
        **_sixteen_bits(products, extra, least, -19 - extra),
        ("bf16", "float32", "mma"): Rule("bf16", "float32", products, bits, least),
        ("tf32", "float32", "mma"): Rule("tf32", "float32", tf32, bits, least),
    }


def _converted() -> dict[Key, Rule]:
    """Return rules of 8-bit factors by ``mma.sync`` on cards whose own instruction is another."""
    return {
        key: rule
        for factors in ("e4m3", "e5m2")
        for key, rule in {
            (factors, "float32", "mma"): Rule(factors, "float32", 16, 25, -133, converted=True),
            (factors, "float16", "mma"): Rule(
                factors, "float16", 16, 25, -21, _FLOAT16_BITS, nearest=True, converted=True
            ),
        }.items()
    }


def _eight_bits(
    instruction: str, products: int, bits: int, least: int, result_bits: int, *, compared: bool = True
) -> dict[Key, Rule]:
    return {
        (factors, "float32", instruction): Rule(
            factors, "float32", products, bits, least, result_bits, compared=compared
        )
        for factors in ("e4m3", "e5m2")
    }


def _ada() -> dict[Key, Rule]:
    half = {
        (factors, "float16", "mma"): Rule(factors, "float16", 16, 13, -132, _FLOAT16_BITS, nearest=True)
        for factors in ("e4m3", "e5m2")
    }
    return {**_since_ampere(8, 1, 4), **_eight_bits("mma", 16, 13, -132, 13), **half}


_AMPERE, _ADA = _since_ampere(8, 1, 4), _ada()
_HOPPER = {**_since_ampere(16, 2, 8), **_converted(), **_eight_bits("wgmma", 32, 13, -133, 13)}
_BLACKWELL = {
    **_since_ampere(16, 2, 8),
    **_converted(),
    **_eight_bits("tcgen05", 32, 25, -133, _FLOAT32_BITS, compared=False),
}
CARDS: dict[str, dict[Key, Rule]] = {
    "v100": _sixteen_bits(4, 0, None, -19),
    "t4": _sixteen_bits(8, 1, -132, -20, compared=False),
    "a100": _AMPERE,
    "a2": _AMPERE,
    "a40": _AMPERE,
    "l40s": _ADA,
    "ada": _ADA,
    "h100": _HOPPER,
    "h200": _HOPPER,
    "b200": _BLACKWELL,
}


def rule_of(card: str, factors: str = "fp16", accumulator: str = "float32", instruction: str = "mma") -> Rule:
    """Return the constants of a card.

    Parameters
    ----------
    card : str
        A key of `CARDS`.
    factors, accumulator : str
        Formats, as `Rule` names them.
    instruction : str
        ``mma`` (also what ``wgmma`` does with 16-bit factors), ``wgmma`` or ``tcgen05``.

    Raises
    ------
    QdxError
        For a card, or for formats of it, whose sums are not known.
    """
    if card not in CARDS:
        raise QdxError(f"card {card!r}: its tensor cores' sums are not known: one of {', '.join(CARDS)}")
    rules = CARDS[card]
    if (factors, accumulator, instruction) not in rules:
        known = ", ".join(f"{a} in {b} by {c}" for a, b, c in rules)
        raise QdxError(
            f"card {card!r}: sums of {factors} in {accumulator} by {instruction} are not known: "
            f"one of {known}"
        )
    return rules[factors, accumulator, instruction]
