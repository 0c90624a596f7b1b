"""Error rates of *Which of N* on references that did not calibrate: every number here could have failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from qdx.statistics import Bools, Floats, Ints
from qdx.verification import roc
from qdx.verification.environment_class import MACHINE, compare
from qdx.verification.judge import (
    OTHER_ANSWERS,
    answers,
    best,
    confusion,
    equal_rows_fit,
    judge_scores,
)
from qdx.verification.likelihood import (
    Calibration,
    log_likelihood,
    row_mean,
    token_misfits,
)
from qdx.verification.p_values import false_alarm_spread, level, threshold
from qdx.verification.profile import fit_profile
from qdx.verification.replays import Replays
from qdx.verification.split import FPR, Split, threshold_references

ONE = {"units": "1"}
ROUNDING = 1e-9  # p = 0.05 must not exceed α = 0.05 by its last bit
PAIR, ENDS = ("producer", "config"), ("_low", "_high")
BY_CP = "Clopper and Pearson's interval, 95 %"


@dataclass(frozen=True)
class Scores:
    """Hold what the held-out transcripts are judged by.

    Attributes
    ----------
    p_DCR, p_tokens_DCR : array (producer, config, judged reference)
        Conformal p of the rows' profile (1 where all rows are bit-equal) and of the tokens' mean margin.
    own_CNT : array (config, honest calibration reference, rows)
        Likelihood-ratio score of honest transcripts by the first rows.
    score_DCRT : array (producer, config, judged reference, rows)
        The same of the judged ones.
    own_margin_CNT, margin_DCRT : arrays with tokens as the last axis
        Mean margin by the first tokens, of the same transcripts.
    log_likelihood_DCR : array (producer, config, judged reference)
    """

    p_DCR: Floats
    p_tokens_DCR: Floats
    own_CNT: Floats
    score_DCRT: Floats
    own_margin_CNT: Floats
    margin_DCRT: Floats
    log_likelihood_DCR: Floats

    @classmethod
    def of(cls, data: Replays, known: Replays, parts: Split) -> Scores:
        """Judge the split's references by its calibration."""
        judged, none = parts.judged, [-1] * len(parts.judged)
        calibration = known.calibration(data.configs)
        energy_DCRT, floor_DRT = data.energy_DCRT[:, :, judged], data.floor_DRT[:, judged]
        fit, honest = calibration.only(parts.fit).means(), calibration.only(parts.honest)
        p_DCR = profile_ranks(energy_DCRT, fit, honest)
        margin_CN = _of_own(known.margin_DCR, known, data.configs)[:, parts.honest]
        p_tokens = judge_scores(data.margin_DCR[:, :, judged], margin_CN, none)
        fits_DC = calibrated_pairs(data, known)
        p_DCR[~fits_DC] = p_tokens[~fits_DC] = np.nan
        rows = data.decode
        equal_DCR, expected_DCR = rows.content_equal_DCR[:, :, judged], rows.expected_DCR[:, :, judged]
        p_DCR = equal_rows_fit(p_DCR, equal_DCR, expected_DCR)

        def misfits(energy_CRT: Floats, floor_RT: Floats) -> Floats:
            each = [token_misfits(energy_CRT[:, r], floor_RT[r], fit) for r in range(len(floor_RT))]
            return np.stack(each, 1)

        def scores(misfit_CRT: Floats) -> Floats:
            return against_the_best(roc.running_mean(misfit_CRT))

        own = [
            scores(misfits(rows_VNT, floor_NT))[c]
            for c, (rows_VNT, floor_NT) in enumerate(zip(honest.energy_CVNT, honest.floor_CNT, strict=True))
        ]
        misfit_DCRT = np.stack([misfits(*of_d) for of_d in zip(energy_DCRT, floor_DRT, strict=True)])
        score_DCRT = np.stack([scores(misfit_CRT) for misfit_CRT in misfit_DCRT])
        margin_DCRT = roc.running_mean(data.margin_DCRT[:, :, judged])
        score_DCRT[~fits_DC] = margin_DCRT[~fits_DC] = np.nan
        own_margins = _of_own(known.margin_DCRT, known, data.configs)[:, parts.honest]
        return cls(
            p_DCR,
            p_tokens,
            np.stack(own),
            score_DCRT,
            roc.running_mean(own_margins),
            margin_DCRT,
            log_likelihood(misfit_DCRT, data.components),
        )


