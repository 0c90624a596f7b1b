"""Laws of noise for tests of level and power: a rule that needs normal noise fails on one of them."""

from __future__ import annotations

import numpy as np


def draw(law: str, generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Scores of honest transcripts."""
    if law == "normal":
        return generator.standard_normal(shape)
    if law == "heavy-tailed":
        return generator.standard_cauchy(shape)
    if law == "discrete":  # tokens that are not greedy: mostly 0, many ties
        return generator.poisson(0.7, shape).astype(float)
    assert law == "bimodal"  # a kernel that is exact in one of nine references
    return np.where(generator.random(shape) < 1 / 9, -30.0, generator.standard_normal(shape))


LAWS = ("normal", "heavy-tailed", "discrete", "bimodal")
