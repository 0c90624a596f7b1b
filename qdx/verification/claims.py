"""Is this the claimed config? One line for every claim, each with what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from qdx.analysis.section import Section
from qdx.errors import QdxError
from qdx.statistics import Floats, Ints
from qdx.verification.binding import PHASES
from qdx.verification.cases import Evidence
from qdx.verification.claim_blocks import claim_blocks
from qdx.verification.environment import record_differs
from qdx.verification.environment_class import compare
from qdx.verification.evidence import Claim, sampling_of, weigh, weigh_pairs
from qdx.verification.exchange import Exchange
from qdx.verification.format_names import meant
from qdx.verification.judge import best
from qdx.verification.likelihood import log_likelihood, token_misfits
from qdx.verification.listed import compared
from qdx.verification.listed_tests import parameters_of, weights_of
from qdx.verification.obligations import Obligations, Stated, obligations
from qdx.verification.p_values import level
from qdx.verification.parameters import Fit
from qdx.verification.recorded import own_units
from qdx.verification.replays import Replays
from qdx.verification.sampled import log_likelihood as log_likelihood_of_drawn
from qdx.verification.shares import PRIOR, posteriors
from qdx.verification.verdicts import Verdict, decide, headline

Trees = tuple[xr.DataTree, xr.DataTree]
ONE = {"units": "1"}
TESTS = (
    "decode rows", "prefill rows", "distances", "text", "drawn tokens", "uniformity", "parameters",
    "seeded tokens",
)  # fmt: skip
NOT_LISTED = "not listed"


def verify(
    producer_tree: xr.DataTree,
    verifier_tree: xr.DataTree,
    alpha: float = 0.05,
    claims: Mapping[str, str] | None = None,
    calibration: Trees | Sequence[Trees] | None = None,
    require: Mapping[str, Any] | None = None,
    exchange: Exchange | None = None,
) -> Section:
    """Test what each producer claims to have run.

    Parameters
    ----------
    producer_tree : xarray.DataTree
        The producers' sweep, or its commitments; ``/decode`` holds the rows behind each transcript.
    verifier_tree : xarray.DataTree
        The verifier's replays of them: ``/replay`` with a dimension ``producer``.
    alpha : float
        Probability with which an honest claim may be refuted, over all claims together.
    claims : Mapping of str to str, optional
        Producer → config that it claims to be. Default: its own label.
    calibration : (producer_tree, verifier_tree), or a sequence of such pairs, optional
        Transcripts whose labels are *known* to be right, made in the producers' environment class, and their
        replays here. The labels of the judged producers never serve as that. Where a producer's class is not
        fully stated, p is the greatest over all sets that do not contradict it.
    require : Mapping, optional
        What the verifier demands; see `qdx.verification.obligations`.
    exchange : Exchange, optional
        What the producers' file says to the verifier's challenge; `producer_tree` is its tree then.

    Returns
    -------
    Section
        Result over (producer, config, reference): ``margin``, ``tokens``, ``tokens_greedy``, ``tokens_tied``,
        ``text_misfits``, ``log_likelihood`` (NaN without a calibration), ``rows_compared``, ``rows_equal``,
        ``rows_expected``, and the same with ``prefill_…`` of content rows; of drawn tokens ``posterior``.

        Over (producer, config): ``p_config``. Over (producer, test): ``test_p`` and ``test_null``.

        Over producer: ``claim``, ``verdict`` (one of `verdicts.KINDS`), ``concerns``, ``because``,
        ``p_test`` (T · min p of the listed tests), ``p_test_holm``, ``false_at_least``, ``units``,
        ``plain_greedy``, ``answer``, ``unmet`` (what was demanded and not met), ``false_share_at_least``.
        Of drawn tokens ``temperature_low`` and ``temperature_high`` (ends of the temperatures that fit).
        Of drawn rows ``drawn_rows`` (how many, 0 without a challenge), ``drawn_prefill``, ``drawn_decode``,
        ``false_share_prefill`` and ``false_share_decode`` (bounds that drawn rows confirm, else NaN).

        Attribute ``headline``: all verdicts in a sentence.

    Raises
    ------
    QdxError
        See `qdx.verification.replays.Replays.of`; also for a claim of a config that was not replayed.
    """
    data, exact_alpha = Replays.of(producer_tree, verifier_tree), level(alpha)
    known = calibrating(data, calibration)
    claimed = _claimed(data, claims or {})
    may_be = [_meant(data, d, label, claims or {}) for d, label in enumerate(claimed)]
    firsts = [min(one, default=-1) for one in may_be]
    demanded = _obligations(data, producer_tree, firsts, require or {}, exchange)
    judged = exchange is None or exchange.fits
    if not judged:  # it may have been edited on its way: no test of it counts for or against anybody
        may_be = [[]] * len(may_be)
    tested = weigh(data, known, may_be, exact_alpha)
    at = [-1 if one is None else one.config for one in tested]
    likelihood_DCR = _likelihood(data, known)
    likeliest = best(likelihood_DCR)
    evidence = Evidence(
        data,
        tested,
        exact_alpha,
        bool(known),
        np.stack([(likeliest == c).sum(-1) for c in range(len(data.configs))], -1),
        _others(data),
        demanded,
        [_fit(data, tested[d], d, c, alpha) for d, c in enumerate(at)],
    )
    decided = [decide(evidence, d, c, claimed[d]) for d, c in enumerate(at)]
    p_DC = weigh_pairs(data, known)
    if not judged:
        p_DC = np.full_like(p_DC, np.nan)
    result = _result(data, evidence, decided, claimed, likelihood_DCR, p_DC)
    result.attrs = {
        "alpha": alpha,
        "calibration_sets": len(known),
        "headline": headline([one.kind for one in decided]),
    }
    blocks = claim_blocks(data, evidence, decided, result, at)
    return Section("verify", "Claims", result, blocks=blocks)


def calibrating(data: Replays, calibration: Trees | Sequence[Trees] | None) -> list[Replays]:
    """Read the calibration sets.

    Raises
    ------
    QdxError
        When a set and the judged transcripts are not of one kind.
    """
    if calibration is None:
        return []
    pairs: list[Any] = [calibration] if isinstance(calibration[0], xr.DataTree) else list(calibration)
    found = []
    recorded = any(one is not None for one in data.records_D)
    for own, here in pairs:
        known = _as_known(Replays.of(own, here, lists=recorded), here)
        if known.components != data.components:
            raise QdxError(
                f"calibration has sketches of {known.components} components, the judged {data.components}: "
                "use one capture.components"
            )
        tokens = [int(one.emitted_DR.max(initial=0)) for one in (known, data)]
        # Records have lengths of their own: their texts are scored on as many tokens as both sides have.
        if tokens[0] != tokens[1] and not recorded:
            raise QdxError(
                f"the calibration's transcripts have {tokens[0]} tokens, the judged {tokens[1]}: means over "
                "so many are not exchangeable; calibrate with equal generate.tokens"
            )
        found.append(known)
    return found


def _as_known(known: Replays, verifier_tree: xr.DataTree) -> Replays:
    """Call known records by the config that the verifier of them said they are (``verify.claims``)."""
    if all(one is None for one in known.records_D) or "analysis" not in verifier_tree.children:
        return known
    judged = verifier_tree["analysis"].children.get("verify")
    if judged is None or "claim" not in judged:
        return known
    claim = judged["claim"].to_series().to_dict()
    return replace(known, producers=[str(claim.get(label, label)) for label in known.producers])


def _claimed(data: Replays, claims: Mapping[str, str]) -> list[str]:
    claimed = [str(claims.get(label, label)) for label in data.producers]
    for producer in claims:
        if producer not in data.producers:
            raise QdxError(
                f"verify.claims names {producer!r}, which is not a producer: {', '.join(data.producers)}"
            )
    for producer, label in zip(data.producers, claimed, strict=True):
        d = data.producers.index(producer)
        if producer in claims and not _meant(data, d, label, claims):
            named = f"{label!r}, which was not replayed"
            if data.records_D[d] is not None:
                named = f"{label!r}: neither that config nor any of that format was replayed"
            raise QdxError(
                f"producer {producer!r} claims {named}: add it to quant=… "
                f"(replayed: {', '.join(data.configs)})"
            )
    return claimed


def _meant(data: Replays, d: int, label: str, claims: Mapping[str, str]) -> list[int]:
    """The configs that a producer may claim to be; none: it claims nothing that was replayed.

    Records of other programs claim none: what they call their model, the provider chose. What the verifier
    says of them may be a format, which is a claim of any of its kernels.
    """
    if data.records_D[d] is None:
        return [data.configs.index(label)] if label in data.configs else []
    if data.producers[d] not in claims:
        return []
    dtypes = [record.get("dtype", "") for record in data.record_C]
    formats = data.formats_C or [""] * len(data.configs)
    return meant(label, data.configs, formats, dtypes)


def _likelihood(data: Replays, known: Sequence[Replays]) -> Floats:
    """ℓ of every transcript under every config, scales from the known transcripts: ranks, no verdict.

    NaN for a config without known transcripts.
    """
    found = np.full(data.energy_DCRT.shape[:3], np.nan)
    if not known:
        return found
    for d in range(len(data.producers)):
        judged, one = data, known[0]
        if data.records_D[d] is not None:
            alike = compared(data, one, d)
            if isinstance(alike, str):
                continue
            judged, one = alike.judged, alike.known
        calibration = one.calibration(data.configs)
        measured = calibration.references_C > 0
        for r in np.flatnonzero(data.there_DR[d] | (data.records_D[d] is None)):
            same = [i for i, key in enumerate(one.reference_keys) if key == data.reference_keys[r]]
            others = calibration.without(same[0]) if same else calibration
            misfits = token_misfits(judged.energy_DCRT[d, :, r], judged.floor_DRT[d, r], others)
            found[d, :, r] = np.where(measured, log_likelihood(misfits, calibration.components), np.nan)
    return found


def _obligations(
    data: Replays,
    tree: xr.DataTree,
    at: Sequence[int],
    require: Mapping[str, Any],
    exchange: Exchange | None,
) -> list[Obligations]:
    """Say what was demanded of every producer."""
    stored = tree["provenance"].to_dataset() if "provenance" in tree.children else xr.Dataset()
    found = []
    for d, label in enumerate(data.producers):
        prompts = ""
        if "references_sha256" in stored:
            prompts = str(stored["references_sha256"].sel(config=label).values)
        c, there_R = at[d], data.there_DR[d]
        not_here = compare(data.class_D[d], data.class_C[c]).why if c >= 0 else "it was not replayed"
        given = Stated(
            data.record_D[d],
            len({key for key, there in zip(data.reference_keys, there_R, strict=True) if there}),
            own_units(data.units_DR[d], there_R),
            int(data.emitted_DR[d][there_R].min(initial=2**31 - 1)) if there_R.any() else 0,
            prompts,
            not_here,
        )
        found.append(obligations(require, given, exchange, label))
    return found


def _others(data: Replays) -> list[list[str]]:
    """Say what of a producer's own record is not the config's."""
    return [[record_differs(own, here) for here in data.record_C] for own in data.record_D]


def _result(
    data: Replays,
    evidence: Evidence,
    decided: Sequence[Verdict],
    claimed: Sequence[str],
    likelihood_DCR: Floats,
    p_DC: Floats,
) -> xr.Dataset:
    coords = {
        "producer": data.producers,
        "config": data.configs,
        "reference": data.references,
        "test": list(TESTS),
    }
    result = xr.Dataset(_of_references(data, likelihood_DCR), coords)
    about = "T · min p of the listed tests of the producer as this config; NaN: none is listed"
    result["p_config"] = (("producer", "config"), p_DC, {**ONE, "long_name": about})
    found = {
        **_of_tests(evidence),
        **_texts(data, evidence, decided, claimed, p_DC),
        **_numbers(data, evidence, decided),
    }
    return result.assign(found)


Variable = tuple[str | tuple[str, ...], Any, dict[str, str]]


def _of_references(data: Replays, likelihood_DCR: Floats) -> dict[str, Variable]:
    """Say what was counted of every transcript under every config."""
    rows = {
        "margin": (data.margin_DCR, "mean margin of the producer's tokens under the config's own rows here"),
        "tokens": (data.tokens_DCR, "tokens judged by their margins: every emitted one"),
        "tokens_greedy": (data.greedy_DCR, "tokens that are a greedy choice here, ties included"),
        "tokens_tied": (data.ties_DCR, "greedy tokens that share the greatest logit with another id"),
        "text_misfits": (data.misfit_DCRT.sum(-1), "tokens that are not greedy on a bit-equal row"),
        "log_likelihood": (likelihood_DCR, "ℓ of the config, scales from known transcripts"),
    }
    listed = [_listed_rows(data, d) for d in range(len(data.producers))]
    if any(tokens.any() for _, tokens in listed):
        rows["listed"] = (np.stack([tokens for _, tokens in listed]), "tokens with log-probabilities listed")
        about = "those whose every listed value is the one that the config's row here gives, as printed"
        rows["listed_equal"] = (np.stack([equal for equal, _ in listed]), about)
    if data.drawn is not None:
        about = "log-probability of the drawn tokens under the config's rows and the stated sampling"
        of_drawn = log_likelihood_of_drawn(data.drawn)
        rows["drawn_log_likelihood"] = (of_drawn, about)
        about = f"probability that the config answered the request; prior: {PRIOR}"
        rows["posterior"] = (posteriors(of_drawn, weights_of(data)), about)
    for phase in data.phases:
        name = "rows" if phase.phase == "decode" else phase.phase
        what = "decode rows" if phase.phase == "decode" else "content rows of prefill"
        rows[f"{name}_compared"] = (phase.content_DCR, f"{what} that both sides have")
        rows[f"{name}_equal"] = (phase.content_equal_DCR, f"{what} that are bit-equal")
        rows[f"{name}_expected"] = (phase.expected_DCR, f"{what} that the verifier has")
    units = {"margin": "nat", "log_likelihood": "nat", "drawn_log_likelihood": "nat"}
    dims = ("producer", "config", "reference")
    return {
        name: (dims, values, {"units": units.get(name, "1"), "long_name": about})
        for name, (values, about) in rows.items()
    }


def _of_tests(evidence: Evidence) -> dict[str, Variable]:
    """The p of every test of every claim, and what it is against."""
    found = [[_listed(claim, name) for name in TESTS] for claim in evidence.claims]
    p = np.array([[p for p, _ in row] for row in found])
    null = np.array([[null for _, null in row] for row in found], object)
    about_p = "p of a listed test of the claim; NaN: not listed, or without a value"
    about_null = "what the producer was held against, or why the test is not listed"
    dims = ("producer", "test")
    return {
        "test_p": (dims, p, {**ONE, "long_name": about_p}),
        "test_null": (dims, null, {**ONE, "long_name": about_null}),
    }


def _texts(
    data: Replays, evidence: Evidence, decided: Sequence[Verdict], claimed: Sequence[str], p_DC: Floats
) -> dict[str, Variable]:
    """Say what is said of every claim in words."""
    greedy = {True: "yes", False: "no", None: "not stated"}
    columns = {
        "claim": ([*claimed], "claimed config"),
        "verdict": ([one.kind for one in decided], f"verdict at level {float(evidence.alpha):g}"),
        "concerns": ([one.concerns for one in decided], "part of the claim that the verdict concerns"),
        "because": ([one.because for one in decided], "what the verdict rests on"),
        "plain_greedy": (
            [greedy[sampling_of(data, d)] for d in range(len(claimed))],
            "whether the record states plain greedy decoding",
        ),
        "answer": (_answers(evidence, p_DC), "configs that no listed test refutes, each by itself"),
        "unmet": (["; ".join(one.unmet) for one in evidence.obligations_D], "what was demanded and not met"),
    }
    return {
        name: ("producer", np.array(texts, object), {**ONE, "long_name": about})
        for name, (texts, about) in columns.items()
    }


def _numbers(data: Replays, evidence: Evidence, decided: Sequence[Verdict]) -> dict[str, Variable]:
    """Say what is counted of every claim, and its p."""
    p = [(claim.p, claim.p_holm) if claim else (None, None) for claim in evidence.claims]
    columns = {
        "p_test": ([_float(one) for one, _ in p], "T · min p over the claim's T listed tests"),
        "p_test_holm": ([_float(two) for _, two in p], "p_test, Holm's adjustment over the claims"),
        "false_at_least": ([one.false_at_least for one in decided], "units that are false, at least"),
        "units": (
            [own_units(*pair) for pair in zip(data.units_DR, data.there_DR, strict=True)],
            "independent transcripts",
        ),
        "drawn_rows": ([one.rows for one in evidence.obligations_D], "rows that the verifier drew"),
    }
    units_D = [own_units(*pair) for pair in zip(data.units_DR, data.there_DR, strict=True)]
    columns["false_share_at_least"] = (
        [
            one.false_at_least / max(1, units if claim is None else claim.judged(units))
            for one, claim, units in zip(decided, evidence.claims, units_D, strict=True)
        ],
        "false_at_least, as a share of the units that were judged",
    )
    if data.other_DCRTA is not None:
        nothing = (float("nan"), float("nan"))
        bounds = [nothing if one is None else (one.low, one.high) for one in evidence.fits_D]
        about = (
            "temperature that the drawn tokens fit under the claimed config, {} end (1 - alpha, each claim "
        )
        for i, end in enumerate(("low", "high")):
            columns[f"temperature_{end}"] = ([one[i] for one in bounds], f"{about.format(end)}by itself)")
    for name in PHASES:
        pairs = zip(evidence.obligations_D, decided, strict=True)
        drawn = [_of_phase(one, name, verdict) for one, verdict in pairs]
        columns[f"drawn_{name}"] = ([count for count, _ in drawn], f"rows of {name} that the verifier drew")
        about = f"share of false rows of {name}, at most (95 %); NaN where no drawn rows confirm it"
        columns[f"false_share_{name}"] = ([share for _, share in drawn], about)
    return {
        name: ("producer", np.array(values), {**ONE, "long_name": about})
        for name, (values, about) in columns.items()
    }


def _fit(data: Replays, claim: Claim | None, d: int, c: int, alpha: float) -> Fit | None:
    """Say which sampling parameters a producer's tokens fit; None where none of them was drawn."""
    if claim is None or claim.test("parameters") is None:
        return None
    return parameters_of(data, d, c, alpha, interval=True)


