"""Bet against "nothing has changed": a conformal test martingale that may be looked at after every round.

While rounds are exchangeable, the smoothed conformal p-values of their scores are independent and uniform,
whatever the scores are [1]_. A gambler who bets on small ones then owns a nonnegative martingale that starts
at 1, and reaches 1/α at any time with a probability of at most α (Ville).

.. [1] V. Vovk, I. Nouretdinov, A. Gammerman, "Testing exchangeability on-line", ICML 2003. Betting on a
   change: V. Vovk et al., "Retrain or not retrain: conformal test martingales for change-point detection",
   COPA 2021.
"""

from __future__ import annotations

import numpy as np

from qdx.statistics import Floats

LATE = 0.25  # exponent of the weights of change points: how much a late one costs, about 4·c^1.25
SHARP, WIDE, EVEN = 0.45, 0.45, 0.1  # of a bet: on the k/t smallest p, on the 2k/t smallest, on nothing


class Gambler:
    """The capital of a gambler who bets that everything has changed after a round, and does not know which.

    When k of t rounds are after a change that shows, their scores are the greatest, and the last one's
    p-value is uniform below k/t. For every round c a part of the capital, (c + 1)^−a − (c + 2)^−a with
    a = `LATE`, is bet on that from c on. Each part is a martingale while the p-values are uniform, and so is
    their sum.

    Attributes
    ----------
    capital : float
        At most 1/α with probability 1 − α, at all times together, while the p-values are uniform.
    greatest : float
        The greatest value that it has had.
    """

    def __init__(self) -> None:
        self._of_change = np.zeros(0)
        self.capital = self.greatest = 1.0

    def bet(self, p: float) -> float:
        """Take a p-value in (0, 1] and return the capital after it."""
        c = len(self._of_change)
        started = (c + 1) ** -LATE - (c + 2) ** -LATE
        self._of_change = np.append(self._of_change, started)
        t = c + 1
        k = np.arange(t, 0, -1)  # rounds since each change, this one among them
        bets = np.full(t, EVEN)
        for share, most in ((SHARP, k / t), (WIDE, np.minimum(2 * k / t, 1))):
            bets = bets + share * (p <= most) / most
        self._of_change = self._of_change * bets
        self.capital = float(self._of_change.sum() + (c + 2) ** -LATE)
        self.greatest = max(self.greatest, self.capital)
        return self.capital


def strangeness(feature_TF: Floats, floor_F: Floats) -> Floats:
    """Return how far each round's features lie from all rounds' median, the round itself among them.

    Parameters
    ----------
    feature_TF : array (round, feature)
    floor_F : array (feature,)
        The least spread of a feature; one that never moved has none of its own.

    Returns
    -------
    array (round,)
        Mean over features of ln(1 + deviation in units of their median deviation); the logarithm keeps one
        wild feature from hiding the others. It does not depend on the order of the rounds, which makes the
        p-values uniform.
    """
    centre_F = np.median(feature_TF, 0)
    away_TF = np.abs(feature_TF - centre_F)
    spread_F = np.maximum(np.median(away_TF, 0), floor_F)
    return np.asarray(np.log1p(away_TF / spread_F).mean(1))


def conformal_p(score_T: Floats, u: float) -> float:
    """The smoothed p-value of the last of some scores: the share that is as great, ties by the number u.

    Parameters
    ----------
    score_T : array (round,)
    u : float
        Uniform in (0, 1), drawn before the scores were seen.
    """
    last = score_T[-1]
    greater, equal = int((score_T > last).sum()), int((score_T == last).sum())
    return float((greater + u * equal) / len(score_T))