def profile_ranks(energy_DCRT: Floats, fit: Calibration, honest: Calibration) -> Floats:
    """Conformal p of every transcript's profile, whose centre and scale other references fitted.

    Scores are fixed by the fit, so that given it and the honest scores the judged transcripts are
    independent: their false alarms follow one rate, which is Beta over draws of the honest scores.

    Parameters
    ----------
    energy_DCRT : array (producer, config, judged reference, row)
    fit, honest : Calibration
        References that fit, and those whose scores are the null.

    Returns
    -------
    array (producer, config, judged reference)
        NaN where the config has no calibration, or an energy that enters is missing.
    """
    score_DCR = np.full(energy_DCRT.shape[:3], np.nan)
    null_CN = np.full(honest.floor_CNT.shape[:2], np.nan)
    judged_DVR = row_mean(energy_DCRT)
    for c, energy_VNT in enumerate(fit.energy_CVNT):
        floor = float(row_mean(row_mean(fit.floor_CNT[c])))
        profile = fit_profile(row_mean(energy_VNT), c, floor)
        if profile is not None:
            null_CN[c] = profile.score(row_mean(honest.energy_CVNT[c]))
            score_DCR[:, c] = [profile.score(energy_VR) for energy_VR in judged_DVR]
    return judge_scores(score_DCR, null_CN, [-1] * energy_DCRT.shape[2])


def against_the_best(misfit_CRT: Floats) -> Floats:
    """Misfit of a config minus the least of the others': a likelihood ratio, the score of the thresholds.

    The misfit alone would let a noisy config's claim absorb every transcript nearby. With one config it
    is the misfit.
    """
    if len(misfit_CRT) == 1:
        return misfit_CRT
    filled = np.where(np.isfinite(misfit_CRT), misfit_CRT, np.inf)
    others = np.stack([np.delete(filled, c, 0).min(0) for c in range(len(filled))])
    return np.where(np.isfinite(others), misfit_CRT - others, misfit_CRT)


def calibrated_pairs(data: Replays, known: Replays) -> Bools:
    """Return whether config c's known transcripts can be the null of producer d's: (producer, config).

    They were made on no other kind of machine than producer d states (its engine and batch are part of the
    claim) and replayed in no other environment class than that in which c replays now.
    """
    found = np.zeros((len(data.producers), len(data.configs)), bool)
    for c, label in enumerate(data.configs):
        if label not in known.producers or label not in known.configs:
            continue
        made = _machine(known.class_D[known.producers.index(label)])
        replayed = known.class_C[known.configs.index(label)]
        if not compare(replayed, data.class_C[c]).differs:
            found[:, c] = [not compare(_machine(own), made).differs for own in data.class_D]
    return found


def _machine(facts: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in facts.items() if name in MACHINE}


def _of_own(values_DCRX: Floats, known: Replays, configs: Sequence[str]) -> Floats:
    """Values of honest pairs, (config, reference, …); NaN for a config that has none."""
    own = np.full((len(configs), *values_DCRX.shape[2:]), np.nan)
    for c, label in enumerate(configs):
        if label in known.producers and label in known.configs:
            own[c] = values_DCRX[known.producers.index(label), known.configs.index(label)]
    return own