def _listed_rows(data: Replays, d: int) -> tuple[Ints, Ints]:
    """Tokens of which every listed value is equal here, and all with a list: (config, reference)."""
    shape = (len(data.configs), len(data.references))
    if data.listed is None or data.records_D[d] is None:
        return np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    equal_CR, tokens_R = data.listed.equal_DCR(d)
    return equal_CR, np.broadcast_to(tokens_R, shape)


def _listed(claim: Claim | None, name: str) -> tuple[float, str]:
    if claim is None:
        return float("nan"), "the claimed config was not replayed"
    test = claim.test(name)
    if test is None:
        return float("nan"), f"{NOT_LISTED}: {claim.unlisted.get(name, 'the files have no such rows')}"
    return _float(test.p), test.null


def _of_phase(demanded: Obligations, phase: str, verdict: Verdict) -> tuple[int, float]:
    """Rows that were drawn of a phase, and the bound of its false share where the verdict states it."""
    one = next((one for one in demanded.drawn if one.phase == phase), None)
    if one is None:
        return 0, float("nan")
    confirmed = verdict.kind == "confirmed in s drawn rows"
    return one.rows, one.false_share(demanded.configs) if confirmed else float("nan")


def _answers(evidence: Evidence, p_DC: Floats) -> list[str]:
    found, data, alpha = [], evidence.data, float(evidence.alpha)
    for d, row in enumerate(p_DC):
        if evidence.obligations_D[d].unfit:
            found.append("not judged")
            continue
        left = []
        for c, (label, p) in enumerate(zip(data.configs, row, strict=True)):
            if sampling_of(data, d) and data.misfit_DCRT[d, c].any():
                continue  # its text does not fit this config's rows
            if not p <= alpha:
                left.append(label if np.isfinite(p) else f"{label} (not tested)")
        found.append(", ".join(left) or "none of them")
    return found


def _float(p: object) -> float:
    return float("nan") if p is None else float(p)  # type: ignore[arg-type]
