"""Is this the claimed config? One line for every claim, each with what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from qdx.analysis.layout import NOT_MEASURED, percent, plural, table, wrap
from qdx.analysis.numerics import Floats
from qdx.analysis.section import Section
from qdx.analysis.verification.attribution import answers, judge, judge_scores
from qdx.analysis.verification.conformal import (
    answer,
    attainable_level,
    combine,
    fewest_references,
    holm,
)
from qdx.analysis.verification.exact import why_not_exact
from qdx.analysis.verification.gather import Replays, same_machines
from qdx.errors import QdxError

SHOWN = 40


def verify(
    producer_tree: xr.DataTree,
    verifier_tree: xr.DataTree,
    alpha: float = 0.05,
    claims: Mapping[str, str] | None = None,
    calibration: tuple[xr.DataTree, xr.DataTree] | None = None,
) -> Section:
    """Test what each producer claims to have run.

    Parameters
    ----------
    producer_tree : xarray.DataTree
        The producers' sweep; ``/decode`` holds the rows behind each transcript.
    verifier_tree : xarray.DataTree
        The verifier's replays of them: ``/replay`` with a dimension ``producer``.
    alpha : float
        Probability with which an honest claim may be rejected.
    claims : Mapping of str to str, optional
        Producer → config that it claims to be. Default: its own label.
    calibration : (producer_tree, verifier_tree), optional
        Transcripts of *known* configs made in the producers' environment class, and their replays here. By
        default the labels of the judged producers are taken as true: each transcript is judged by the other
        references. That measures error rates; a label that is wrong throughout cannot be found so.

    Returns
    -------
    Section
        Result over (producer, config, reference): ``p`` (conformal, from sketches), ``p_margin`` (from the
        tokens alone), ``log_likelihood``, ``rows_compared``, ``rows_equal``; over (producer, config):
        ``exact`` ("" where the exact test is valid, else why not), ``exact_error``, ``p_combined``; over
        producer: ``claim``, ``p_claim`` (combined), ``p_holm``, ``p_margin_claim``, ``answer``.

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
    known = data if calibration is None else Replays.of(*calibration)
    if known.components != data.components:
        raise QdxError(
            f"calibration has sketches of {known.components} components, the judged of {data.components}"
        )
    claimed = [str((claims or {}).get(label, label)) for label in data.producers]
    for producer, label in zip(data.producers, claimed, strict=True):
        if claims and producer in claims and label not in data.configs:
            raise QdxError(
                f"producer {producer!r} claims {label!r}, which was not replayed: add it to quant=… "
                f"(replayed: {', '.join(data.configs)})"
            )
    same = [known.references.index(r) if r in known.references else -1 for r in data.references]
    judged = judge(data.energy_DCRT, data.floor_DRT, known.calibration(data.configs), same)
    p_margin = judge_scores(data.margin_DCR, known.honest(known.margin_DCR, data.configs), same)
    fits_DC = same_machines(data, known)
    judged.p_DCR[~fits_DC] = p_margin[~fits_DC] = np.nan
    combined_DC, margin_DC = _combined(judged.p_DCR), _combined(p_margin)
    exact = [
        [
            why_not_exact(
                data.environment_D[d], data.environment_C[c], data.repeats_D[d], data.repeats_DC[d][c]
            )
            for c in range(len(data.configs))
        ]
        for d in range(len(data.producers))
    ]
    errors = [
        [
            max(data.repeats_D[d].error, data.repeats_DC[d][c].error) if not why else np.nan
            for c, why in enumerate(row)
        ]
        for d, row in enumerate(exact)
    ]
    at = [data.configs.index(label) if label in data.configs else -1 for label in claimed]
    p_claim = np.array([combined_DC[d, c] if c >= 0 else np.nan for d, c in enumerate(at)])
    said = [str(answer(data.configs, row, alpha)) for row in combined_DC]
    result = _result(data, judged.p_DCR, p_margin, judged.log_likelihood_DCR)
    pair, one = ("producer", "config"), {"units": "1"}
    result = result.assign(
        exact=(
            pair,
            np.array(exact, object),
            {**one, "long_name": "why the exact test is not valid; empty: it is"},
        ),
        exact_error=(
            pair,
            np.array(errors, float),
            {**one, "long_name": "95 % upper bound of an honest run's mismatch rate"},
        ),
        p_combined=(pair, combined_DC, {**one, "long_name": "min(1, 2 · mean p) over references"}),
        claim=("producer", np.array(claimed, object), {**one, "long_name": "claimed config"}),
        p_claim=("producer", p_claim, {**one, "long_name": "p_combined of the claimed config"}),
        p_holm=(
            "producer",
            holm(p_claim),
            {**one, "long_name": "p_claim, Holm's adjustment over the claims"},
        ),
        p_margin_claim=(
            "producer",
            np.array([margin_DC[d, c] if c >= 0 else np.nan for d, c in enumerate(at)]),
            {**one, "long_name": "combined p of the tokens' margins under the claim"},
        ),
        answer=(
            "producer",
            np.array(said, object),
            {**one, "long_name": f"configs with p_combined over {alpha:g}"},
        ),
    )
    calibrated_C = judged.references_CR.any(-1)
    counts = judged.references_CR[calibrated_C & fits_DC.any(0)]
    least = int(counts.min()) if counts.size else 0
    result.attrs = {
        "alpha": alpha,
        "attainable_level": attainable_level(least, alpha),
        "calibration_references": least,
        "other_machines": int((calibrated_C & ~fits_DC).sum()),
        "calibration": "the judged producers' own labels" if calibration is None else "separate transcripts",
    }
    each = answers(data.configs, judged.p_DCR, alpha)
    return Section(
        "verify",
        "Claims",
        result,
        {"": _text(data, result, at, [[str(a) for a in row] for row in each], calibration is None)},
    )


