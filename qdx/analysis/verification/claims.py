"""Is this the claimed config? One line for every claim, each with what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from qdx.analysis.numerics import Floats
from qdx.analysis.section import Section
from qdx.analysis.verification import said
from qdx.analysis.verification.attribution import Judged, answers, best, judge, judge_scores
from qdx.analysis.verification.conformal import (
    answer,
    attainable_level,
    combine,
    fewest_references,
    holm,
)
from qdx.analysis.verification.environment import facts_of
from qdx.analysis.verification.gather import Replays, same_machines
from qdx.analysis.verification.verdicts import Evidence, Exact, decide, headline, record_differs
from qdx.errors import QdxError

Trees = tuple[xr.DataTree, xr.DataTree]
ONE = {"units": "1"}


def verify(
    producer_tree: xr.DataTree,
    verifier_tree: xr.DataTree,
    alpha: float = 0.05,
    claims: Mapping[str, str] | None = None,
    calibration: Trees | None = None,
) -> Section:
    """Test what each producer claims to have run.

    Parameters
    ----------
    producer_tree : xarray.DataTree
        The producers' sweep, or its commitments; ``/decode`` holds the rows behind each transcript.
    verifier_tree : xarray.DataTree
        The verifier's replays of them: ``/replay`` with a dimension ``producer``.
    alpha : float
        Probability with which an honest claim may be rejected.
    claims : Mapping of str to str, optional
        Producer → config that it claims to be. Default: its own label.
    calibration : (producer_tree, verifier_tree), optional
        Transcripts of *known* configs made in the producers' environment class, and their replays here. By
        default the labels of the judged producers are taken as true: each transcript is judged by the other
        references. That measures error rates; a label that is wrong throughout cannot be found so, and no
        verdict rests on it.

    Returns
    -------
    Section
        Result over (producer, config, reference): ``p`` (conformal, from sketches), ``p_margin`` (from the
        tokens alone), ``p_repeat`` (from sketches, against this machine's own repeats), ``margin``,
        ``tokens``, ``tokens_greedy``, ``log_likelihood``, ``rows_compared``,
        ``rows_equal``, ``prefill_compared``, ``prefill_equal``; over (producer, config): ``exact`` ("" where
        the exact test of decode is valid, else why not), ``exact_error``, ``exact_p``, the same with
        ``exact_prefill…``, ``p_combined``; over producer: ``claim``, ``p_claim`` (combined), ``p_holm``,
        ``p_margin_claim``, ``answer``, ``p_test`` and ``p_test_holm`` (what the verdict rests on),
        ``verdict`` (one of `verdicts.KINDS`), ``because``. Attribute ``headline``: all verdicts in a
        sentence.

    Raises
    ------
    QdxError
        See `gather.Replays.of`; also for a claim of a config that was not replayed.

    Notes
    -----
    p = (1 + #{T₀ ≥ T})/(n + 1), T the greatest deviation of a transcript's profile from the claimed config's,
    see `profile.profile_p`; m transcripts combine as min(1, 2 · mean p); Holm's adjustment is across the
    claims.
    """
    data = Replays.of(producer_tree, verifier_tree)
    known = calibrating(data, calibration)
    claimed = _claimed(data, claims or {})
    at = [data.configs.index(label) if label in data.configs else -1 for label in claimed]
    same = [known.references.index(r) if r in known.references else -1 for r in data.references]
    judged = judge(data.energy_DCRT, data.floor_DRT, known.calibration(data.configs), same)
    p_margin = judge_scores(data.margin_DCR, known.honest(known.margin_DCR, data.configs), same)
    fits_DC = same_machines(data, known)
    judged.p_DCR[~fits_DC] = p_margin[~fits_DC] = np.nan
    combined_DC, margin_DC = _combined(judged.p_DCR), _combined(p_margin)
    # A transcript is never judged by its own reference.
    calibrated_C = known.references_C(data.configs) - any(r >= 0 for r in same)
    counts = calibrated_C[(calibrated_C > 0) & fits_DC.any(0)]
    least = int(counts.min()) if counts.size else 0
    p_repeat = _by_repeats(data)
    tested_DC, tested = _combined(p_repeat), len(data.references) - 1
    if calibration is not None:
        tested_DC, tested = np.where(np.isfinite(combined_DC), combined_DC, margin_DC), least
    evidence = Evidence(
        [Exact.of(data, rows) for rows in data.phases],
        tested_DC,
        tested,
        "known transcripts" if calibration is not None else "this machine's own repeats",
        fewest_references(alpha / max(1, sum(c >= 0 for c in at)), len(data.references)),
        np.stack([(best(judged.log_likelihood_DCR) == c).sum(-1) for c in range(len(data.configs))], -1),
        _others(producer_tree, verifier_tree, data, claimed),
    )
    p_test = np.array([evidence.p(d, c) if c >= 0 else np.nan for d, c in enumerate(at)])
    p_test_holm = holm(p_test)
    decided = [decide(data, evidence, d, c, float(p_test_holm[d]), alpha) for d, c in enumerate(at)]
    result = _result(data, judged, p_margin, p_repeat, evidence, combined_DC)

    def of_claim(values_DC: Floats) -> Floats:
        return np.array([values_DC[d, c] if c >= 0 else np.nan for d, c in enumerate(at)])

    p_claim = of_claim(combined_DC)
    named = [str(answer(data.configs, row, alpha)) for row in combined_DC]
    columns = {
        "claim": (np.array(claimed, object), "claimed config"),
        "p_claim": (p_claim, "p_combined of the claimed config"),
        "p_holm": (holm(p_claim), "p_claim, Holm's adjustment over the claims"),
        "p_margin_claim": (of_claim(margin_DC), "combined p of the tokens' margins under the claim"),
        "answer": (np.array(named, object), f"configs with p_combined over {alpha:g}"),
        "p_test": (p_test, "p of the claim's tests: exact, or of a calibration of known transcripts"),
        "p_test_holm": (p_test_holm, "p_test, Holm's adjustment over the claims"),
        "verdict": (np.array([kind for kind, _ in decided], object), f"verdict at level {alpha:g}"),
        "because": (np.array([why for _, why in decided], object), "what the verdict rests on"),
    }
    result = result.assign(
        {name: ("producer", values, {**ONE, "long_name": about}) for name, (values, about) in columns.items()}
    )
    result.attrs = {
        "alpha": alpha,
        "attainable_level": attainable_level(least, alpha),
        "calibration_references": least,
        "other_machines": int(((calibrated_C > 0) & ~fits_DC).sum()),
        "calibration": "the judged producers' own labels" if calibration is None else "separate transcripts",
        "headline": headline([kind for kind, _ in decided]),
    }
    each = [[str(a) for a in row] for row in answers(data.configs, judged.p_DCR, alpha)]
    text = said.claims(data, evidence, result, at, each, calibration is None)
    return Section("verify", "Claims", result, {"": text})


def calibrating(data: Replays, calibration: Trees | None) -> Replays:
    """What the judged transcripts are held against: the calibration, or they themselves.

    Raises
    ------
    QdxError
        When the two are not of one kind.
    """
    if calibration is None:
        return data
    known = Replays.of(*calibration)
    if known.components != data.components:
        raise QdxError(
            f"calibration has sketches of {known.components} components, the judged of {data.components}"
        )
    tokens = [int(one.tokens_DCR.max(initial=0)) for one in (known, data)]
    if tokens[0] != tokens[1]:
        raise QdxError(
            f"the calibration's transcripts have {tokens[0]} tokens, the judged {tokens[1]}: means over "
            "so many are not exchangeable; calibrate with equal generate.tokens"
        )
    return known


def _claimed(data: Replays, claims: Mapping[str, str]) -> list[str]:
    claimed = [str(claims.get(label, label)) for label in data.producers]
    for producer in claims:
        if producer not in data.producers:
            raise QdxError(
                f"verify.claims names {producer!r}, which is no producer: {', '.join(data.producers)}"
            )
    for producer, label in zip(data.producers, claimed, strict=True):
        if producer in claims and label not in data.configs:
            raise QdxError(
                f"producer {producer!r} claims {label!r}, which was not replayed: add it to quant=… "
                f"(replayed: {', '.join(data.configs)})"
            )
    return claimed


def _combined(p_DCR: Floats) -> Floats:
    return np.array([[combine(p_R) for p_R in row] for row in p_DCR])


def _by_repeats(data: Replays) -> Floats:
    """Conformal p against the verifier's own repeats, where producer and config share an environment class.

    There an honest producer's run is one more repeat of the config (producer, config, reference).
    """
    p_DCR = np.full(data.energy_DCRT.shape[:3], np.nan)
    for d, environment in enumerate(data.environment_D):
        one = data.of_repeats(d)
        own = slice(d, d + 1)
        p_DCR[d] = judge(data.energy_DCRT[own], data.floor_DRT[own], one, range(len(data.references))).p_DCR[
            0
        ]
        p_DCR[d, [here != environment for here in data.environment_C]] = np.nan
    return p_DCR


def _others(
    producer_tree: xr.DataTree, verifier_tree: xr.DataTree, data: Replays, claimed: Sequence[str]
) -> list[list[str]]:
    """What of a producer's own record is not the config's; asked of a claim of its own label only."""
    here = [facts_of(verifier_tree, "replay", c) for c in data.configs]
    found = []
    for label, claim in zip(data.producers, claimed, strict=True):
        own = facts_of(producer_tree, "decode", label)
        found.append([record_differs(own, facts) if claim == label else "" for facts in here])
    return found


def _result(
    data: Replays,
    judged: Judged,
    p_margin: Floats,
    p_repeat: Floats,
    evidence: Evidence,
    combined_DC: Floats,
) -> xr.Dataset:
    each, pair = ("producer", "config", "reference"), ("producer", "config")
    rows = {
        "p": (judged.p_DCR, "conformal p of the sketches' profile"),
        "p_margin": (p_margin, "conformal p of the tokens' mean margin"),
        "p_repeat": (p_repeat, "conformal p of the sketches' profile, against the verifier's own repeats"),
        "margin": (data.margin_DCR, "mean margin of the producer's tokens"),
        "tokens": (data.tokens_DCR, "tokens judged by their margins, the first one among them"),
        "tokens_greedy": (data.greedy_DCR, "tokens that are the greedy choice here"),
        "log_likelihood": (judged.log_likelihood_DCR, "ℓ of the config"),
        "rows_compared": (data.decode.compared_DCR, "decode rows compared"),
        "rows_equal": (data.decode.equal_DCR, "decode rows that are bit-equal"),
    }
    if data.prefill is not None:
        rows["prefill_compared"] = (data.prefill.compared_DCR, "prefill rows compared")
        rows["prefill_equal"] = (data.prefill.equal_DCR, "prefill rows that are bit-equal")
    units = {"margin": "nat", "log_likelihood": "nat"}
    result = xr.Dataset(
        {
            name: (each, values, {"units": units.get(name, "1"), "long_name": about})
            for name, (values, about) in rows.items()
        },
        coords={"producer": data.producers, "config": data.configs, "reference": data.references},
    )
    result["p_combined"] = (pair, combined_DC, {**ONE, "long_name": "min(1, 2 · mean p) over references"})
    for exact in evidence.exact:
        name = "exact" if exact.phase == "decode" else f"exact_{exact.phase}"
        why = f"why the exact test of {exact.phase} is not valid; empty: it is"
        result[name] = (pair, np.array(exact.why_DC, object), {**ONE, "long_name": why})
        error = "95 % upper bound of the rate at which an honest reference mismatches"
        result[f"{name}_error"] = (pair, exact.error_DC, {**ONE, "long_name": error})
        result[f"{name}_p"] = (pair, exact.p_DC, {**ONE, "long_name": "Fisher's p of the mismatches"})
    return result