def held_out(data: Replays, known: Replays, parts: Split, alpha: float, draws: int) -> xr.Dataset:
    """Count what the references that did not calibrate show.

    Parameters
    ----------
    data, known : Replays
        The judged transcripts, and those that calibrate (the same where the judged were split).
    parts : Split
    alpha : float
        Level of the conformal sets.
    draws : int
        Of bootstraps over references.

    Returns
    -------
    xarray.Dataset
        See `which.attribution`.
    """
    scores = Scores.of(data, known, parts)
    false_DC = np.array([[d != c for c in data.configs] for d in data.producers])
    levels = sorted({FPR, alpha}, reverse=True)
    result = _refuted(data, scores, alpha, false_DC, draws, parts)
    result = result.merge(_named(data, scores, alpha, parts), join="exact")
    result = result.merge(_thresholds(data, scores, levels), join="exact")
    fewest = min((int(n) for n in result["threshold_references"].values if n), default=0)
    possible = [one for one in levels if threshold_references(one) <= fewest]
    least = min(possible, default=float("nan"))
    result = result.merge(_separation(data, scores, false_DC, least, draws), join="exact")
    result.attrs |= {
        "fit_references": len(parts.fit),
        "threshold_references": fewest,
        "left_out_references": parts.left_out,
        "curve_level": least,
    }
    return result


def _refuted(
    data: Replays, scores: Scores, alpha: float, false_DC: Bools, draws: int, parts: Split
) -> xr.Dataset:
    """Claims refuted at level alpha: by rows, and by the tokens alone."""
    variables: dict[str, Any] = {}
    for name, p_DCR, by in (
        ("refuted", scores.p_DCR, "the rows' profile"),
        ("refuted_by_tokens", scores.p_tokens_DCR, "the tokens' margins alone"),
    ):
        measured = np.isfinite(p_DCR)
        hits, of = (p_DCR <= alpha + ROUNDING).sum(-1), measured.sum(-1)
        about = (
            f"held-out transcripts of the producer that are refuted as the config's by {by}, p ≤ {alpha:g}; "
            "where the two are one these are false alarms"
        )
        variables[name] = (PAIR, hits, {**ONE, "long_name": about})
        variables[f"{name}_of"] = (PAIR, of, {**ONE, "long_name": "of so many"})
        _ends(variables, name, PAIR, hits, of)
        pairs = false_DC[..., None] & measured
        hit = (pairs & (p_DCR <= alpha + ROUNDING)).sum((0, 1))
        total = pairs.sum((0, 1))
        values = [int(hit.sum()), int(total.sum()), *roc.sum_interval(hit, total, draws)]
        for end, value in zip(("", "_of", *ENDS), values, strict=True):
            about = f"false claims refuted by {by}, all pairs together{end and ': ' + end[1:]}"
            variables[f"false_{name}{end}"] = ((), value, {**ONE, "long_name": about})
    for name, values_DCR, about in (
        ("tokens_greedy", data.greedy_DCR, "held-out tokens that are the greedy choice of the config here"),
        ("tokens_judged", data.tokens_DCR, "of so many, the first of each transcript among them"),
    ):
        variables[name] = (PAIR, values_DCR[:, :, parts.judged].sum(-1), {**ONE, "long_name": about})
    return xr.Dataset(variables, {"producer": data.producers, "config": data.configs})