def _combined(p_DCR: Floats) -> Floats:
    return np.array([[combine(p_R) for p_R in row] for row in p_DCR])


def _result(data: Replays, p: Floats, p_margin: Floats, loglik: Floats) -> xr.Dataset:
    dims, one = ("producer", "config", "reference"), {"units": "1"}
    return xr.Dataset(
        {
            "p": (dims, p, {**one, "long_name": "conformal p of the sketches' profile"}),
            "p_margin": (dims, p_margin, {**one, "long_name": "conformal p of the tokens' mean margin"}),
            "margin": (
                dims,
                data.margin_DCR,
                {"units": "logit", "long_name": "mean margin of the producer's tokens"},
            ),
            "log_likelihood": (dims, loglik, {"units": "nat", "long_name": "ℓ of the config"}),
            "rows_compared": (dims, data.compared_DCR, {**one, "long_name": "rows compared"}),
            "rows_equal": (dims, data.equal_DCR, {**one, "long_name": "rows of equal hashes"}),
        },
        coords={"producer": data.producers, "config": data.configs, "reference": data.references},
    )


def calibration_text(references: int, alpha: float, own_labels: bool) -> list[str]:
    """Say what the p-values rest on, and when that is too little."""
    source = (
        "the judged producers' labels taken as true, every transcript judged by the other references "
        "(a label that is wrong throughout cannot be found so)"
        if own_labels
        else "separate transcripts of known configs"
    )
    lines = [
        f"Calibration: {plural(references, 'reference')} a config, from {source}. Assumed: the judged "
        "transcript and the calibration are exchangeable (prompts of one kind, the same two environments)."
    ]
    if not references:
        lines.append("No calibration: no p-value, no verdict by p.")
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


def _text(
    data: Replays, result: xr.Dataset, at: Sequence[int], each: Sequence[Sequence[str]], own: bool
) -> str:
    lines = calibration_text(int(result.attrs["calibration_references"]), float(result.attrs["alpha"]), own)
    few = int(result.attrs["calibration_references"])
    needed = fewest_references(float(result.attrs["alpha"]), len(data.references))
    if fewest_references(float(result.attrs["alpha"])) <= few < needed:
        said = (
            f"Too little calibration to combine transcripts: twice a mean p is at least {2 / (few + 1):.3g}, "
            f"{needed} references are needed; transcripts can be rejected, a producer as a whole cannot."
        )
        lines.append(wrap(said, "  "))
    if result.attrs["other_machines"]:
        said = (
            "Calibration of other machines: it was not made on the producers' kind of GPU and replayed in "
            "this environment class, so it is no null here: no p-value for those claims, only ℓ as a rank."
        )
        lines.append(wrap(said, "  "))
    lines.append(
        wrap(
            "exact: rows of equal hashes, where environment class and repeats make that a test. p: the "
            "sketches; margin p: the tokens alone (assumes a greedy producer); Holm: for all claims.",
            "  ",
        )
    )
    rows = []
    for d, producer in enumerate(data.producers):
        c = at[d]
        claim = str(result["claim"].values[d])
        if c < 0:
            rows.append(
                [producer, claim, NOT_MEASURED, "not replayed", *["–"] * 3, str(result["answer"].values[d])]
            )
            continue
        rows.append(
            [
                producer,
                claim,
                f"{data.compared_DCR[d, c].sum():,}",
                _exact(data, result, d, c),
                *(_p(float(result[name].values[d])) for name in ("p_claim", "p_holm", "p_margin_claim")),
                str(result["answer"].values[d]),
            ]
        )
    head = ["producer", "claim", "tokens", "exact", "p", "Holm", "margin p", "which"]
    lines += ["", table(head, rows, left=2)]
    rows = []
    for d, producer in enumerate(data.producers):
        for r, name in enumerate(data.references):
            if at[d] >= 0 and len(rows) < SHOWN:
                c = at[d]
                equal = f"{data.equal_DCR[d, c, r]}/{data.compared_DCR[d, c, r]}"
                p, margin = (float(result[k].values[d, c, r]) for k in ("p", "p_margin"))
                rows.append(
                    [str(result["claim"].values[d]), name, producer, equal, _p(p), _p(margin), each[d][r]]
                )
    if rows:
        lines += [
            "",
            table(["claim", "reference", "producer", "rows equal", "p", "margin p", "which"], rows, left=3),
        ]
    left = len(data.producers) * len(data.references) - len(rows)
    if left > 0:
        lines.append(f"    … {plural(left, 'more line')}: /analysis/verify")
    return "\n".join(lines)


def _p(value: float) -> str:
    return NOT_MEASURED if not np.isfinite(value) else f"{value:.3g}"


def _exact(data: Replays, result: xr.Dataset, d: int, c: int) -> str:
    why = str(result["exact"].values[d, c])
    equal, rows = int(data.equal_DCR[d, c].sum()), int(data.compared_DCR[d, c].sum())
    if why:
        return f"no test: {why}"
    if not rows:
        return "no rows"
    bound = percent(float(result["exact_error"].values[d, c]))
    return f"{'equal' if equal == rows else f'{rows - equal} rows differ'} (error < {bound})"
