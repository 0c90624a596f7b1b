"""State in sentences what a sweep found: facts only, no threshold decides anything here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from qdx.analysis.section import Section
from qdx.analysis.snr import ZERO_FLOOR
from qdx.analysis.view import PHASE_TITLES, View
from qdx.document.charts import number
from qdx.document.format import plural
from qdx.report.sweep_charts import ratio_text, unit_of
from qdx.statistics import first_difference, mean_of_references

MOST_CLAIMS = 12
LONGEST_PAIR = 48  # characters of two names in the lead


def verdict(view: View, sections: Sequence[Section]) -> list[str]:
    """The lead sentence, then the others.

    Parameters
    ----------
    view : View
    sections : sequence of Section
        ``classes``, ``snr`` and ``noise_floor`` are used where they are; of a verifier's sweep ``verify``.

    Returns
    -------
    list of str
    """
    by_name = {s.name: s for s in sections}
    if "verify" in by_name:
        return _claims(by_name["verify"])
    lead = _counts(view, by_name)
    phase = next((p for p in ("replay", "prefill", "decode") if p in view.phases), "")
    metric = next((m for m in view.metrics if view.is_distance(m)), "")
    said = []
    if metric and len(view.configs) > 1:
        formats, nearest = _distances(view, metric, phase, by_name.get("snr"))
        lead = f"{lead}; {formats}." if formats else f"{lead}."
        said += nearest
    else:
        lead += "."
    return [lead, *said, *_repeats(view, by_name.get("noise_floor")), *_texts(view)]


def _claims(section: Section) -> list[str]:
    """The verdicts on all claims, then one sentence each."""
    result = section.result
    said = []
    for d, producer in enumerate(str(v) for v in result["producer"].values):
        claim, kind, why = (str(result[k].values[d]) for k in ("claim", "verdict", "because"))
        name = producer if claim == producer else f"{producer} as {claim}"
        said.append(f"{name}: {kind}. {why[:1].upper()}{why[1:]}.")
    more = len(said) - MOST_CLAIMS
    rest = [f"… {plural(more, 'further claim')} below."] if more > 0 else []
    return [f"{result.attrs['headline']}.", *said[:MOST_CLAIMS], *rest]


def _counts(view: View, by_name: Mapping[str, Section]) -> str:
    formats = len(dict.fromkeys(view.of_config("format")))
    said = plural(len(view.configs), "config") + (f" of {formats} formats" if formats > 1 else "")
    if len(view.configs) == 1:
        return f"{said}: nothing to compare it with"
    if "classes" not in by_name:
        return said
    ids = by_name["classes"].result["class_id"]
    counts = {p: len(set(ids.sel(phase=p).values.tolist())) for p in view.phases}
    if len(set(counts.values())) == 1:
        count = next(iter(counts.values()))
        where = "every phase" if len(counts) > 1 else PHASE_TITLES[view.phases[0]]
        return f"{said}: {count} kernel {'class' if count == 1 else 'classes'} in {where}"
    return f"{said}: kernel classes " + ", ".join(f"{c} in {p}" for p, c in counts.items())


def _distances(view: View, metric: str, phase: str, snr: Section | None) -> tuple[str, list[str]]:
    means = view.reference_means(metric, phase)
    if not means:
        return "", []
    mean, _ = mean_of_references(means["content"][0])
    formats, unit = view.of_config("format"), unit_of(view, metric)
    index = [p for p in combinations(range(len(view.configs)), 2) if np.isfinite(mean[p])]
    if not index:
        return f"no distance between them was measured in {phase}", []
    within = [p for p in index if formats[p[0]] == formats[p[1]]]
    across = [p for p in index if formats[p[0]] != formats[p[1]]]

    def named(pair: tuple[int, int]) -> str:
        return f"{view.names[pair[0]]} ~ {view.names[pair[1]]}"

    lead = ""
    if within and across:
        far, near = max(within, key=lambda p: mean[p]), min(across, key=lambda p: mean[p])
        least, most = float(mean[near]), float(mean[far])
        # Long names would bury the fact; the sentences below name the pairs.
        names = [f" ({n})" if len(n) <= LONGEST_PAIR else "" for n in (named(near), named(far))]
        start = f"the nearest two configs of different formats{names[0]} are "
        by = f"by mean {metric} over references in {phase}"
        end = f"the furthest two of one format{names[1]}, {by}"
        if most == 0:
            lead = f"{start}{number(least)}{unit} apart, all of one format 0, {by}"
        else:
            lead = f"{start}{number(least / most)}× as far apart as {end}"
    said = []
    for pairs, what in ((within, "of one format"), (across, "of different formats")):
        if not pairs:
            continue
        near = min(pairs, key=lambda p: mean[p])
        said.append(
            f"Nearest {what}: {named(near)}, mean {metric} {number(float(mean[near]))}{unit} in {phase}"
            f"{_snr(snr, metric, phase, near, float(mean[near]))}."
        )
    return lead, said


def _snr(section: Section | None, metric: str, phase: str, pair: tuple[int, int], distance: float) -> str:
    if section is None or "ratio" not in section.result:
        return ""
    result = section.result
    if metric not in result["metric"].values or phase not in result["phase"].values:
        return ""
    at = result.sel(metric=metric, phase=phase)
    text = ratio_text(at, pair, distance)
    if text == "exact":
        return " (both repeat exactly, so all of it is signal)"
    if text == ZERO_FLOOR:
        return " (both noise floors are 0, but rows of repeats differ: no signal to noise)"
    return f" (signal to noise {text})"


def _repeats(view: View, section: Section | None) -> list[str]:
    if section is None or "reruns" not in section.result:
        return []
    result = section.result
    reruns, equal = result["reruns"].values, result["reruns_equal"].values
    if not reruns.any():
        return ["No config was run again, so there is no noise floor."]
    noisy = []
    for c, config in enumerate(view.names):
        phases = [
            f"{p} {reruns[c, i] - equal[c, i]} of {reruns[c, i]}"
            for i, p in enumerate(view.phases)
            if equal[c, i] < reruns[c, i]
        ]
        if phases:
            noisy.append(f"{config} (reruns that differ: {', '.join(phases)})")
    if not noisy:
        return [f"Every rerun of every config is bit-equal ({int(reruns.sum()):,} of {int(reruns.sum()):,})."]
    rest = "" if len(noisy) == len(view.configs) else "; every rerun of the others is bit-equal"
    return [f"Does not repeat bit for bit: {'; '.join(noisy)}{rest}."]


def _texts(view: View) -> list[str]:
    outputs = view.outputs()
    if outputs is None or not outputs.size or len(view.configs) < 2:
        return []
    first = outputs[:, 0]
    pairs = list(combinations(range(len(first)), 2))
    same = sum(bool((first_difference(first[a], first[b]) < 0).all()) for a, b in pairs)
    return [
        f"Free generations have equal tokens in every reference for {same} of {plural(len(pairs), 'pair')}."
    ]
