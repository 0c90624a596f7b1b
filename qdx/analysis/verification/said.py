"""The lines of the report about claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.analysis.layout import NOT_MEASURED, plural, table, wrap
from qdx.analysis.verification.conformal import attainable_level, fewest_references
from qdx.analysis.verification.gather import Replays
from qdx.analysis.verification.verdicts import Evidence, Exact, upper

SHOWN = 40


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
            f"(attainable: {attainable_level(references, alpha):.2%}); over several, by min(1, 2 · mean p), "
            "at most that too."
        )
    return [wrap(line, "  ") for line in lines]


def claims(
    data: Replays,
    evidence: Evidence,
    result: xr.Dataset,
    at: Sequence[int],
    each: Sequence[Sequence[str]],
    own: bool,
) -> str:
    """What every claim's verdict is and rests on, then a line a claim and reference.

    Parameters
    ----------
    result : xarray.Dataset
        Of `claims.verify`.
    at : sequence of int
        The claimed config of every producer; −1: it was not replayed.
    each : sequence of sequence of str
        The plausible configs of every transcript: producers, each with its references.
    own : bool
        Whether the calibration takes the producers' labels as true.
    """
    alpha, few = float(result.attrs["alpha"]), int(result.attrs["calibration_references"])
    if few < fewest_references(alpha):  # every config is plausible then, which names none
        each, which = [[NOT_MEASURED] * len(row) for row in each], [NOT_MEASURED] * len(at)
    else:
        which = [str(v) for v in result["answer"].values]
    lines = [wrap(f"{result.attrs['headline']}.", "  "), ""]
    for d, producer in enumerate(data.producers):
        claim = str(result["claim"].values[d])
        name = producer if claim == producer else f"{producer} as {claim}"
        kind, why = str(result["verdict"].values[d]), str(result["because"].values[d])
        lines.append(wrap(f"{name}: {kind.upper()}. {why[:1].upper()}{why[1:]}.", "  ", "    "))
    lines += ["", *_repeats(data), *_assumed(data, evidence, alpha)]
    lines += ["", *calibration_text(few, alpha, own)]
    needed = fewest_references(alpha, len(data.references))
    if fewest_references(alpha) <= few < needed:
        text = (
            f"Too little calibration to combine transcripts: twice a mean p is at least {2 / (few + 1):.3g}, "
            f"{needed} references are needed; transcripts can be rejected, a producer as a whole cannot."
        )
        lines.append(wrap(text, "  "))
    if result.attrs["other_machines"]:
        text = (
            "Calibration of other machines: it was not made on the producers' kind of GPU and replayed in "
            "this environment class, so it is no null here: no p-value for those claims, only ℓ as a rank."
        )
        lines.append(wrap(text, "  "))
    lines += ["", _summary(data, evidence, result, at, which)]
    return "\n".join([*lines, *_references(data, result, at, each)])


def _repeats(data: Replays) -> list[str]:
    """How many reruns of references were bit-equal, on both sides."""
    lines = []
    for rows in data.phases:
        sides = (("producers", data.producers, rows.repeats_D), ("here", data.configs, rows.repeats_C))
        said = []
        for side, names, repeats in sides:
            counts = [f"{n} {r.equal} of {r.reruns}" for n, r in zip(names, repeats, strict=True)]
            said.append(f"{side}: {', '.join(counts)}")
        lines.append(wrap(f"Reruns bit-equal in {rows.phase}, {'; '.join(said)}.", "  "))
    return lines


def _assumed(data: Replays, evidence: Evidence, alpha: float) -> list[str]:
    """What the tests assume, with how many references and tokens they had."""
    rows = int(data.decode.compared_DCR.max(initial=0))
    tokens = int(data.tokens_DCR.max(initial=0))
    said = [
        f"Level {alpha:.0%} over all claims together (Holm). {plural(len(data.references), 'reference')}, up "
        f"to {plural(max(tokens, rows), 'token')} of each.",
        "Exact test: the rows' bits are equal. Valid where compute capability, SMs, engine with version and "
        "settings, and batch are one (on a CPU: processor, threads, torch and qdx's code) and the config's "
        "repeats here are bit-equal. If k of R references differ and none of n reruns did, "
        "p = C(R,k)/C(R+n,k) (Fisher), reruns taken as independent. Equal rows confirm a claim up to configs "
        "that were not replayed and are equal too.",
        "In brackets: 95 % upper bound of the rate at which an honest reference mismatches.",
        "p of distances: conformal, from the sketches' profile. Margin p: from the tokens alone, assumes a "
        "greedy producer. Without a calibration of known transcripts (verify.calibration) a verdict by "
        "distances rests on the verifier's own repeats, and only where the environment classes are one.",
    ]
    if all(not exact.reruns_DC.any() for exact in evidence.exact):
        said.append("Nothing was run twice here, so there is no exact test (repeats=2 or more).")
    return [wrap(line, "  ") for line in said]


def _summary(
    data: Replays, evidence: Evidence, result: xr.Dataset, at: Sequence[int], which: Sequence[str]
) -> str:
    rows = []
    for d, producer in enumerate(data.producers):
        c = at[d]
        claim = str(result["claim"].values[d])
        if c < 0:
            rows.append([producer, claim, *[NOT_MEASURED] * 6, which[d]])
            continue
        greedy, tokens = int(data.greedy_DCR[d, c].sum()), int(data.tokens_DCR[d, c].sum())
        exact = {e.phase: _exact(e, data, d, c) for e in evidence.exact}
        rows.append(
            [
                producer,
                claim,
                exact["decode"],
                exact.get("prefill", NOT_MEASURED),
                *(_p(float(result[name].values[d])) for name in ("p_claim", "p_holm")),
                f"{greedy:,}/{tokens:,}",
                _p(float(result["p_margin_claim"].values[d])),
                which[d],
            ]
        )
    head = ["producer", "claim", "decode rows equal", "prefill", "p", "Holm", "greedy", "margin p", "which"]
    return table(head, rows, left=2)


def _references(
    data: Replays, result: xr.Dataset, at: Sequence[int], each: Sequence[Sequence[str]]
) -> list[str]:
    """A line a claimed config and reference."""
    rows: list[list[str]] = []
    for d, producer in enumerate(data.producers):
        for r, name in enumerate(data.references):
            if at[d] < 0 or len(rows) >= SHOWN:
                continue
            c = at[d]
            prefill = NOT_MEASURED
            if data.prefill is not None:
                prefill = f"{data.prefill.equal_DCR[d, c, r]}/{data.prefill.compared_DCR[d, c, r]}"
            rows.append(
                [
                    str(result["claim"].values[d]),
                    name,
                    producer,
                    f"{data.decode.equal_DCR[d, c, r]}/{data.decode.compared_DCR[d, c, r]}",
                    prefill,
                    f"{data.greedy_DCR[d, c, r]}/{data.tokens_DCR[d, c, r]}",
                    *(_p(float(result[k].values[d, c, r])) for k in ("p", "p_margin")),
                    each[d][r],
                ]
            )
    if not rows:
        return []
    head = ["claim", "reference", "producer", "decode", "prefill", "greedy", "p", "margin p", "which"]
    lines = ["", table(head, rows, left=3)]
    left = sum(c >= 0 for c in at) * len(data.references) - len(rows)
    return [*lines, f"    … {plural(left, 'more line')}: sweep.nc /analysis/verify"] if left > 0 else lines


def _p(value: float) -> str:
    return NOT_MEASURED if not np.isfinite(value) else f"{value:.3g}"


def _exact(exact: Exact, data: Replays, d: int, c: int) -> str:
    phases = {rows.phase: rows for rows in data.phases}
    rows = phases[exact.phase]
    equal, compared = int(rows.equal_DCR[d, c].sum()), int(rows.compared_DCR[d, c].sum())
    if not compared:
        return NOT_MEASURED
    error = float(exact.error_DC[d, c])
    return f"{equal:,}/{compared:,}" + (f" (< {upper(error)})" if np.isfinite(error) else " (no test)")
