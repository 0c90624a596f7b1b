"""List the cards that are emulated, and what of each was compared with one."""

from __future__ import annotations

from dataclasses import dataclass

from qdx.errors import QdxError
from qdx.schema import EMULATED_CARDS


@dataclass(frozen=True)
class Card:
    """State how a card divides its sums, beside its tensor cores' constants (`qdx.kernels.cards`).

    Attributes
    ----------
    sm_count : int
        Streaming multiprocessors.
    hopper : bool
        Whether it has compute capability 9.0, which FlashAttention 3 and Machete need.
    unknown : str
        What of it no card was asked; empty where whole rows were compared.
    """

    sm_count: int
    hopper: bool
    unknown: str = ""

    @property
    def compared(self) -> bool:
        """Return whether whole rows were compared with such a card."""
        return not self.unknown


CARDS = {
    "h100": Card(132, hopper=True),
    "h200": Card(132, hopper=True),
    "a100": Card(
        108,
        hopper=False,
        unknown="how its cuBLAS cuts dense layers and the output head, how FlashAttention 2 cuts more than "
        "256 keys, and its special functions",
    ),
}
assert CARDS.keys() == set(EMULATED_CARDS)


def card_of(name: str, kernel: str, *, approximate: bool) -> Card:
    """Return a card, and refuse what it does not run and what of it is not known.

    Raises
    ------
    QdxError
        For Machete on another card than Hopper, and for a card that nothing was compared with, unless
        `approximate`.
    """
    card = CARDS[name]
    if kernel == "machete" and not card.hopper:
        raise QdxError(f"backend.card={name}: Machete runs on Hopper alone: choose quant.kernel=marlin")
    if not card.compared and not approximate:
        raise QdxError(
            f"backend.card={name}: no row was compared with such a card; not known are {card.unknown}: set "
            "backend.approximate=true for what is published of it, or whoever owns one runs "
            "scripts/gpu/record_layers.py and scripts/gpu/compare_card.py"
        )
    return card
