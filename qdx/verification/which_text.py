"""The lines of the report about *Which of N*."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from qdx.document.format import DASH, percent, plural
from qdx.document.text import columns_of, table, wrap
from qdx.verification.conformal import attainable_level, fewest_references
from qdx.verification.judge import OTHER_ANSWERS
from qdx.verification.p_values import false_alarm_spread, level
from qdx.verification.roc import TPR
from qdx.verification.split import FPR, threshold_references

SHOWN = 42  # lines of a table over pairs: all of seven configs
SHOWS_TPR = math.ceil(math.log(0.05) / math.log(TPR))  # references without a miss that show a rate of 99 %
SHOWS_BOTH = math.ceil(math.log(0.025) / math.log(TPR))  # each of two rates at 97.5 %, so both at 95 %


def headline(result: xr.Dataset) -> str:
    """False claims refuted, wrong names, and coverage, in a sentence: what could have failed."""
    references = int(result.attrs["held_out_references"])
    claims = _sum(result, "false_refuted")
    wrong = _sum(result, "all_wrong_names")
    return (
        f"{plural(references, 'held-out reference')}: false claims refuted {claims}, wrong names {wrong}, "
        f"true config in the set {_sum(result, 'all_in_set')}"
    )


def _sum(result: xr.Dataset, name: str) -> str:
    """``k of n (low…high)``, or a dash."""
    count, of, low, high = (result[f"{name}{end}"].item() for end in ("", "_of", "_low", "_high"))
    return f"{int(count):,} of {int(of):,} ({_ends(low, high)})" if of else DASH


def _ends(low: float, high: float) -> str:
    if not np.isfinite(low):
        return "no interval"
    return f"{percent(low).removesuffix('%')}…{percent(high)}"


def section_text(result: xr.Dataset) -> list[str]:
    """Everything that the section prints of held-out references."""
    lines = [wrap(line, "  ") for line in (f"{result.attrs['headline']}.", *_basis(result))]
    return [*lines, *_answers(result), *_refuted(result), *_separation(result)]


def _basis(result: xr.Dataset) -> list[str]:
    """Who calibrates and who is judged, what is assumed, and what the level means."""
    a = result.attrs
    alpha, judged = float(a["alpha"]), int(a["held_out_references"])
    calibrate = int(a["calibration_references"])
    limits = int(a["threshold_references"])
    part = f"{a['fit_references']} of them fit centre and scale, the others are the null"
    if a["calibration"] == "separate transcripts":
        source = (
            f"Calibration: {plural(calibrate, 'reference')} of separate transcripts of known configs "
            f"({part}); {judged} are judged."
        )
    else:
        source = (
            f"Split of {plural(int(a['references']), 'reference')} by a hash of their token ids: {calibrate} "
            f"calibrate ({part}), the other {judged} are judged."
        )
    if a["left_out_references"]:
        source += (
            f" Left out: {plural(int(a['left_out_references']), 'reference')} of one unit with another "
            "(equal token ids, one batch, or overlapping prompts)."
        )
    low, high = false_alarm_spread(limits, int(level(alpha) * (limits + 1)))
    return [
        f"{source} The producers' labels are taken as true: this measures error rates and decides no claim. "
        "Assumed: units are exchangeable and independent.",
        "Intervals: 95 % (Clopper and Pearson); of sums over pairs a bootstrap over references, or exact "
        "where fewer than 5 references have an error (or none).",
        f"Level {alpha:.0%} is an average over calibration sets. Of new honest transcripts, a set of "
        f"{plural(limits, 'score')} rejects {_ends(low, high)} (Beta, 95 % of such sets).",
    ]


def _answers(result: xr.Dataset) -> list[str]:
    """The confusion matrix of held-out transcripts."""
    names = [str(v) for v in result["answer"].values]
    counts = result["answers"].values
    shown = [i for i, name in enumerate(names) if name not in OTHER_ANSWERS or counts[:, i].any()]
    configs = [str(v) for v in result["config"].values]
    columns, about = columns_of(configs, beside=len(configs) + 4)  # four hold more than a count
    columns += names[len(configs) :]
    rows = []
    for d, producer in enumerate(str(v) for v in result["producer"].values):
        total = int(result["transcripts"].values[d])
        rows.append(
            [
                producer,
                *(str(counts[d, i]) for i in shown),
                _rate(result, "wrong_names", d),
                _rate(result, "in_set", d),
                *(_count(result, name, d) for name in ("likeliest_held", "nearest_held")),
                _bits(result, producer, total),
            ]
        )
    said = (
        "Answers for single held-out transcripts: the set {c : p > level}, and with it every config whose "
        "decode rows are all bit-equal. Wrong: named alone, and wrongly. In set: the true config is "
        "(coverage). Likeliest, nearest: greatest ℓ or least distance is the true config's, without any "
        "level. Bit-equal: of all references, transcripts whose every decode row is that of the true "
        "config's replay."
    )
    head = ["made by", *(columns[i] for i in shown), "wrong", "in set", "likeliest", "nearest", "bit-equal"]
    return ["", wrap(said, "  "), *about, table(head, rows)]


def _refuted(result: xr.Dataset) -> list[str]:
    """False claims refuted, a line an ordered pair: by rows, and by the tokens alone."""
    rows = []
    for d, c in np.ndindex(result["refuted"].shape):
        producer, config = str(result["producer"].values[d]), str(result["config"].values[c])
        if producer == config or not result["refuted_of"].values[d, c]:
            continue
        greedy, of = (int(result[name].values[d, c]) for name in ("tokens_greedy", "tokens_judged"))
        by_rows, by_tokens = (_rate(result, name, d, c) for name in ("refuted", "refuted_by_tokens"))
        rows.append([producer, config, by_rows, by_tokens, f"{greedy:,}/{of:,}" if of else DASH])
    if not rows:
        return []
    said = (
        f"False claims refuted, p ≤ {float(result.attrs['alpha']):.0%}, of held-out transcripts: by their "
        f"published rows (up to {result.attrs['rows']}), and by their tokens alone (the mean margin of the "
        f"emitted tokens here, up to {result.sizes['tokens']}). Greedy: tokens that are the claimed config's "
        "greedy choice."
    )
    head = ["made by", "claimed", "by rows", "by tokens alone", "greedy"]
    return ["", wrap(said, "  "), table(head, rows[:SHOWN], left=2), *_more(rows)]


def _separation(result: xr.Dataset) -> list[str]:
    """Areas and thresholds of likelihood ratios, and what cannot be said of them."""
    least, limits = float(result.attrs["curve_level"]), int(result.attrs["threshold_references"])
    judged = int(result.attrs["held_out_references"])
    lines = [""]
    if np.isfinite(least):
        at = result.sel(level=least)
        low = float(at["false_alarm_rate_low"].min())
        high = float(at["false_alarm_rate_high"].max())
        alarms, of = int(at["false_alarms"].sum()), int(at["false_alarms_of"].sum())
        said = (
            f"Thresholds at {least:.0%} false alarms, from {limits} honest likelihood ratios a config: such "
            f"a threshold rejects {_ends(low, high)} of new honest transcripts (Beta, 95 % of thresholds); "
            f"here {alarms} of {of}. Found: held-out false claims above it, by all rows, and by the margins "
            f"of all tokens. Rows, tokens: from how many on always {TPR:.0%} of these are found; in "
            "brackets by the ends of the share's interval."
        )
        lines.append(wrap(said, "  "))
    lines += [wrap(line, "  ") for line in _not_said(least, limits, judged)]
    rows = []
    for d, c in np.ndindex(result["auc"].shape):
        if result["auc"].values[d, c] >= 0:
            pair = [str(result[name].values[i]) for name, i in (("producer", d), ("config", c))]
            found = _share(result, "tpr_at", d, c)
            tokens = _share(result, "margin_tpr_at", d, c), _tokens(result, d, c)
            rows.append([*pair, _area(result, d, c), found, _rows(result, d, c), *tokens])
    if not rows:
        return lines
    head = ["made by", "claimed", "AUC", "found by rows", "rows", "by tokens alone", "tokens"]
    return [*lines, table(head, rows[:SHOWN], left=2), *_more(rows)]


def _not_said(least: float, limits: int, judged: int) -> list[str]:
    """What so few references cannot show."""
    lines = []
    if not least <= FPR:
        lines.append(
            f"Not said: any rate at {FPR:.0%} false alarms. Its threshold takes "
            f"{threshold_references(FPR)} honest scores a config; here are {limits}."
        )
    if judged < SHOWS_BOTH:
        most = 0.05 ** (1 / judged)
        lines.append(
            f"Not shown: rates of {TPR:.0%}. {judged} references without an error show at least {most:.1%} "
            f"(at 95 %); {SHOWS_TPR} show one rate of {TPR:.0%}, {SHOWS_BOTH} this and {1 - TPR:.0%} false "
            "alarms."
        )
    return lines


def leave_one_out_text(result: xr.Dataset) -> list[str]:
    """The lines of a section that has no held-out references: answers and ranks, each leave one out."""
    names = [str(v) for v in result["answer"].values]
    configs = [str(v) for v in result["config"].values]
    bits, rows = "bit_equal" in result, []
    for d, producer in enumerate(str(v) for v in result["producer"].values):
        total, counts = int(result["transcripts"].values[d]), result["confusion"].values[d]
        alone = counts[: len(configs)]
        right = int(alone[configs.index(producer)]) if producer in configs else 0
        ranks = [int(result[k].values[d]) for k in ("likeliest_right", "nearest_right")]
        rows.append(
            [
                producer,
                str(right),
                str(int(alone.sum()) - right),
                *(str(counts[names.index(name)]) for name in OTHER_ANSWERS),
                *(DASH if k < 0 else f"{k}/{total}" for k in ranks),
            ]
        )
        if bits:
            rows[-1].append(_bits(result, producer, total))
    said = (
        "Leave one reference out: each transcript judged by the other references. How many sets leave the "
        "true config out is an identity then, at most ⌊level · (n + 1)⌋ of n + 1 whatever the rows hold: it "
        "says nothing of the method. Names that are wrong, and ranks, could have come out otherwise. "
        "Likeliest, nearest: greatest ℓ or least distance is the true config's."
    )
    if bits:
        said += " Bit-equal: transcripts whose every decode row is that of the true config's replay."
    head = ["made by", "named", "wrongly", *OTHER_ANSWERS, "likeliest", "nearest"]
    return ["", wrap(said, "  "), table(head + (["bit-equal"] if bits else []), rows)]


def _more(rows: list[list[str]]) -> list[str]:
    left = len(rows) - SHOWN
    return [f"    … {plural(left, 'more pair')}: sweep.nc /analysis/attribution"] if left > 0 else []


def _count(result: xr.Dataset, name: str, *at: int) -> str:
    of = int(result[f"{name}_of"].values[at])
    return f"{int(result[name].values[at])}/{of}" if of else DASH


def _rate(result: xr.Dataset, name: str, *at: int) -> str:
    """``k/n (low…high)``, or a dash."""
    said = _count(result, name, *at)
    if said == DASH:
        return said
    return f"{said} ({_ends(*(float(result[f'{name}_{end}'].values[at]) for end in ('low', 'high')))})"


def _share(result: xr.Dataset, name: str, d: int, c: int) -> str:
    share, low, high = (float(result[f"{name}{end}"].values[d, c, -1]) for end in ("", "_low", "_high"))
    return f"{percent(share)} ({_ends(low, high)})" if np.isfinite(share) else DASH


def _area(result: xr.Dataset, d: int, c: int) -> str:
    value, low, high = (float(result[k].values[d, c]) for k in ("auc", "auc_low", "auc_high"))
    return f"{value:.3f}" + (f" ({low:.3f}…{high:.3f})" if np.isfinite(low) else "")


def _rows(result: xr.Dataset, d: int, c: int) -> str:
    if not np.isfinite(result["tpr_at"].values[d, c]).any():
        return DASH
    most = result.sizes["rows"]
    needed, low, high = (
        str(n) if n > 0 else f"> {most}"
        for n in (int(result[k].values[d, c]) for k in ("rows_needed", "rows_low", "rows_high"))
    )
    return f"{needed} ({low}…{high})"


def _tokens(result: xr.Dataset, d: int, c: int) -> str:
    if not np.isfinite(result["margin_tpr_at"].values[d, c]).any():
        return DASH
    needed = int(result["margin_tokens_needed"].values[d, c])
    return str(needed) if needed > 0 else f"> {result.sizes['tokens']}"


def _bits(result: xr.Dataset, producer: str, total: int) -> str:
    """Transcripts that are bit-equal to their own config's replay, and others that they equal as well."""
    counts = dict(
        zip(result["config"].values, result["bit_equal"].sel(producer=producer).values, strict=True)
    )
    own = counts.pop(producer, None)
    others = [str(name) for name, count in counts.items() if count]
    said = DASH if own is None else f"{int(own)}/{total}"
    return said + (f" (and {', '.join(others)})" if others else "")


def calibration_text(references: int, alpha: float, own_labels: bool) -> list[str]:
    """Say what the p-values rest on, and when that is too little."""
    source = (
        "the judged producers' labels taken as true, every transcript judged by the other references "
        "(a label that is wrong throughout cannot be found so: it shows error rates, no verdict rests on it)"
        if own_labels
        else "separate transcripts of known configs"
    )
    lines = [
        f"Calibration: {plural(references, 'reference')} a config, from {source}. Assumed: the judged "
        "transcript and the calibration are exchangeable (prompts of one kind, the same two environments)."
    ]
    if not references:
        lines.append("No calibration: no p-value of distances, no verdict by them.")
    elif references < fewest_references(alpha):
        lines.append(
            f"Too little calibration: at level {alpha:.0%} no claim can be rejected with fewer than "
            f"{fewest_references(alpha)} references (smallest possible p here: 1/{references + 1}); every "
            "calibrated config stays plausible."
        )
    else:
        lines.append(
            f"An honest claim on one transcript is rejected with probability at most {alpha:.0%} "
            f"(attainable: {attainable_level(references, alpha):.2%})."
        )
    return [wrap(line, "  ") for line in lines]
