"""Calculate exact p-values, error bounds and thresholds from plain arrays of scores.

A p-value that is a count is a `fractions.Fraction`, so that 1/20 ≤ 0.05 is decided without rounding (`level`
makes the 0.05 exact too). None means "not measured". A greater score means a worse fit to the claim. Axes: M
judged transcripts, N calibration transcripts (the null), R references.

Sources
-------
V. Vovk, A. Gammerman, G. Shafer, *Algorithmic Learning in a Random World* (2005): conformal p. E. J. G.
Pitman (1937) and F. Wilcoxon (1945): permutation and rank sum. R. A. Fisher (1922): the exact test. B.
Phipson and G. Smyth (2010): (1 + c)/(1 + B). R. Marcus, E. Peritz, K. R. Gabriel (1976) and J. Goeman, A.
Solari (2011): closed testing, and how many hypotheses are false. S. Holm (1979). C. Clopper and E. Pearson
(1934).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from qdx.errors import QdxError
from qdx.statistics import Floats, Ints

DRAWS = 9_999  # of a permutation test that is too large to be counted out: p is 1/10,000 at least
_WORK = 1_000_000_000  # bytes that counting out may move: about 0.2 s

PooledTest = Callable[[Floats, Floats], Fraction | None]


def level(alpha: float | str | Fraction) -> Fraction:
    """Turn a level as a user writes it into the exact fraction: 0.05 is 1/20.

    Parameters
    ----------
    alpha : float or str
        The binary number next to 0.05 is a little greater than 1/20; its shortest decimal form is meant.

    Raises
    ------
    QdxError
        When it is not between 0 and 1.
    """
    try:
        exact = Fraction(str(alpha))
    except ValueError as error:
        raise QdxError(f"level {alpha!r} is not a number: give one between 0 and 1, such as 0.05") from error
    if not 0 < exact < 1:
        raise QdxError(f"level {alpha} is not between 0 and 1: give one such as 0.05")
    return exact


def _measured(scores: Floats) -> Floats:
    values = np.asarray(scores, np.float64)
    return np.asarray(values[np.isfinite(values)])


def conformal_p(score: float, null_N: Floats) -> Fraction | None:
    """Rank one transcript among calibration: p = (1 + #{T₀ ≥ T}) / (n + 1).

    Parameters
    ----------
    score : float
        T of the judged transcript.
    null_N : array (calibration,)
        T₀; NaN (not measured) does not count.

    Returns
    -------
    Fraction or None
        Under the claim P(p ≤ α) ≤ α for every α if the n + 1 scores are exchangeable. None without
        calibration or without a score.
    """
    null = _measured(null_N)
    if not len(null) or not np.isfinite(score):
        return None
    return Fraction(1 + int((null >= score).sum()), len(null) + 1)


def tail_count_p(judged_M: Floats, null_N: Floats) -> Fraction | None:
    """Count the judged transcripts whose scores lie strictly above all calibration's.

    Of m + n exchangeable scores without ties the k greatest are all judged ones with probability
    C(m, k)/C(m + n, k). Ties are broken against the count, which only makes p greater. A few transcripts that
    are false beside many that are true are found by this test, however the true ones lie.

    Parameters
    ----------
    judged_M : array (judged,)
    null_N : array (calibration,)

    Returns
    -------
    Fraction or None
        None without judged or without calibration scores.
    """
    judged, null = _measured(judged_M), _measured(null_N)
    m, n = len(judged), len(null)
    if not m or not n:
        return None
    k = int((judged > null.max()).sum())
    return Fraction(math.comb(m, k), math.comb(m + n, k))


def _doubled_midranks(values: Floats) -> Ints:
    """Twice the rank from 0, ties sharing their mean: integers over the last axis of any array."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    return np.asarray(2 * below + equal - 1, np.int64)


def _subsets_reaching(value_N: Sequence[int], size: int, least: int) -> int:
    """Count the subsets of `size` of nonnegative integers whose sum is at least `least`."""
    bits, sums = _subset_sums(tuple(sorted(value_N)), size)
    return (sums >> (max(least, 0) * bits)) % ((1 << bits) - 1)  # the sum of the digits


@lru_cache(maxsize=256)  # scores without ties have one law for each m and n
def _subset_sums(value_N: tuple[int, ...], size: int) -> tuple[int, int]:
    """Count the subsets of `size` by their sum: the digits of one long integer in base 2^bits.

    Adding an element is one shift and one addition (Kronecker's substitution); 2^bits is greater than any
    count can be.
    """
    bits = math.comb(len(value_N), size).bit_length() + 1
    sums = [1] + [0] * size
    for i, value in enumerate(value_N):
        for j in range(min(i + 1, size), 0, -1):
            sums[j] += sums[j - 1] << (value * bits)
    return bits, sums[size]


def rank_sum_p(judged_M: Floats, null_N: Floats, seed: int = 0) -> Fraction | None:
    """Test one-sidedly, by permuting midranks, whether the judged scores are greater than calibration's.

    p is the share of all C(m + n, m) ways to choose the judged ones whose rank sum is at least the observed
    one. It is counted out where that is fast. Otherwise B = `DRAWS` choices are drawn and p = (1 + c)/(1 + B)
    with c of them at least as great, which is just as valid: the observed choice is one of B + 1 that are
    exchangeable (Phipson & Smyth 2010).

    Parameters
    ----------
    judged_M : array (judged,)
    null_N : array (calibration,)
    seed : int
        Of the drawn choices; the same input has the same p.

    Returns
    -------
    Fraction or None
        None without judged or without calibration scores. With one judged transcript it is `conformal_p`.
    """
    judged, null = _measured(judged_M), _measured(null_N)
    m, n = len(judged), len(null)
    if not m or not n:
        return None
    rank_A = _pooled_midranks(np.concatenate([judged, null]))
    observed = int(rank_A[:m].sum())
    size, least = m, observed
    if n < m:  # that the judged ones have a sum so great says that the calibration's, mirrored, is so great
        top = int(rank_A.max())
        size, least = n, n * top - (int(rank_A.sum()) - observed)
        rank_A = top - rank_A
    bottom = int(rank_A.min())
    step = math.gcd(*(int(rank) - bottom for rank in rank_A)) or 1
    values = [(int(rank) - bottom) // step for rank in rank_A]
    reach = (least - size * bottom) // step
    choices = math.comb(m + n, m)
    if (m + n) * size * sum(sorted(values)[-size:]) * choices.bit_length() / 8 <= _WORK:
        return Fraction(_subsets_reaching(values, size, reach), choices)
    return Fraction(1 + _draws_reaching(np.array(values), size, reach, [seed, m, n]), 1 + DRAWS)


def _pooled_midranks(value_A: Floats) -> Ints:
    """Doubled midranks of one long array, by sorting."""
    _, index_A, count = np.unique(value_A, return_inverse=True, return_counts=True)
    below = np.cumsum(count) - count
    return np.asarray((2 * below + count - 1)[index_A], np.int64)


def _draws_reaching(value_A: Ints, size: int, least: int, seed: Sequence[int]) -> int:
    generator = np.random.default_rng(seed)
    reaching, left = 0, DRAWS
    while left:
        draws = min(left, max(1, 2_000_000 // len(value_A)))
        chosen = np.argpartition(generator.random((draws, len(value_A))), size - 1, axis=-1)[:, :size]
        reaching += int((value_A[chosen].sum(-1) >= least).sum())
        left -= draws
    return reaching


def pooled_p(judged_M: Floats, null_N: Floats, seed: int = 0) -> Fraction | None:
    """Test several transcripts of one producer together: min(1, 2 · min(tail count, rank sum)).

    The tail count finds a few false transcripts among many, the rank sum finds many that differ a little.
    Both are exact, so twice the smaller is valid (Bonferroni). One transcript has nothing to pool: its
    rank-sum p is the conformal one and is taken as it is.

    Parameters
    ----------
    judged_M : array (judged,)
    null_N : array (calibration,)
        Neither may have been used for centre and scale of the scores (`split`).
    seed : int
        See `rank_sum_p`.

    Returns
    -------
    Fraction or None
        None without judged or without calibration scores.

    Notes
    -----
    It assumes that all m + n scores are exchangeable *jointly*. A drift between calibration and judged
    transcripts, such as another driver, breaks that; ``benchmarks/calibration.py`` shows by how much.
    """
    tail, rank = tail_count_p(judged_M, null_N), rank_sum_p(judged_M, null_N, seed)
    if tail is None or rank is None:
        return None
    return rank if len(_measured(judged_M)) == 1 else min(Fraction(1), 2 * min(tail, rank))


def false_share(judged_M: Floats, null_N: Floats, alpha: Fraction, test: PooledTest = pooled_p) -> int:
    """Bound the number of false transcripts from below, by closed testing.

    Let j count the transcripts that are left out, the greatest scores first. The bound is the least j at
    which the pooled test no longer rejects the m − j that remain. If the claim holds for some m − d of the
    transcripts, the test rejects just these with probability α at most, and the m − d smallest are harder to
    reject than any other m − d; so the bound exceeds d with probability α at most, whatever d is.

    "Harder to reject" holds for scores without ties. Hence ties are first broken against the judged ones,
    which is valid (a random order is exact, and this one lies below it).

    Parameters
    ----------
    judged_M : array (judged,)
    null_N : array (calibration,)
    alpha : Fraction
    test : callable
        Of judged and null scores; its p must not grow when a judged score does and no scores tie.

    Returns
    -------
    int
        At most the number of judged scores that are measured; 0 when `test` does not reject at all.
    """
    judged, null = np.sort(_measured(judged_M)), _measured(null_N)
    p = test(judged, null)
    if p is None or p > alpha:
        return 0
    order = np.lexsort((np.arange(len(judged) + len(null)), np.concatenate([judged, null])))
    place = np.empty(len(order))
    place[order] = np.arange(len(order))  # a stable order: a judged score comes before an equal null one
    judged, null = place[: len(judged)], place[len(judged) :]
    for j in range(len(judged)):
        if not _rejected(judged[: len(judged) - j], null, alpha, test):
            return j
    return len(judged)


def _rejected(judged: Floats, null: Floats, alpha: Fraction, test: PooledTest) -> bool:
    if test is pooled_p and len(judged) > 1:
        tail = tail_count_p(judged, null)
        if tail is not None and 2 * tail <= alpha:  # saves the rank sum
            return True
    p = test(judged, null)
    return p is not None and p <= alpha


def complete_references(score_RM: Floats) -> int:
    """Count the references of `within_reference_p` whose members were all measured."""
    return len(_complete(score_RM))


def _complete(score_RM: Floats) -> Floats:
    score = np.asarray(score_RM, np.float64)
    return np.asarray(score[np.isfinite(score).all(-1)])


def within_reference_p(score_RM: Floats) -> Fraction | None:
    """Test a producer against the verifier's own repeats, by permuting the members of each reference.

    An honest producer's run is one more repeat, so within each reference the producer's place among the
    members is uniform, whatever the other references hold. Two statistics are counted out exactly: (a) the
    number of references in which the producer's score is strictly the greatest, each of which has
    probability 1/M under the claim where one member is strictly the greatest and 0 where several tie; (b) the
    sum over references of the producer's midrank. p is twice the smaller one's, at most 1. With one repeat
    (M = 2) both say the same, and p is that of one.

    Parameters
    ----------
    score_RM : array (reference, member)
        Member 0 is the producer's, the others are the verifier's repeats from separate processes. Every
        member's score comes from the others by one rule (`profile.symmetric_scores`). A reference with a
        NaN is left out; `complete_references` counts the rest.

    Returns
    -------
    Fraction or None
        None without a complete reference or without a repeat.
    """
    score = _complete(score_RM)
    if not len(score) or score.shape[1] < 2:
        return None
    members = score.shape[1]
    top = score == score.max(-1, keepdims=True)
    single = top.sum(-1) == 1
    p_top = binomial_tail(int(single.sum()), int((single & top[:, 0]).sum()), members)
    rank_RM = _doubled_midranks(score)
    p_rank = Fraction(sums_reaching(rank_RM, int(rank_RM[:, 0].sum())), members ** len(score))
    return _either(p_top, p_rank, members)


def _either(p_top: Fraction, p_rank: Fraction, members: int) -> Fraction:
    return p_rank if members == 2 else min(Fraction(1), 2 * min(p_top, p_rank))


def binomial_tail(trials: int, least: int, sides: int) -> Fraction:
    """P(K ≥ least) of `trials` throws of a die with so many sides, one of which counts."""
    ways = sum(math.comb(trials, k) * (sides - 1) ** (trials - k) for k in range(least, trials + 1))
    return Fraction(ways, sides**trials)


def sums_reaching(value_RM: Ints, least: int) -> int:
    """Count the ways to take one value of each row whose sum is at least `least` (as `_subsets_reaching`)."""
    rows, members = value_RM.shape
    bits = (members**rows).bit_length() + 1
    sums = 1
    for row in value_RM:
        sums = sum(sums << (int(value) * bits) for value in row)
    return int((sums >> (least * bits)) % ((1 << bits) - 1))


def within_reference_false_share(score_RM: Floats, alpha: Fraction) -> int:
    """Bound the number of false references from below: closed testing with `within_reference_p`.

    The references in which the producer's rank is greatest are left out first. Ties are broken against the
    rejection: a tied producer takes the least of the tied ranks, while the null stays that of untied ranks,
    uniform on 0 … M − 1 in every reference. This is valid, since a random order of the tied ones is exact
    and the least rank lies below it. All references then have one null, so both statistics of a subset
    depend on nothing but its ranks, and the s least ranks are the subset of size s that is hardest to
    reject. A reference whose members all tie says nothing in either statistic; it is never counted false.

    Parameters
    ----------
    score_RM : array (reference, member)
        See `within_reference_p`.
    alpha : Fraction

    Returns
    -------
    int
        Exceeds the true number with probability `alpha` at most; 0 when the test of all does not reject.
    """
    score = _complete(score_RM)
    p = within_reference_p(score)
    if p is None or p > alpha:
        return 0
    telling = score[(score != score[:, :1]).any(-1)]
    members = score.shape[1]
    rank_R = np.sort((telling < telling[:, :1]).sum(-1))
    for j in range(len(rank_R)):
        kept = rank_R[: len(rank_R) - j]
        untied = np.tile(np.arange(members), (len(kept), 1))
        p_top = binomial_tail(len(kept), int((kept == members - 1).sum()), members)
        p_rank = Fraction(sums_reaching(untied, int(kept.sum())), members ** len(kept))
        if _either(p_top, p_rank, members) > alpha:
            return j
    return len(rank_R)


def leading_run_p(score_RM: Floats) -> Fraction | None:
    """Test whether the references whose scores are greatest have the producer on top.

    References are ordered by their greatest member score, which no permutation of members changes. The run is
    how many from the first on have the producer strictly on top: P(run ≥ k) = M^−k under the claim. So a few
    transcripts that stand far out are found, however many honest ones are beside them.

    Parameters
    ----------
    score_RM : array (reference, member)
        See `within_reference_p`.

    Returns
    -------
    Fraction or None
        None without a complete reference or without a repeat.
    """
    score = _complete(score_RM)
    if not len(score) or score.shape[1] < 2:
        return None
    order = np.argsort(-score.max(-1), kind="stable")
    first_R = np.asarray((score[order, :1] > score[order, 1:]).all(-1))
    run = int(np.logical_and.accumulate(first_R).sum())
    return Fraction(1, score.shape[1] ** run)


def own_repeats_p(score_RM: Floats) -> Fraction | None:
    """Combine `within_reference_p`, which is twice a smallest p, and `leading_run_p`: three statistics.

    With one repeat the first has a single statistic, and there are two.
    """
    within, run = within_reference_p(score_RM), leading_run_p(score_RM)
    if within is None or run is None:
        return None
    few = np.asarray(score_RM).shape[1] == 2
    return min(Fraction(1), 2 * within if few else within * 3 / 2, (2 if few else 3) * run)


def own_repeats_false_share(score_RM: Floats, alpha: Fraction) -> int:
    """Bound the number of false references from below: closed testing.

    All references are tested by `own_repeats_p`, every part of them by `within_reference_p`. Any test of its
    level serves for any set of hypotheses.
    """
    p = own_repeats_p(score_RM)
    if p is None or p > alpha:
        return 0
    return max(1, within_reference_false_share(score_RM, alpha))


def fisher_equality_p(differ: int, judged: int, reruns: int) -> Fraction | None:
    """Test `differ` of `judged` references that are not bit-equal, where none of `reruns` differed.

    If the claim is true and a start does not choose the kernel, a judged reference is one more rerun of it:
    given that k of R + n differ, all k fall among the R judged with probability C(R, k)/C(R + n, k), whatever
    the rate of differing is (Fisher 1922).

    Returns
    -------
    Fraction or None
        1 when none differs; None when nothing was judged.
    """
    if not 0 <= differ <= judged or reruns < 0:
        raise ValueError(f"{differ} of {judged} references differ, {reruns} reruns: not counts of one whole")
    return Fraction(math.comb(judged, differ), math.comb(judged + reruns, differ)) if judged else None


def bonferroni(p_T: Sequence[Fraction | None]) -> Fraction | None:
    """Combine the listed tests of one claim: min(1, T · min p).

    Parameters
    ----------
    p_T : sequence (tests,)
        The list was fixed before any value was seen. A listed test whose value could not be computed (None)
        counts in T.

    Returns
    -------
    Fraction or None
        None when no value could be computed.
    """
    values = [p for p in p_T if p is not None]
    return min(Fraction(1), len(p_T) * min(values)) if values else None


def holm(p_M: Sequence[Fraction | None]) -> list[Fraction | None]:
    """Adjust the p-values of a list of claims: rejecting those ≤ α errs with α at most (Holm 1979).

    Parameters
    ----------
    p_M : sequence (claims,)
        A listed claim without a value (None) counts as one that cannot be rejected, and stays None. Leave
        out a claim for which the files allow no test at all.

    Returns
    -------
    list of Fraction or None
        Not below the p-values, at most 1.
    """
    tested = sorted((p, i) for i, p in enumerate(p_M) if p is not None)
    adjusted: list[Fraction | None] = [None] * len(p_M)
    greatest = Fraction(0)
    for place, (p, i) in enumerate(tested):
        greatest = max(greatest, min(Fraction(1), p * (len(p_M) - place)))
        adjusted[i] = greatest
    return adjusted


def threshold(honest_N: Floats, alpha: Fraction) -> tuple[float, int]:
    """Take the threshold that a new honest score exceeds with probability α at most.

    Parameters
    ----------
    honest_N : array (honest,)
    alpha : Fraction

    Returns
    -------
    (value, j)
        j = ⌊α(n + 1)⌋ and the j-th greatest score: of n + 1 exchangeable ones the new one is among the j
        greatest with probability j/(n + 1). Infinity and 0 when n is too small for this level.
    """
    honest = np.sort(_measured(honest_N))
    j = int(alpha * (len(honest) + 1))
    return (float(honest[-j]), j) if j else (math.inf, 0)


def false_alarm_spread(n: int, j: int, coverage: float = 0.95) -> tuple[float, float]:
    """Give the central interval of the false-alarm rate of one threshold on new honest scores.

    The rate of the j-th greatest of n is Beta(j, n + 1 − j) over draws of the honest scores; j/(n + 1) is
    its mean only. (0, 0) for j = 0, which never alarms.
    """
    from scipy.stats import beta

    if not 0 <= j <= n:
        raise ValueError(f"the {j}-th greatest of {n} scores does not exist")
    if not j:
        return 0.0, 0.0
    low, high = beta.ppf([(1 - coverage) / 2, (1 + coverage) / 2], j, n + 1 - j)
    return float(low), float(high)


def clopper_pearson(k: int, n: int, coverage: float = 0.95) -> tuple[float, float]:
    """Give the exact confidence interval of a rate of which k of n were seen; (0, 1) for n = 0."""
    from scipy.stats import beta

    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a share")
    tail = (1 - coverage) / 2
    low = float(beta.ppf(tail, k, n - k + 1)) if k else 0.0
    return low, float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0


def share_bound(rows: int, confidence: float = 0.95) -> float:
    """Bound the share of false rows from above when all of `rows` drawn ones were right.

    1 − 0.05^(1/s): with a greater share, s independent draws would all be right with probability under 5 %.
    1 when none was drawn.
    """
    return 1.0 - (1.0 - confidence) ** (1.0 / rows) if rows > 0 else 1.0
