"""Write what the report says of claims."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from qdx.capture.densities import SHARE
from qdx.document.blocks import Block, Cell, Details, Table, Text
from qdx.document.format import DASH, part, plural, probability
from qdx.verification.calibration_size import calibration_total, fewest_false
from qdx.verification.cases import Evidence
from qdx.verification.evidence import Claim, counts_needed, sampling_of
from qdx.verification.p_values import false_alarm_spread
from qdx.verification.provider_blocks import provider_blocks
from qdx.verification.replays import Replays
from qdx.verification.sampled import KERNEL_KL
from qdx.verification.shares import PRIOR, likeliest
from qdx.verification.verdicts import Verdict

SHOWN = 40  # claims and references that are listed


def claim_blocks(
    data: Replays,
    evidence: Evidence,
    decided: Sequence[Verdict],
    result: xr.Dataset,
    at: Sequence[int],
) -> list[Block]:
    """Say what every claim's verdict is and rests on, then how every claim and reference came out.

    Parameters
    ----------
    data : Replays
    evidence : Evidence
    decided : sequence of Verdict
    result : xarray.Dataset
        Of `claims.verify`.
    at : sequence of int
        The claimed config of every producer; −1: it was not replayed.
    """
    first = [line for line in data.notes if line.startswith("PROMPT:")]
    notes = [line for line in data.notes if line not in first]
    top = [line.removeprefix("PROMPT: ") for line in first]
    blocks: list[Block] = [
        Text("\n".join([*top, f"{result.attrs['headline']}."])),
        _summary(data, evidence, result, at),
        Text("\n".join(_verdicts(data, decided, result))),
        *provider_blocks(data, evidence, result, at),
    ]
    if notes:
        blocks.append(Details("About the records", [Text("\n".join(notes))]))
    if answered := _answered(data, result):
        blocks.append(Text("\n".join(answered)))
    if tests := _listed(data, evidence):
        blocks.append(Details("Tests that the files allow", [Text("\n".join(tests))]))
    blocks += [
        Details("What is assumed", [Text("\n".join(_assumed(data, evidence)))]),
        _repeats(data),
        Text(_processes(data)),
    ]
    return [*blocks, *_references(data, result, at)]


def _name(result: xr.Dataset, d: int) -> str:
    """The producer, and as what it is judged where that is not its label."""
    producer, claim = (str(result[name].values[d]) for name in ("producer", "claim"))
    return producer if claim == producer else f"{producer} as {claim}"


def _verdicts(data: Replays, decided: Sequence[Verdict], result: xr.Dataset) -> list[str]:
    """A line a claim: the verdict and what it rests on."""
    return [
        f"{_name(result, d)}: {verdict.kind.upper()} ({verdict.concerns}). "
        f"{verdict.because[:1].upper()}{verdict.because[1:]}."
        for d, verdict in enumerate(decided)
    ]


def _listed(data: Replays, evidence: Evidence) -> list[str]:
    """The tests that each claim's files allow, and why they do not allow the others."""
    seen: dict[str, list[str]] = {}
    for producer, claim in zip(data.producers, evidence.claims, strict=True):
        if claim is not None:
            listed = ", ".join(test.name for test in claim.tests) or "none"
            left = "; ".join(f"{name}: {why}" for name, why in claim.unlisted.items())
            seen.setdefault(f"{listed}{f'. Not listed: {left}' if left else ''}", []).append(producer)
    return [f"Tests of {', '.join(producers)}: {text}." for text, producers in seen.items()]


def _answered(data: Replays, result: xr.Dataset) -> list[str]:
    """Say which config most probably gave each answer whose tokens were drawn."""
    if "posterior" not in result:
        return []
    lines = []
    for d, producer in enumerate(data.producers):
        posterior_CR = result["posterior"].values[d][:, data.there_DR[d]]
        if not np.isfinite(posterior_CR).any():
            continue
        counts = zip(data.configs, likeliest(posterior_CR), strict=True)
        each = ", ".join(f"{config} {count}" for config, count in counts)
        share = float(result["false_share_at_least"].values[d])
        lines.append(
            f"Answers of {producer} by the config that most probably gave them: {each} (prior: {PRIOR}; "
            "rows taken as exact, without an error rate). Share of independent answers that are false, "
            f"at least: {share:.0%}."
        )
    return lines


def _binding(evidence: Evidence) -> str:
    """Say what shows that rows were not copied, and what does not."""
    drawn = [one.rows for one in evidence.obligations_D if one.rows]
    if not drawn:
        return (
            "A file cannot show that its rows are older than this verifier's own: choose prompts, lengths "
            "and time yourself (python -m qdx.challenge)."
        )
    return (
        f"Drawn rows ({min(drawn)} of each config) were bound by a root before they were drawn, each phase "
        "by itself. Only those that fit it are compared, and a share of false rows is one of the phase's "
        "rows without the template's. The prompts carry a nonce, so that a prover can tell them from others: "
        "what others are served is not judged."
    )


