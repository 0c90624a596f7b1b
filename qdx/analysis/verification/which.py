"""Which of N: how often each config is named rightly, and how many tokens and references that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.analysis.layout import NOT_MEASURED, columns_of, percent, plural, table, wrap
from qdx.analysis.numerics import FEWEST_REFERENCES, Floats
from qdx.analysis.section import Section
from qdx.analysis.verification import roc
from qdx.analysis.verification.attribution import (
    OTHER_ANSWERS,
    Judged,
    answers,
    best,
    confusion,
    judge,
)
from qdx.analysis.verification.claims import calibrating
from qdx.analysis.verification.gather import Replays, same_machines
from qdx.analysis.verification.likelihood import Calibration, row_mean
from qdx.analysis.verification.said import calibration_text
from qdx.errors import QdxError

ONE = {"units": "1"}
SHOWN = 30


def attribution(
    producer_tree: xr.DataTree,
    verifier_tree: xr.DataTree,
    alpha: float = 0.05,
    draws: int = 1000,
    calibration: tuple[xr.DataTree, xr.DataTree] | None = None,
) -> Section:
    """Name each transcript's config out of those replayed, and count how often that is right.

    Parameters
    ----------
    producer_tree, verifier_tree : xarray.DataTree
        See `claims.verify`. The producers' labels are taken as true.
    alpha : float
        Level of the conformal sets.
    draws : int
        Of the bootstrap over references.
    calibration : (producer_tree, verifier_tree), optional
        See `claims.verify`.

    Returns
    -------
    Section
        Result: ``confusion`` (producer, answer) with ``rate_low``, ``rate_high`` (Wilson, 95 %);
        ``likeliest_right``, ``nearest_right`` (producer); ``bit_equal`` (producer, config); and for each
        ordered pair (producer, config), the config claimed falsely: ``auc``, ``tpr`` at 1 % FPR with
        ``…_low``, ``…_high``, ``tokens_needed`` with ``…_low``, ``…_high``, the curve ``tpr_at`` (…, tokens)
        with its interval, and ``roc`` (…, false_positive_rate).

    Notes
    -----
    Every transcript is judged with calibration from the other references. A producer whose label is not
    among the configs was never in calibration; its right answer is "unknown". No interval under 8
    references, no rate at 1 % FPR under 100.
    """
    data = Replays.of(producer_tree, verifier_tree)
    known = calibrating(data, calibration)
    same = [known.references.index(r) if r in known.references else -1 for r in data.references]
    judged = judge(data.energy_DCRT, data.floor_DRT, known.calibration(data.configs), same)
    judged.p_DCR[~same_machines(data, known)] = np.nan
    distance = row_mean(np.sqrt(data.energy_DCRT * data.components))
    result = _named(data.producers, data.configs, judged, distance, alpha)
    result = result.merge(_separation(data, judged, draws), join="exact")
    same = (data.decode.compared_DCR > 0) & (data.decode.equal_DCR == data.decode.compared_DCR)
    about = {**ONE, "long_name": "transcripts whose every decode row is bit-equal to the config's replay"}
    result["bit_equal"] = (("producer", "config"), same.sum(-1), about)
    tokens = int(np.isfinite(data.energy_DCRT).sum(-1).max(initial=0))
    counts = judged.references_CR[judged.references_CR > 0]
    least = int(counts.min()) if counts.size else 0
    result.attrs = {
        "alpha": alpha,
        "references": len(data.references),
        "calibration_references": least,
        "tokens": tokens,
        "weight": float(judged.weight_R.mean()),
    }
    text = [*calibration_text(least, alpha, calibration is None), *_text(result)]
    return Section("attribution", "Which of N", result, {"": "\n".join(text)})


def attribution_by_distance(
    tree: xr.DataTree, metric: str = "seed_l2", phase: str = "decode", alpha: float = 0.05
) -> Section:
    """Attribute by one distance a transcript: what an imported verification file allows.

    Parameters
    ----------
    tree : xarray.DataTree
        With ``/metrics/<metric>/<phase>`` over (producer, config, reference, …).
    metric, phase : str
    alpha : float

    Returns
    -------
    Section
        Result over (producer, config, reference): ``distance``, ``p``, ``log_likelihood``; ``confusion``,
        ``likeliest_right``, ``nearest_right`` as in `attribution`.

    Notes
    -----
    p is `profile.profile_p` of the squared distances, one token a transcript. The likelihood takes the
    distance as one number of variance s_c² (k = 1, one token); its floor is the smallest distance above 0.
    """
    try:
        dataset = tree[f"metrics/{metric}/{phase}"].to_dataset()
    except KeyError as error:
        raise QdxError(f"/metrics/{metric}/{phase} is not in the file: nothing to attribute by") from error
    if "producer" not in dataset.dims:
        raise QdxError(
            f"/metrics/{metric}/{phase} has no dimension producer: it compares configs, not transcripts"
        )
    first = ("producer", "config", "reference")
    if "reference_mean" in dataset:
        distance = np.asarray(dataset["reference_mean"].transpose(*first).values, float)
    else:
        over = [dim for dim in dataset[metric].dims if dim not in first]
        values = dataset[metric].transpose(*first, *over).values
        distance = row_mean(values.reshape(*values.shape[:3], -1))
    producers, configs, references = ([str(v) for v in dataset[name].values] for name in first)
    positive = distance[distance > 0]
    floor = float(positive.min()) ** 2 if positive.size else 1.0
    known = np.full((len(configs), len(configs), len(references)), np.nan)
    for c, label in enumerate(configs):
        if label in producers:
            known[c] = distance[producers.index(label)]
    calibration = Calibration(known[..., None] ** 2, np.full((len(configs), len(references), 1), floor), 1)
    floors = np.full((len(producers), len(references), 1), floor)
    judged = judge(distance[..., None] ** 2, floors, calibration, range(len(references)))
    result = _named(producers, configs, judged, distance, alpha)
    unit = str(dataset[metric].attrs.get("units", "1"))
    result = result.assign(
        distance=(first, distance, {"units": unit, "long_name": f"{metric}, mean over a reference's rows"}),
        p=(first, judged.p_DCR, {**ONE, "long_name": "conformal p of the distances to all configs"}),
        log_likelihood=(first, judged.log_likelihood_DCR, {"units": "nat", "long_name": "ℓ of the distance"}),
    ).assign_coords(reference=references)
    counts = judged.references_CR[judged.references_CR > 0]
    least = int(counts.min()) if counts.size else 0
    result.attrs = {"alpha": alpha, "references": len(references), "calibration_references": least}
    text = [*calibration_text(least, alpha, True), *_text(result)]
    title = f"Which of N by {metric}, {phase}"
    return Section("attribution_by_distance", title, result, {phase: "\n".join(text)})


def _named(
    producers: Sequence[str], configs: Sequence[str], judged: Judged, distance_DCR: Floats, alpha: float
) -> xr.Dataset:
    counts = confusion(configs, answers(configs, judged.p_DCR, alpha))
    names = [*configs, *OTHER_ANSWERS]
    total = counts.sum(-1)
    ends = np.array([[roc.wilson(int(k), int(n)) for k in row] for row, n in zip(counts, total, strict=True)])
    likeliest = confusion_of(best(judged.log_likelihood_DCR), len(configs))
    nearest = confusion_of(best(-distance_DCR), len(configs))
    right = [configs.index(label) if label in configs else -1 for label in producers]
    held = [int((judged.p_DCR[d, c] > alpha).sum()) if c >= 0 else -1 for d, c in enumerate(right)]
    pick = {
        name: np.array([table_[d, c] if c >= 0 else -1 for d, c in enumerate(right)])
        for name, table_ in (("likeliest_right", likeliest), ("nearest_right", nearest))
    }
    pair, none = ("producer", "answer"), "; −1: it is not among the configs"
    return xr.Dataset(
        {
            "confusion": (pair, counts, {**ONE, "long_name": f"transcripts by answer at level {alpha:g}"}),
            "rate_low": (pair, ends[..., 0], {**ONE, "long_name": "Wilson interval of the rate, 95 %"}),
            "rate_high": (pair, ends[..., 1], {**ONE, "long_name": "Wilson interval of the rate, 95 %"}),
            "transcripts": ("producer", total, {**ONE, "long_name": "transcripts judged"}),
            "covered": (
                "producer",
                np.array(held),
                {**ONE, "long_name": f"sets that hold the true config{none}"},
            ),
            "likeliest_right": (
                "producer",
                pick["likeliest_right"],
                {**ONE, "long_name": f"transcripts whose greatest ℓ is the true config's{none}"},
            ),
            "nearest_right": (
                "producer",
                pick["nearest_right"],
                {**ONE, "long_name": f"transcripts whose least distance is the true config's{none}"},
            ),
            "likeliest": (
                ("producer", "config"),
                likeliest,
                {**ONE, "long_name": "transcripts by greatest ℓ"},
            ),
            "nearest": (
                ("producer", "config"),
                nearest,
                {**ONE, "long_name": "transcripts by least distance"},
            ),
        },
        coords={"producer": list(producers), "config": list(configs), "answer": names},
    )


def confusion_of(named_DR: NDArray[np.int64], configs: int) -> NDArray[np.int64]:
    """Counts (producer, config) of indices; −1, a tie, is in none."""
    return np.stack([(named_DR == c).sum(-1) for c in range(configs)], -1)


def against_the_best(misfit_DCRT: Floats) -> Floats:
    """Misfit of a config minus the least of the others': a likelihood ratio, the score of the ROC.

    The misfit alone would let a noisy config's claim absorb every transcript nearby. With one config it
    is the misfit.
    """
    if misfit_DCRT.shape[1] == 1:
        return misfit_DCRT
    filled = np.where(np.isfinite(misfit_DCRT), misfit_DCRT, np.inf)
    others = np.stack([np.delete(filled, c, 1).min(1) for c in range(filled.shape[1])], 1)
    return np.where(np.isfinite(others), misfit_DCRT - others, misfit_DCRT)


def _separation(data: Replays, judged: Judged, draws: int) -> xr.Dataset:
    """ROC of every ordered pair: the transcripts of one config, claimed to be another's."""
    shape = len(data.producers), len(data.configs)
    values = {
        name: np.full(shape, np.nan) for name in ("auc", "auc_low", "auc_high", "tpr", "tpr_low", "tpr_high")
    }
    needed = {name: np.full(shape, -1, np.int64) for name in ("tokens_needed", "tokens_low", "tokens_high")}
    count_R, count_T = judged.misfit_DCRT.shape[-2:]
    curves = {name: np.full((*shape, count_T), np.nan) for name in ("tpr_at", "tpr_at_low", "tpr_at_high")}
    areas = np.full((*shape, count_R + 1), np.nan)
    running = against_the_best(roc.running_mean(judged.misfit_DCRT))
    for c, own in enumerate(data.honest_C):
        for d in range(len(data.producers)):
            if own < 0 or d == own:
                continue
            honest, false, at = running[own, c, :, -1], running[d, c, :, -1], (d, c)
            values["auc"][at], values["tpr"][at] = roc.auc(honest, false), roc.tpr_at(honest, false)
            for name, statistic in (("auc", roc.auc), ("tpr", roc.tpr_at)):
                ends = roc.bootstrap(statistic, honest, false, draws=draws)
                values[f"{name}_low"][at], values[f"{name}_high"][at] = ends
            tokens = roc.tokens_needed(running[own, c], running[d, c])
            areas[at] = roc.rates(honest, false, count_R)
            for name, curve in zip(curves, (tokens.curve_T, tokens.low_T, tokens.high_T), strict=True):
                curves[name][at] = curve
            for name, count in zip(needed, (tokens.needed, tokens.low, tokens.high), strict=True):
                needed[name][at] = count
    dims = ("producer", "config")
    about = {
        "auc": "area under the ROC curve, the producer's transcripts claimed to be the config's",
        "tpr": "share of such claims found at 1 % false alarms; NaN under 100 references",
        "tokens_needed": "tokens from which 99 % are always found at 1 % false alarms; −1: not in those here",
    }
    variables: dict[str, Any] = {}
    end = f"bootstrap interval over references, 95 %; none under {FEWEST_REFERENCES} references"
    about["tpr_at"] = "share of false claims found at 1 % false alarms by the first tokens"
    for name, value in {**values, **needed}.items():
        variables[name] = (dims, value, {**ONE, "long_name": about.get(name, end)})
    for name, curve in curves.items():
        variables[name] = ((*dims, "tokens"), curve, {**ONE, "long_name": about.get(name, end)})
    variables["roc"] = (
        (*dims, "false_positive_rate"),
        areas,
        {**ONE, "long_name": "share of false claims found at a share of false alarms"},
    )
    return xr.Dataset(
        variables,
        coords={
            "producer": data.producers,
            "config": data.configs,
            "tokens": np.arange(1, count_T + 1),
            "false_positive_rate": np.arange(count_R + 1) / count_R,
        },
    )


