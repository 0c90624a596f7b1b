"""Report *Which of N*: how often false claims are refuted and configs named rightly, and what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from qdx.analysis.section import Section
from qdx.document.blocks import Block, Text
from qdx.document.format import plural
from qdx.errors import QdxError
from qdx.statistics import FEWEST_REFERENCES, Floats
from qdx.verification.claims import Trees, calibrating
from qdx.verification.held_out import calibrated_pairs, held_out
from qdx.verification.judge import (
    OTHER_ANSWERS,
    Judged,
    answers,
    best,
    confusion,
    equal_rows_fit,
    judge,
)
from qdx.verification.likelihood import Calibration, row_mean
from qdx.verification.replays import Replays
from qdx.verification.split import beside, fewest_to_split, split, units_of_all
from qdx.verification.which_blocks import (
    calibration_block,
    headline,
    held_out_blocks,
    leave_one_out_blocks,
)

ONE = {"units": "1"}
LOO = "leave one reference out"


def attribution(
    producer_tree: xr.DataTree,
    verifier_tree: xr.DataTree,
    alpha: float = 0.05,
    draws: int = 1000,
    calibration: Trees | Sequence[Trees] | None = None,
) -> Section:
    """Count false claims that are refuted and configs that are named wrongly, on held-out references.

    Parameters
    ----------
    producer_tree, verifier_tree : xarray.DataTree
        See `claims.verify`. The producers' labels are taken as true.
    alpha : float
        Level of the conformal sets.
    draws : int
        Of bootstraps over references.
    calibration : (producer_tree, verifier_tree), or a sequence of such pairs, optional
        See `claims.verify`; the first set that was made and replayed on these machines is used. Without it
        the judged references are split by a hash of their token ids
        (`split.split`): one part calibrates, the other is judged.

    Returns
    -------
    Section
        Result on held-out references, each count with ``…_of``, ``…_low``, ``…_high`` (Clopper and Pearson,
        95 %):

        - (producer, config): ``refuted`` (p ≤ alpha; false alarms where the two are one) and
          ``refuted_by_tokens`` (by the tokens' margins alone), ``tokens_greedy`` of ``tokens_judged``;
        - (producer): ``wrong_names``, ``in_set`` (coverage), ``likeliest_held``, ``nearest_held``, and
          ``answers`` (producer, answer);
        - without dimension: ``false_refuted``, ``false_refuted_by_tokens``, ``all_wrong_names``,
          ``all_in_set``, with the intervals of `roc.sum_interval`;
        - (config, level): ``false_alarms`` above a threshold, and what share it rejects by law
          (``false_alarm_rate_low``, ``…_high``, Beta); ``threshold_references`` (config);
        - (producer, config): ``auc``; ``roc`` (…, false_positive_rate); ``tpr_at`` (…, rows), the share of
          false claims above the threshold of level ``curve_level`` by the first rows, ``rows_needed`` for
          99 % with ``rows_low``, ``rows_high``; ``margin_tpr_at`` (…, tokens), ``margin_tokens_needed``.

        Always: ``bit_equal`` (producer, config), of all ``transcripts``. Where there are too few units for
        that (attribute ``held_out_references`` is 0), the above is absent, and leaving one reference out
        there are (producer, answer) ``confusion``, (producer, config) ``likeliest`` and ``nearest``, and
        (producer) ``covered``, ``likeliest_right``, ``nearest_right``. Attributes: ``headline``, and sizes of
        the split.

    Notes
    -----
    A producer whose label is not among the configs was never in calibration; its right answer is "unknown".
    In leave-one-out ⌊α(n + 1)⌋ of n + 1 sets leave the true config out whatever the rows hold: no headline is
    made of that. With too few references for a split only ranks are printed.
    """
    data = Replays.of(producer_tree, verifier_tree)
    sets = calibrating(data, calibration)
    # One set, not the pool of all: error rates are of one null. A set from another machine would calibrate
    # with distances that these transcripts do not have.
    known = next((one for one in sets if calibrated_pairs(data, one).any()), sets[0]) if sets else data
    keys, known_keys = data.reference_keys, known.reference_keys
    # Producers batch differently. What one of them computed together counts as one unit for all of them here,
    # since a reference is either in calibration or judged, whoever answered it.
    unit_R, known_unit_R = units_of_all(data.units_DR), units_of_all(known.units_DR)
    parts = beside(keys, unit_R, known_keys, known_unit_R, alpha) if sets else split(keys, unit_R, alpha)
    if parts is None:
        result = _leave_one_out(data, known, alpha)
    else:
        result = held_out(data, known, parts, alpha, draws)
        result["transcripts"] = ("producer", [len(keys)] * len(data.producers), {**ONE, "long_name": "all"})
    rows = data.decode
    # Of the rows that the verifier captured, not of those that were published: who leaves rows out is not
    # equal in all of them.
    bits = (rows.expected_DCR > 0) & (rows.content_equal_DCR == rows.expected_DCR)
    about = {**ONE, "long_name": "transcripts whose every decode row is bit-equal to the config's replay"}
    result["bit_equal"] = (("producer", "config"), bits.sum(-1), about)
    result.attrs |= {
        "alpha": alpha,
        "references": len(keys),
        "rows": int(np.isfinite(data.energy_DCRT).sum(-1).max(initial=0)),
        "calibration": "separate transcripts" if sets else "a part of the judged references",
        "calibration_references": 0 if parts is None else len(parts.calibration),
        "held_out_references": 0 if parts is None else len(parts.judged),
    }
    if parts is None:
        calibrating_units = len(set(known_unit_R[[key not in keys for key in known_keys]]))
        needed = _too_few(len(set(unit_R)), calibrating_units if sets else None, len(keys), alpha)
        result.attrs["headline"] = needed
        said = f"{needed[0].upper()}{needed[1:]}. The producers' labels are taken as true."
        blocks: list[Block] = [Text(said), *leave_one_out_blocks(result)]
    else:
        result.attrs["headline"] = headline(result)
        blocks = held_out_blocks(result)
    return Section("attribution", "Which of N", result, blocks=blocks)


def _leave_one_out(data: Replays, known: Replays, alpha: float) -> xr.Dataset:
    """Answers and ranks of every transcript, judged by the other references."""
    same = [
        known.reference_keys.index(key) if key in known.reference_keys else -1 for key in data.reference_keys
    ]
    # `same` leaves the judged reference out of its own calibration.
    judged = judge(data.energy_DCRT, data.floor_DRT, known.calibration(data.configs), same)
    judged.p_DCR[~calibrated_pairs(data, known)] = np.nan
    rows = data.decode
    judged.p_DCR[:] = equal_rows_fit(judged.p_DCR, rows.content_equal_DCR, rows.expected_DCR)
    distance = row_mean(np.sqrt(data.energy_DCRT * data.components))
    result = _named(data.producers, data.configs, judged, distance, alpha)
    counts = judged.references_CR[judged.references_CR > 0]
    result.attrs["leave_one_out_references"] = int(counts.min()) if counts.size else 0
    return result


def _too_few(judged: int, calibrating: int | None, references: int, alpha: float) -> str:
    """Say why there are no held-out references, by units."""
    fewest = fewest_to_split(alpha)
    units = (
        f"{plural(judged, 'independent unit')} in {plural(references, 'reference')} (one is what shares "
        "token ids, a batch or overlapping prompts)"
    )
    if calibrating is None:
        return (
            f"no error rates: {units}, {fewest} are needed at level {alpha:.0%}, to calibrate with some and "
            "judge others"
        )
    return (
        f"no error rates: {plural(calibrating, 'calibration unit')} of other prompts than the judged, and "
        f"{units}; {fewest - FEWEST_REFERENCES} and {FEWEST_REFERENCES} are needed at level {alpha:.0%}"
    )


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
    said = [calibration_block(least, alpha, True), *leave_one_out_blocks(result)]
    blocks = [replace(block, phase=phase) for block in said]
    title = f"Which of N by {metric}, {phase}"
    return Section("attribution_by_distance", title, result, blocks=blocks)


def _named(
    producers: Sequence[str], configs: Sequence[str], judged: Judged, distance_DCR: Floats, alpha: float
) -> xr.Dataset:
    counts = confusion(configs, answers(configs, judged.p_DCR, alpha))
    names = [*configs, *OTHER_ANSWERS]
    total = counts.sum(-1)
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
            "confusion": (
                pair,
                counts,
                {**ONE, "long_name": f"transcripts by answer at level {alpha:g}, {LOO}"},
            ),
            "transcripts": ("producer", total, {**ONE, "long_name": "transcripts judged"}),
            "covered": (
                "producer",
                np.array(held),
                {**ONE, "long_name": f"sets that hold the true config, {LOO}: an identity{none}"},
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