def _repeats(data: Replays) -> Table:
    """Say how many reruns of references were bit-equal, on both sides."""
    phases = [rows.phase for rows in data.phases]
    made = [[part(of.equal, of.reruns) for of in rows.repeats_D] for rows in data.phases]
    here = [[part(of.equal, of.reruns) for of in rows.repeats_C] for rows in data.phases]
    rows = [
        [name, side, *counts]
        for side, names, columns in (("producer", data.producers, made), ("here", data.configs, here))
        for name, *counts in zip(names, *columns, strict=True)
    ]
    return Table("Reruns of references that were bit-equal", ["config", "where", *phases], rows, 2)


def _processes(data: Replays) -> str:
    counts = zip(data.configs, data.processes_C, strict=True)
    return (
        "Processes that the repeats here ran in: "
        f"{', '.join(f'{name} {n}' if n else f'{name} not stated' for name, n in counts)}."
    )


def _assumed(data: Replays, evidence: Evidence) -> list[str]:
    """Say what the tests assume, and how many references they need."""
    alpha = float(evidence.alpha)
    asked = sum(claim is not None for claim in evidence.claims)
    most = max(data.processes_C, default=0)
    said = [
        f"Level {alpha:.0%} over all claims together (Holm) and over the T tests of each (T · min p). "
        f"{plural(len(data.references), 'reference')}, at most "
        f"{plural(int(data.emitted_DR.max(initial=0)), 'token')} of each.",
        "Rows confirm by being equal, on whatever machine. They refute by differing only where both records "
        "state one environment class and every rerun here, in processes of its own, was bit-equal: k of R "
        "references differ, none of n reruns did, p = C(R,k)/C(R+n,k) (Fisher).",
        "Text fits rows: on a bit-equal row of a plain greedy record the emitted token is the greatest logit "
        "(ties pass and are counted); one that is not refutes without a p.",
        "Distances and text of kernels that do not repeat, or of other machines: against known transcripts "
        "(verify.calibration) by a pooled exact test (tail count and rank sum), or, in one environment "
        "class, against the config's own repeats here by permutation within each reference.",
        *_of_listed(data),
        *_of_drawn(data),
        "Assumed: judged and known transcripts are exchangeable (prompts of one kind), and an engine's start "
        f"does not choose the kernel: {most} starts here were compared, and one that differs with "
        f"probability q is missed by them with (1 − q)^{most}. The producers' own labels are "
        "never their calibration.",
        _binding(evidence),
    ]
    if evidence.calibrated:
        judged = int(data.units_DR.max(initial=-1)) + 1
        tests = max((len(claim.tests) for claim in evidence.claims if claim), default=1) or 1
        needed = counts_needed(evidence.alpha, asked, tests, judged)
        found = fewest_false(evidence.alpha, max(1, asked), tests, judged, needed)
        said.append(
            f"{plural(judged, 'transcript')}, {plural(asked, 'claim')} of {plural(tests, 'test')}: at least "
            f"{needed} calibration references, {calibration_total(needed) - needed} more that fit the scale "
            f"of distances; with these, {found or 'more than all'} false transcripts are found when their "
            "scores lie above all of the calibration's (python -m qdx.plan)."
        )
        counts = [test.known for claim in evidence.claims if claim for test in claim.tests if test.known]
        if counts:
            said.append(_spread(min(counts), evidence))
    return [*said, *_lacking(data, evidence)]


def _of_listed(data: Replays) -> list[str]:
    """Say what is compared of records."""
    if all(record is None for record in data.records_D):
        return []
    return [
        "Distances of records are those of their listed log-probabilities, or of their greedy tokens' "
        "margins where they list none: the mean square over the listed tokens, the emitted one and one "
        "bucket for the rest, in nat². Known transcripts are cut to as many values and tokens, and rounded "
        "to as many decimals. A claim of a format has the greatest p of its configs that were replayed."
    ]


def _of_drawn(data: Replays) -> list[str]:
    """Say what the tests of drawn tokens take for granted."""
    if data.drawn is None:
        return []
    return [
        "Drawn tokens: E is the product, over tokens, of their probability under the other configs (an "
        "average over them) and at most the claim's, after the stated temperature and truncation; p = 1 / "
        "the greatest E so far (Ville), whenever one stops. Uniformity: the randomized probability "
        "integral transform of one answer of each seed, Kolmogorov and Smirnov. Both allow an honest "
        f"producer's kernel to be {KERNEL_KL:g} nat a token from the verifier's, and {SHARE:.1%} of the "
        "tokens to be drawn without truncation. Parameters: the same E, by the claimed config's own rows "
        "under other temperatures and truncations. Seeded tokens: by how much each falls short of the one "
        "that its seed draws here, against known answers."
    ]