def _text(result: xr.Dataset) -> list[str]:
    names = [str(v) for v in result["answer"].values]
    counts = result["confusion"].values
    shown = [i for i, name in enumerate(names) if name not in OTHER_ANSWERS or counts[:, i].any()]
    configs = [str(v) for v in result["config"].values]
    bits, rows = "bit_equal" in result, []
    for d, producer in enumerate(str(v) for v in result["producer"].values):
        total = int(result["transcripts"].values[d])
        right = names.index(producer if producer in configs else "unknown")
        low, high = result["rate_low"].values[d, right], result["rate_high"].values[d, right]
        picks = [int(result[k].values[d]) for k in ("covered", "likeliest_right", "nearest_right")]
        rows.append(
            [
                producer,
                *(str(counts[d, i]) for i in shown),
                f"{percent(counts[d, right] / total)} ({percent(low)}…{percent(high)})",
                *(NOT_MEASURED if k < 0 else f"{k}/{total}" for k in picks),
            ]
        )
        if bits:
            rows[-1].append(_bits(result, producer, total))
    columns, about = columns_of(configs, beside=len(configs) + 4)  # four hold more than a count
    columns += names[len(configs) :]
    head = ["made by", *(columns[i] for i in shown), "right (95 %)", "in set", "likeliest", "nearest"]
    head += ["bit-equal"] if bits else []
    said = (
        "Answers for single transcripts, leave one reference out. right: named alone, with Wilson's interval "
        "(for a config that is not among those judged: unknown); in set: the conformal set holds the true "
        "config; likeliest, nearest: greatest ℓ or least distance is the true config's, without any level."
    )
    if bits:
        said += " Bit-equal: transcripts whose every decode row is that of the true config's replay."
    lines = ["", wrap(said, "  "), *about, table(head, rows)]
    if "auc" not in result:
        return lines
    references = int(result.attrs["references"]) if "references" in result.attrs else 0
    if references < roc_least():
        said = (
            f"1 % false alarms cannot be measured with {plural(references, 'reference')} (100 are needed): "
            "no TPR and no tokens needed."
        )
        lines += ["", wrap(said, "  ")]
    if references < FEWEST_REFERENCES:
        said = (
            f"No interval: fewer than {FEWEST_REFERENCES} references; AUCs of so few are in sweep.nc "
            "/analysis/attribution only."
        )
        return [*lines, wrap(said, "  ")]
    rows = []
    for d, producer in enumerate(str(v) for v in result["producer"].values):
        for c, config in enumerate(configs):
            area = float(result["auc"].values[d, c])
            if np.isfinite(area) and len(rows) < SHOWN:
                rows.append(
                    [
                        producer,
                        config,
                        _range(result, "auc", d, c),
                        _range(result, "tpr", d, c),
                        _tokens(result, d, c),
                    ]
                )
    if rows:
        head = ["made by", "claimed", "AUC", "TPR at 1 % FPR", "tokens for 99 % TPR"]
        lines += ["", table(head, rows, left=2)]
    return lines


