"""Write what the report says of *Which of N*."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from qdx.document.blocks import Block, Cell, Matrix, Table, Text
from qdx.document.format import DASH, number, part, percent, plural, span
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
    return f"{part(count, of)} ({_ends(low, high)})" if of else DASH


def _ends(low: float, high: float) -> str:
    return span(low, high, percent) if np.isfinite(low) else "no interval"


def held_out_blocks(result: xr.Dataset) -> list[Block]:
    """Everything that the section says of held-out references."""
    said = "\n".join([f"{result.attrs['headline']}.", *_basis(result)])
    return [Text(said), *_answers(result), *_refuted(result), *_separation(result)]


def _basis(result: xr.Dataset) -> list[str]:
    """Say who calibrates and who is judged, what is assumed, and what the level means."""
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


def _answers(result: xr.Dataset) -> list[Block]:
    """The confusion matrix of held-out transcripts, and how often a single one is named rightly."""
    producers = [str(v) for v in result["producer"].values]
    rows: list[list[Cell]] = [
        [
            producer,
            _rate(result, "wrong_names", d),
            _rate(result, "in_set", d),
            *(_count(result, name, d) for name in ("likeliest_held", "nearest_held")),
            _bits(result, producer, int(result["transcripts"].values[d])),
        ]
        for d, producer in enumerate(producers)
    ]
    said = (
        "Wrong: held-out transcripts that are named alone, and wrongly. In set: the true config is "
        "(coverage). Likeliest, nearest: greatest ℓ or least distance is the true config's, without any "
        "level. Bit-equal: of all references, transcripts whose every decode row is that of the true "
        "config's replay."
    )
    head = ["made by", "wrong", "in set", "likeliest", "nearest", "bit-equal"]
    about = (
        "Answers for single held-out transcripts: the set {c : p > level}, and with it every config whose "
        "decode rows are all bit-equal. A transcript with one config in its set is counted there"
    )
    return [_by_answer(result, "answers", about), Table(said, head, rows)]


def _by_answer(result: xr.Dataset, name: str, caption: str) -> Matrix:
    """Transcripts by who made them and what the answer was; an answer that nobody got is left out."""
    names, counts = [str(v) for v in result["answer"].values], result[name].values
    shown = [i for i, answer in enumerate(names) if answer not in OTHER_ANSWERS or counts[:, i].any()]
    producers = [str(v) for v in result["producer"].values]
    return Matrix(caption, producers, counts[:, shown], columns=[names[i] for i in shown])


def _refuted(result: xr.Dataset) -> list[Block]:
    """Claims refuted: by rows, and by the tokens alone."""
    if not result["refuted_of"].values.any():
        return []
    producers, configs = ([str(v) for v in result[dim].values] for dim in ("producer", "config"))
    level = f"at level {float(result.attrs['alpha']):.0%}, by claim; under the own config: false alarms"
    rows, tokens = result.attrs["rows"], result.sizes["tokens"]

    def matrix(caption: str, name: str) -> Matrix:
        cells = [[_rate(result, name, d, c) for c in range(len(configs))] for d in range(len(producers))]
        return Matrix(caption, producers, cells, columns=configs)

    counts = zip(result["tokens_greedy"].values, result["tokens_judged"].values, strict=True)
    greedy = [[part(*pair) for pair in zip(*row, strict=True)] for row in counts]
    return [
        matrix(f"Held-out transcripts refuted by their published rows (up to {rows}) {level}", "refuted"),
        matrix(
            f"Held-out transcripts refuted by their tokens alone (the mean margin of up to {tokens} here) "
            f"{level}",
            "refuted_by_tokens",
        ),
        Matrix("Tokens that are the claimed config's greedy choice", producers, greedy, columns=configs),
    ]


def _separation(result: xr.Dataset) -> list[Block]:
    """Areas and thresholds of likelihood ratios, and what cannot be said of them."""
    least, limits = float(result.attrs["curve_level"]), int(result.attrs["threshold_references"])
    judged = int(result.attrs["held_out_references"])
    lines = []
    if np.isfinite(least):
        at = result.sel(level=least)
        low = float(at["false_alarm_rate_low"].min())
        high = float(at["false_alarm_rate_high"].max())
        alarms, of = int(at["false_alarms"].sum()), int(at["false_alarms_of"].sum())
        lines.append(
            f"Thresholds at {least:.0%} false alarms, from {limits} honest likelihood ratios a config: such "
            f"a threshold rejects {_ends(low, high)} of new honest transcripts (Beta, 95 % of thresholds); "
            f"here {part(alarms, of)}. Found: held-out false claims above it, by all rows, and by the "
            f"margins of all tokens. Rows, tokens: from how many on always {TPR:.0%} of these are found; in "
            "brackets by the ends of the share's interval."
        )
    lines += _not_said(least, limits, judged)
    blocks: list[Block] = [Text("\n".join(lines))] if lines else []
    rows: list[list[Cell]] = []
    for d, c in np.ndindex(result["auc"].shape):
        if result["auc"].values[d, c] >= 0:
            pair = [str(result[name].values[i]) for name, i in (("producer", d), ("config", c))]
            found = _share(result, "tpr_at", d, c)
            tokens = _share(result, "margin_tpr_at", d, c), _tokens(result, d, c)
            rows.append([*pair, _area(result, d, c), found, _rows(result, d, c), *tokens])
    if rows:
        left = len(rows) - SHOWN
        more = f"… {plural(left, 'more pair')}: sweep.nc /analysis/attribution" if left > 0 else ""
        head = ["made by", "claimed", "AUC", "found by rows", "rows", "by tokens alone", "tokens"]
        blocks.append(Table("How far likelihood ratios tell claims apart", head, rows[:SHOWN], 2, more))
    return blocks


def _not_said(least: float, limits: int, judged: int) -> list[str]:
    """Say what so few references cannot show."""
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


def leave_one_out_blocks(result: xr.Dataset) -> list[Text | Matrix | Table]:
    """Say what a section without held-out references says: answers and ranks, each leave one out."""
    configs = [str(v) for v in result["config"].values]
    bits = "bit_equal" in result
    rows: list[list[Cell]] = []
    for d, producer in enumerate(str(v) for v in result["producer"].values):
        total, alone = int(result["transcripts"].values[d]), result["confusion"].values[d][: len(configs)]
        right = int(alone[configs.index(producer)]) if producer in configs else 0
        ranks = [int(result[k].values[d]) for k in ("likeliest_right", "nearest_right")]
        row: list[Cell] = [producer, right, int(alone.sum()) - right]
        row += [DASH if k < 0 else part(k, total) for k in ranks]
        rows.append([*row, _bits(result, producer, total)] if bits else row)
    said = (
        "Named, wrongly: transcripts whose answer is one config, the true one or another. Likeliest, "
        "nearest: greatest ℓ or least distance is the true config's."
    )
    if bits:
        said += " Bit-equal: transcripts whose every decode row is that of the true config's replay."
    about = (
        "Leave one reference out: each transcript judged by the other references. How many sets leave the "
        "true config out is an identity then, at most ⌊level · (n + 1)⌋ of n + 1 whatever the rows hold: it "
        "says nothing of the method. Names that are wrong, and ranks, could have come out otherwise."
    )
    head = ["made by", "named", "wrongly", "likeliest", "nearest", *(["bit-equal"] if bits else [])]
    return [
        Text(about),
        _by_answer(result, "confusion", "Transcripts by answer, leave one reference out"),
        Table(said, head, rows),
    ]


def _count(result: xr.Dataset, name: str, *at: int) -> str:
    return part(result[name].values[at], result[f"{name}_of"].values[at])


def _rate(result: xr.Dataset, name: str, *at: int) -> str:
    """``k of n (low to high)``, or a dash."""
    said = _count(result, name, *at)
    if said == DASH:
        return said
    return f"{said} ({_ends(*(float(result[f'{name}_{end}'].values[at]) for end in ('low', 'high')))})"


def _share(result: xr.Dataset, name: str, d: int, c: int) -> str:
    share, low, high = (float(result[f"{name}{end}"].values[d, c, -1]) for end in ("", "_low", "_high"))
    return f"{percent(share)} ({_ends(low, high)})" if np.isfinite(share) else DASH


def _area(result: xr.Dataset, d: int, c: int) -> str:
    value, low, high = (float(result[k].values[d, c]) for k in ("auc", "auc_low", "auc_high"))
    return number(value) + (f" ({span(low, high)})" if np.isfinite(low) else "")


def _rows(result: xr.Dataset, d: int, c: int) -> str:
    if not np.isfinite(result["tpr_at"].values[d, c]).any():
        return DASH
    most = result.sizes["rows"]
    needed, low, high = (
        str(n) if n > 0 else f"> {most}"
        for n in (int(result[k].values[d, c]) for k in ("rows_needed", "rows_low", "rows_high"))
    )
    return f"{needed} ({low} to {high})"


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
    said = DASH if own is None else part(own, total)
    return said + (f" (and {', '.join(others)})" if others else "")


def calibration_block(references: int, alpha: float, own_labels: bool) -> Text:
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
    return Text("\n".join(lines))
