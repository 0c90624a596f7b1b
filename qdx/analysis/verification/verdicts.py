"""What is said of a claim, and by which test: the strongest that its machines and its calibration allow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qdx.analysis.layout import plural
from qdx.analysis.numerics import Floats, mismatch_bound, plain_kernel
from qdx.analysis.verification.compared import Compared
from qdx.analysis.verification.exact import equality_p, why_not_exact
from qdx.analysis.verification.gather import Replays

KINDS: Mapping[str, str] = {
    "confirmed": "every row is bit-equal",
    "confirmed in prefill": "every prefill row is bit-equal; decode could not be tested exactly",
    "refuted": "an honest claim would be rejected so with at most the level's probability",
    "not refuted": "the claim is plausible, and others may be",
    "undecided": "no test is possible or the evidence is too little",
    "other config": "the producer's own record states another config than the one that was replayed",
    "not replayed": "no config of that name was replayed",
}
DEMANDED = {"weights_sha256": "weights", "dtype": "dtype", "observed_kernel": "kernel"}


@dataclass(frozen=True)
class Exact:
    """The exact test of one phase, for every producer and config.

    Attributes
    ----------
    phase : str
    why_DC : list of list of str
        Why it is not valid; empty: it is.
    p_DC : array (producer, config)
        See `exact.equality_p`; NaN where it is not valid.
    error_DC : array (producer, config)
        95 % upper bound of the rate at which an honest reference mismatches; NaN where it is not valid.
    differ_DC, judged_DC : array (producer, config)
        References with a row that differs, and references compared.
    reruns_DC : array (producer, config)
        Of the config here.
    """

    phase: str
    why_DC: list[list[str]]
    p_DC: Floats
    error_DC: Floats
    differ_DC: np.ndarray
    judged_DC: np.ndarray
    reruns_DC: np.ndarray

    @classmethod
    def of(cls, data: Replays, rows: Compared) -> Exact:
        """Test the rows of one phase."""
        judged = rows.compared_DCR > 0
        differ_DC = (judged & (rows.equal_DCR < rows.compared_DCR)).sum(-1)
        judged_DC = judged.sum(-1)
        shape = judged_DC.shape
        why = [[""] * shape[1] for _ in range(shape[0])]
        p_DC, error_DC = np.full(shape, np.nan), np.full(shape, np.nan)
        reruns_DC = np.zeros(shape, np.int64)
        for d, c in np.ndindex(shape):
            own, here = data.environment_D[d], data.environment_C[c]
            why[d][c] = rows.missing or why_not_exact(own, here, rows.repeats_C[c])
            reruns_DC[d, c] = rows.repeats_C[c].reruns
            if not why[d][c]:
                p_DC[d, c] = equality_p(int(differ_DC[d, c]), int(judged_DC[d, c]), int(reruns_DC[d, c]))
                error_DC[d, c] = mismatch_bound(int(reruns_DC[d, c]))
        return cls(rows.phase, why, p_DC, error_DC, differ_DC, judged_DC, reruns_DC)

    @property
    def equal_DC(self) -> np.ndarray:
        """Whether rows were compared and all are bit-equal, valid test or not."""
        return np.asarray((self.judged_DC > 0) & (self.differ_DC == 0))


@dataclass(frozen=True)
class Evidence:
    """What verdicts rest on.

    Attributes
    ----------
    exact : list of Exact
        Decode, then prefill where it was compared.
    p_DC : array (producer, config)
        Combined p against transcripts that are honest whatever the producers say: known ones, made and
        replayed on these machines, or the verifier's own repeats where its environment class is the
        producer's. Of the sketches or, where the producers published none, of the tokens. NaN without.
    calibration : int
        Its references.
    source : str
        What it is of.
    fewest : int
        References that a rejection takes at the level, of several transcripts and claims.
    likeliest_DC : array (producer, config)
        References whose greatest likelihood is the config's.
    other_DC : list of list of str
        What of a producer's own record is not the config's, such as its weights.
    """

    exact: list[Exact]
    p_DC: Floats
    calibration: int
    source: str
    fewest: int
    likeliest_DC: np.ndarray
    other_DC: list[list[str]]

    def p(self, d: int, c: int) -> float:
        """The p-value of a claim: that of its tests, and times their number where there are several.

        Its tests are every valid exact one and, where decode has none, the calibrated one. NaN: there is no
        test.
        """
        found = [float(e.p_DC[d, c]) for e in self.exact]
        if not np.isfinite(found[0]):
            found.append(float(self.p_DC[d, c]))
        tested = [p for p in found if np.isfinite(p)]
        return min(1.0, len(tested) * min(tested)) if tested else float("nan")


def record_differs(producer: Mapping[str, str], config: Mapping[str, str]) -> str:
    """Say what of a producer's record is not the replayed config's; "" where all agrees or is unknown.

    A kernel and its numerical model are one claim: that the rows are other ones is the environment's doing.
    """

    def same(name: str) -> bool:
        one, two = producer[name], config[name]
        return one == two or (name == "observed_kernel" and plain_kernel(one) == plain_kernel(two))

    return ", ".join(
        f"{noun} ({_short(producer[name])}; here {_short(config[name])})"
        for name, noun in DEMANDED.items()
        if producer.get(name) and config.get(name) and not same(name)
    )


def _short(value: str) -> str:
    return value if len(value) <= 32 else f"{value[:31]}…"


def decide(data: Replays, evidence: Evidence, d: int, c: int, p_holm: float, alpha: float) -> tuple[str, str]:
    """The verdict on producer d's claim of config c, one of `KINDS`, and why.

    Parameters
    ----------
    c : int
        −1: it was not replayed.
    p_holm : float
        `Evidence.p`, adjusted over all claims.
    """
    if c < 0:
        return "not replayed", "add it to quant=…"
    decode, *rest = evidence.exact
    why = _because(data, evidence, d, c, p_holm)
    prefill_equal = all(e.equal_DC[d, c] for e in rest)
    if decode.equal_DC[d, c] and prefill_equal:
        return "confirmed", why
    if evidence.other_DC[d][c]:
        return "other config", f"its own record states other {evidence.other_DC[d][c]}; {why}"
    if p_holm <= alpha:
        return "refuted", why
    if rest and prefill_equal and not np.isfinite(decode.p_DC[d, c]):
        return "confirmed in prefill", why
    if np.isfinite(evidence.p_DC[d, c]) and not np.isfinite(decode.p_DC[d, c]):
        if evidence.calibration >= evidence.fewest:
            return "not refuted", why
        why += f"; {evidence.fewest} calibration references are needed to refute"
    return "undecided", why


def _because(data: Replays, evidence: Evidence, d: int, c: int, p_holm: float) -> str:
    said = [_of_phase(e, rows, data, d, c) for e, rows in zip(evidence.exact, data.phases, strict=True)]
    if not np.isfinite(evidence.exact[0].p_DC[d, c]):
        if np.isfinite(evidence.p_DC[d, c]):
            said.append(
                f"distances: p = {evidence.p_DC[d, c]:.3g} "
                f"({plural(evidence.calibration, 'calibration reference')} of {evidence.source})"
            )
        if not evidence.exact[0].equal_DC[d, c]:
            if not np.isfinite(evidence.p_DC[d, c]):
                said.append("distances: no calibration of known transcripts, so only ranks")
            said.append(_ranks(data, evidence, d))
    if np.isfinite(p_holm) and p_holm < 1:
        said.append(f"p = {p_holm:.2g} adjusted over all claims")
    return "; ".join(part for part in said if part)


def _of_phase(exact: Exact, rows: Compared, data: Replays, d: int, c: int) -> str:
    compared, equal = int(rows.compared_DCR[d, c].sum()), int(rows.equal_DCR[d, c].sum())
    if not compared:
        return f"{exact.phase}: {exact.why_DC[d][c] or 'no row to compare'}"
    said = f"{exact.phase}: {equal:,} of {plural(compared, 'row')} bit-equal"
    if exact.equal_DC[d, c]:
        twins = [name for v, name in enumerate(data.configs) if v != c and exact.equal_DC[d, v]]
        return said + (f" (and those of {', '.join(twins)})" if twins else "")
    if exact.why_DC[d][c]:
        return f"{said}, no exact test ({exact.why_DC[d][c]})"
    return (
        f"{said}, {exact.differ_DC[d, c]} of {plural(int(exact.judged_DC[d, c]), 'reference')} differ where "
        f"none of {plural(int(exact.reruns_DC[d, c]), 'rerun')} did (an honest one in under "
        f"{upper(float(exact.error_DC[d, c]))})"
    )


def upper(bound: float) -> str:
    """An upper bound in per cent, rounded up."""
    return f"{np.ceil(bound * 1000) / 10:.1f} %"


def _ranks(data: Replays, evidence: Evidence, d: int) -> str:
    counts = evidence.likeliest_DC[d]
    if not counts.any():
        return ""
    best = int(counts.argmax())
    return (
        f"the likeliest of {plural(len(counts), 'config')} is {data.configs[best]} in {counts[best]} of "
        f"{plural(len(data.references), 'reference')}"
    )


def headline(kinds: Sequence[str]) -> str:
    """All verdicts in one sentence."""
    counts = [(kind, kinds.count(kind)) for kind in KINDS if kind in kinds]
    return f"{plural(len(kinds), 'claim')}: {', '.join(f'{count} {kind}' for kind, count in counts)}"