def _named(data: Replays, scores: Scores, alpha: float, parts: Split) -> xr.Dataset:
    """Return which config the sets of the held-out transcripts name, and whether they hold the true one."""
    p_DCR, configs = scores.p_DCR, data.configs
    given = answers(configs, p_DCR, alpha)
    counts = confusion(configs, given)
    right = [configs.index(label) if label in configs else -1 for label in data.producers]
    names = [[a.members[0] if a.kind == "verdict" else "" for a in row] for row in given]
    wrong_DR = np.array(
        [[name not in ("", label) for name in row] for label, row in zip(data.producers, names, strict=True)]
    )
    nothing = np.full(p_DCR.shape[-1], np.nan)  # of a producer whose config is not among those judged
    own_DR = np.stack([p_DCR[d, c] if c >= 0 else nothing for d, c in enumerate(right)])
    measured_DR, held_DR = np.isfinite(own_DR), own_DR > alpha + ROUNDING
    judged_DR = np.isfinite(p_DCR).any(1)
    likeliest_DR = best(scores.log_likelihood_DCR)
    distance = row_mean(np.sqrt(data.energy_DCRT[:, :, parts.judged] * data.components))
    nearest_DR = best(-distance)
    among = np.array([c >= 0 for c in right])
    index = np.array(right)[:, None]
    one_D = np.full(len(right), p_DCR.shape[-1])
    rows = {
        "wrong_names": (wrong_DR.sum(-1), judged_DR.sum(-1), "held-out transcripts named alone, and wrongly"),
        "in_set": (
            held_DR.sum(-1),
            measured_DR.sum(-1),
            "held-out transcripts whose set holds the true config",
        ),
        "likeliest_held": (
            (likeliest_DR == index).sum(-1) * among,
            one_D * among,
            "held-out transcripts whose greatest ℓ is the true config's",
        ),
        "nearest_held": (
            (nearest_DR == index).sum(-1) * among,
            one_D * among,
            "held-out transcripts whose least distance is the true config's",
        ),
    }
    variables: dict[str, Any] = {
        "answers": (
            ("producer", "answer"),
            counts,
            {**ONE, "long_name": f"held-out transcripts by answer at level {alpha:g}"},
        )
    }
    for name, (hits, of, about) in rows.items():
        variables[name] = ("producer", hits, {**ONE, "long_name": about})
        variables[f"{name}_of"] = ("producer", of, {**ONE, "long_name": "of so many"})
        _ends(variables, name, ("producer",), hits, of)
    for name, hits_DR, of_DR in (
        ("all_wrong_names", wrong_DR, judged_DR),
        ("all_in_set", held_DR, measured_DR),
    ):
        values = [int(hits_DR.sum()), int(of_DR.sum()), *roc.sum_interval(hits_DR.sum(0), of_DR.sum(0))]
        for end, value in zip(("", "_of", *ENDS), values, strict=True):
            about = f"{name[4:].replace('_', ' ')}, all producers together{end and ': ' + end[1:]}"
            variables[f"{name}{end}"] = ((), value, {**ONE, "long_name": about})
    return xr.Dataset(
        variables, {"producer": data.producers, "config": configs, "answer": [*configs, *OTHER_ANSWERS]}
    )


def _thresholds(data: Replays, scores: Scores, levels: Sequence[float]) -> xr.Dataset:
    """Return the share of honest transcripts that a config's threshold rejects: by law, and held out."""
    shape = len(data.configs), len(levels)
    spread, alarms, of = np.full((2, *shape), np.nan), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    used = np.isfinite(scores.own_CNT[..., -1]).sum(-1)
    for c, i in np.ndindex(shape):
        limit, rank = threshold(scores.own_CNT[c, :, -1], level(levels[i]))
        spread[:, c, i] = false_alarm_spread(int(used[c]), rank) if rank else np.nan
        if rank and (own := data.honest_C[c]) >= 0:
            honest = scores.score_DCRT[own, c, :, -1]
            of[c, i], alarms[c, i] = np.isfinite(honest).sum(), (honest > limit).sum()
    by = "of the false-alarm rate that a threshold of so many references has, 95 % of thresholds (Beta)"
    variables: dict[str, Any] = {
        "threshold_references": ("config", used, {**ONE, "long_name": "honest scores of the threshold"}),
        "false_alarms": (
            ("config", "level"),
            alarms,
            {**ONE, "long_name": "honest held-out transcripts above the threshold"},
        ),
        "false_alarms_of": (("config", "level"), of, {**ONE, "long_name": "of so many"}),
        "false_alarm_rate_low": (("config", "level"), spread[0], {**ONE, "long_name": f"lower end {by}"}),
        "false_alarm_rate_high": (("config", "level"), spread[1], {**ONE, "long_name": f"upper end {by}"}),
    }
    _ends(variables, "false_alarms", ("config", "level"), alarms, of)
    return xr.Dataset(variables, {"config": data.configs, "level": list(levels)})


