"""Compute which config answered each request: posterior probabilities, for a provider who may mix configs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import logsumexp

from qdx.statistics import Floats

PRIOR = "each checkpoint that was replayed is equally probable, and each of its kernels within it"


def posteriors(log_likelihood_DCR: Floats, weights_C: Sequence[str]) -> Floats:
    """Return the probability that each config answered each request.

    The prior is `PRIOR`, for every request by itself. The rows are taken as exact: of two kernels of one
    checkpoint the likelier one may be a third that nobody replayed, so only sums over a checkpoint's kernels
    mean much. It is a description under that prior and has no error rate; what is shown with one is the lower
    bound of the false answers.

    Parameters
    ----------
    log_likelihood_DCR : array (producer, config, reference)
        Of the drawn tokens of an answer, nat; NaN where there is none.
    weights_C : sequence of str
        Hash of each config's weights; "": not known, so that it is a checkpoint of its own.

    Returns
    -------
    array (producer, config, reference)
        NaN where a config has no likelihood.
    """
    names = [weights or f"config {c}" for c, weights in enumerate(weights_C)]
    groups = list(dict.fromkeys(names))
    prior_C = np.array([-np.log(len(groups)) - np.log(names.count(name)) for name in names])
    joint_DCR = log_likelihood_DCR + prior_C[:, None]
    return np.asarray(np.exp(joint_DCR - logsumexp(joint_DCR, axis=1, keepdims=True)))


def likeliest(posterior_CR: Floats) -> list[int]:
    """Return how many answers each config most probably gave, (config,); ties go to the first.

    Examples
    --------
    >>> likeliest(np.array([[0.9, 0.2, np.nan], [0.1, 0.8, np.nan]]))
    [1, 1]
    """
    here = np.isfinite(posterior_CR).all(0)
    best = posterior_CR[:, here].argmax(0)
    return [int(count) for count in np.bincount(best, minlength=len(posterior_CR))]