def _bits(result: xr.Dataset, producer: str, total: int) -> str:
    """Transcripts that are bit-equal to their own config's replay, and others that they equal as well."""
    counts = dict(
        zip(result["config"].values, result["bit_equal"].sel(producer=producer).values, strict=True)
    )
    own = counts.pop(producer, None)
    others = [str(name) for name, count in counts.items() if count]
    said = NOT_MEASURED if own is None else f"{int(own)}/{total}"
    return said + (f" (and {', '.join(others)})" if others else "")


def roc_least() -> int:
    """References that a false positive rate of 1 % needs."""
    return round(1 / roc.FPR)


def _range(result: xr.Dataset, name: str, d: int, c: int) -> str:
    value, low, high = (float(result[k].values[d, c]) for k in (name, f"{name}_low", f"{name}_high"))
    if not np.isfinite(value):
        return NOT_MEASURED
    return f"{value:.4f}" + (f" ({low:.4f}…{high:.4f})" if np.isfinite(low) else "")


def _tokens(result: xr.Dataset, d: int, c: int) -> str:
    needed, low, high = (int(result[k].values[d, c]) for k in ("tokens_needed", "tokens_low", "tokens_high"))
    if not np.isfinite(result["tpr_at"].values[d, c]).any():
        return NOT_MEASURED
    most = result.sizes["tokens"]
    said = str(needed) if needed > 0 else f"> {most}"
    return said if low < 0 else f"{said} ({low}…{high if high > 0 else f'> {most}'})"
