"""A metric with an option and its meaning: unit, direction, formula, value for equal rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import qdx

if TYPE_CHECKING:
    from torch import Tensor


@qdx.register("metric", "hellinger", on_self=0.0, formula="(½ Σ_v (√p_v − √q_v)²)^(power/2)")
def hellinger(p: Tensor, q: Tensor, power: int = 1) -> Tensor:
    """Hellinger distance of the two distributions, 0…1; its square with power=2.

    Parameters
    ----------
    p, q : Tensor, float64 (position, vocab)
        Natural log-probabilities.
    power : int
        1 for the distance, which is a metric; 2 for its square, which is an f-divergence.

    Returns
    -------
    Tensor, float64 (position,)
    """
    squared = 0.5 * ((p / 2).exp() - (q / 2).exp()).square().sum(-1)
    return squared ** (power / 2)