def _separation(data: Replays, scores: Scores, false_DC: Bools, least: float, draws: int) -> xr.Dataset:
    """Areas, and false claims found by the first rows and tokens, on held-out references."""
    shape, dims = false_DC.shape, PAIR
    references, rows = scores.score_DCRT.shape[-2:]
    tokens = scores.margin_DCRT.shape[-1]
    area = {name: np.full(shape, np.nan) for name in ("auc", "auc_low", "auc_high")}
    needed = {
        name: np.full(shape, -1, np.int64)
        for name in ("rows_needed", "rows_low", "rows_high", "margin_tokens_needed")
    }
    sizes = {"tpr_at": ("rows", rows), "margin_tpr_at": ("tokens", tokens)}
    curves = {
        f"{name}{end}": np.full((*shape, size), np.nan)
        for name, (_, size) in sizes.items()
        for end in ("", *ENDS)
    }
    areas = np.full((*shape, references + 1), np.nan)
    for c, own in enumerate(data.honest_C):
        for d in np.flatnonzero(false_DC[:, c]):
            at, false = (d, c), scores.score_DCRT[d, c]
            if own >= 0:
                honest = scores.score_DCRT[own, c, :, -1]
                area["auc"][at] = roc.auc(honest, false[:, -1])
                area["auc_low"][at], area["auc_high"][at] = roc.auc_interval(honest, false[:, -1], draws)
                areas[at] = roc.rates(honest, false[:, -1], references)
            if not np.isfinite(least):
                continue
            by_rows = roc.found(scores.own_CNT[c], false, least)
            by_tokens = roc.found(scores.own_margin_CNT[c], scores.margin_DCRT[d, c], least)
            for name, one in (("tpr_at", by_rows), ("margin_tpr_at", by_tokens)):
                for end, curve in zip(("", *ENDS), (one.share_T, one.low_T, one.high_T), strict=True):
                    curves[f"{name}{end}"][at] = curve
            needed["rows_needed"][at], needed["rows_low"][at] = by_rows.needed, by_rows.low
            needed["rows_high"][at], needed["margin_tokens_needed"][at] = by_rows.high, by_tokens.needed
    of_level = f"share of held-out false claims above the threshold at {least:g} false alarms by the first"
    about = {
        "auc": "area under the ROC curve of held-out references: false claims against honest ones",
        "rows_needed": "published rows from which on 99 % of the held-out false claims are found; −1: more",
        "rows_low": "the same for the upper end of the share's interval",
        "rows_high": "the same for the lower end of the share's interval",
        "margin_tokens_needed": "tokens from which on 99 % are found by the tokens alone; −1: more",
        "tpr_at": f"{of_level} rows",
        "margin_tpr_at": f"{of_level} tokens, by their mean margin alone",
    }
    variables: dict[str, Any] = {}
    for name, value in {**area, **needed}.items():
        said = "95 %: bootstrap over references, or exact where it would collapse (roc.auc_interval)"
        variables[name] = (dims, value, {**ONE, "long_name": about.get(name, said)})
    for name, curve in curves.items():
        axis = "tokens" if name.startswith("margin") else "rows"
        variables[name] = ((*dims, axis), curve, {**ONE, "long_name": about.get(name, BY_CP)})
    shares = "share of held-out false claims found at a share of held-out false alarms"
    variables["roc"] = ((*dims, "false_positive_rate"), areas, {**ONE, "long_name": shares})
    return xr.Dataset(
        variables,
        {
            "producer": data.producers,
            "config": data.configs,
            "rows": np.arange(1, rows + 1),
            "tokens": np.arange(1, tokens + 1),
            "false_positive_rate": np.arange(references + 1) / references,
        },
    )


def _ends(variables: dict[str, Any], name: str, dims: Sequence[str], hits: Ints, of: Ints) -> None:
    """Add the interval of a rate."""
    pairs = np.stack([hits.ravel(), of.ravel()], -1)
    ends = np.array([roc.clopper_pearson(int(k), int(n)) for k, n in pairs]).reshape(*hits.shape, 2)
    for end, values in zip(ENDS, np.moveaxis(ends, -1, 0), strict=True):
        variables[f"{name}{end}"] = (tuple(dims), values, {**ONE, "long_name": BY_CP})