def _spread(known: int, evidence: Evidence) -> str:
    """Say how far the level of one calibration set may lie from the nominal one."""
    j = int(evidence.alpha * (known + 1))
    if not j:
        return (
            f"The smallest set has {plural(known, 'known transcript')}: too few for one transcript to be "
            f"refuted at {float(evidence.alpha):.0%}."
        )
    low, high = false_alarm_spread(known, j)
    return (
        f"A level holds on average over calibration sets. With {plural(known, 'known transcript')}, the "
        f"smallest set here, one honest transcript is flagged by an unadjusted test in {j / (known + 1):.2%} "
        f"on average; of one set that rate lies between {low:.2%} and {high:.2%} (95 %)."
    )


def _lacking(data: Replays, evidence: Evidence) -> list[str]:
    """One line about files that lack facts of the class, and what can still be concluded."""
    from qdx.verification.environment_class import compare

    names: list[str] = []
    for d, own in enumerate(data.class_D):
        c = data.configs.index(data.producers[d]) if data.producers[d] in data.configs else 0
        names += compare(own, data.class_C[c]).unstated
    lines = []
    if names:
        lines.append(
            f"A record does not state: {', '.join(dict.fromkeys(names))}. Equal rows still confirm; rows "
            "that differ refute nothing there; distances and text refute against a calibration."
        )
    if any(sampling_of(data, d) is None for d in range(len(data.producers))):
        lines.append("A record that does not state how its tokens were chosen is never confirmed.")
    return lines


def _summary(data: Replays, evidence: Evidence, result: xr.Dataset, at: Sequence[int]) -> Table:
    """A row a claim: its verdict, its rows and tokens, and its tests."""
    # Nobody has rows of records whose tokens were drawn.
    tests: tuple[str, ...] = ("distances", "text")
    if data.drawn is not None:
        tests = ("text", "drawn tokens", "uniformity", "parameters")
        if any(claim is not None and claim.test("distances") for claim in evidence.claims):
            tests = ("distances", *tests)
    rows: list[list[Cell]] = []
    for d, (c, claim) in enumerate(zip(at, evidence.claims, strict=True)):
        row: list[Cell] = [_name(result, d), str(result["verdict"].values[d])]
        if c < 0 or claim is None:
            rows.append([*row, *[DASH] * (4 + len(tests))])
            continue
        rows.append(
            [
                *row,
                *_of_phases(data, d, c),
                part(data.greedy_DCR[d, c].sum(), data.emitted_DR[d].sum()),
                *(_of_test(claim, name) for name in tests),
                probability(float(result["p_test_holm"].values[d])),
            ]
        )
    head = ["claim", "verdict", "decode", "prefill", "greedy", *(f"p {name}" for name in tests), "p Holm"]
    caption = (
        f"Claims at level {float(evidence.alpha):.0%} over all of them: rows that are bit-equal, tokens that "
        "are greedy here, and p of tests; p Holm is over all tests and claims"
    )
    return Table(caption, head, rows, 2)


def _of_phases(data: Replays, d: int, c: int) -> list[str]:
    cells = {
        rows.phase: DASH
        if rows.missing
        else part(rows.content_equal_DCR[d, c].sum(), rows.expected_DCR[d, c].sum())
        for rows in data.phases
    }
    return [cells["decode"], cells.get("prefill", DASH)]


def _of_test(claim: Claim, name: str) -> str:
    test = claim.test(name)
    return DASH if test is None or test.p is None else probability(float(test.p))


def _references(data: Replays, result: xr.Dataset, at: Sequence[int]) -> list[Block]:
    """A row a claimed config and reference."""
    judged = [(d, r) for d in range(len(data.producers)) if at[d] >= 0 for r in range(len(data.references))]
    rows: list[list[Cell]] = [
        [
            _name(result, d),
            data.references[r],
            part(data.decode.content_equal_DCR[d, at[d], r], data.decode.expected_DCR[d, at[d], r]),
            DASH
            if data.prefill is None
            else part(data.prefill.content_equal_DCR[d, at[d], r], data.prefill.expected_DCR[d, at[d], r]),
            part(data.greedy_DCR[d, at[d], r], data.emitted_DR[d, r]),
            int(data.misfit_DCRT[d, at[d], r].sum()),
            float(data.margin_DCR[d, at[d], r]),
        ]
        for d, r in judged[:SHOWN]
    ]
    if not rows:
        return []
    left = len(judged) - len(rows)
    table = Table(
        "Rows that are bit-equal, of those that the verifier has; tokens that are greedy by the verifier's "
        "own rows, of those emitted; tokens that do not fit a bit-equal row; mean margin [nat]",
        ["claim", "reference", "decode", "prefill", "greedy", "misfits", "mean margin"],
        rows,
        2,
        f"… {plural(left, 'more row')}: sweep.nc /analysis/verify" if left > 0 else "",
    )
    return [Details("Reference by reference", [table])]
