"""The randomized probability integral transform: are drawn tokens from this config at all, whatever else?

With u = F(before the token) + V·p(token), tokens in the order of (probability descending, id ascending) and V
uniform, the u of honest tokens are independent and uniform (Rosenblatt 1952; Brockwell 2007 for discrete
laws). It needs no alternative, so it finds what nobody replayed: another model, another temperature, a hidden
system prompt.
"""

from __future__ import annotations

import numpy as np
import scipy  # its `stats` is imported where it is used, which takes a second

from qdx.capture.densities import SHARE, Drawn
from qdx.statistics import Floats


def uniforms(drawn: Drawn, seed: int, share: float = SHARE) -> Floats:
    """Return u of every token.

    Parameters
    ----------
    drawn : Drawn
        Of the claimed config.
    seed : int
        Of V. It is recorded, so that a verdict can be repeated; whoever knows it before he answers could
        choose his tokens by it.
    share : float
        Of tokens that may come from the untruncated distribution, as for e-values.

    Returns
    -------
    ndarray
        In the shape of `drawn`, 0…1; NaN where there is no row.
    """
    chance = np.random.default_rng(seed).random(drawn.logprob.shape)
    own = np.exp(drawn.logprob)
    kept = drawn.place == 2
    truncated = np.where(kept, np.minimum(drawn.before / drawn.kept, 1.0), 1.0)
    of_kept = np.where(kept, np.minimum(own / drawn.kept, 1.0 - truncated), 0.0)
    before = (1 - share) * truncated + share * drawn.before
    return np.asarray(before + chance * ((1 - share) * of_kept + share * own))


def distance_from_uniform(u: Floats) -> tuple[float, float]:
    """Kolmogorov and Smirnov's distance of u from the uniform law, and its p-value.

    Parameters
    ----------
    u : ndarray
        Of any shape; NaN counts for nothing.

    Returns
    -------
    distance, p : float
        NaN, 1 without a token.
    """
    known = u[np.isfinite(u)]
    if not len(known):
        return float("nan"), 1.0
    result = scipy.stats.kstest(known, "uniform", method="auto")
    return float(result.statistic), float(result.pvalue)
