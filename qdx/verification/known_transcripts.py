"""Known transcripts beside a claim: which sets can be its null, and what it is held against in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

import numpy as np

from qdx.backends.sampling import plain_greedy
from qdx.capture.plan import LEAST_TEMPERATURE
from qdx.document.format import plural
from qdx.statistics import Floats, Ints
from qdx.verification.calibration_size import split
from qdx.verification.environment import record_differs
from qdx.verification.environment_class import MACHINE, TITLES, Match, compare
from qdx.verification.kernel_noise import FACTOR, margin_allowed
from qdx.verification.likelihood import row_mean
from qdx.verification.listed import Comparable, compared
from qdx.verification.listed_tests import ListedTest, Pooled, Silent, explained
from qdx.verification.p_values import pooled_p
from qdx.verification.profile import fit_profile
from qdx.verification.replays import Replays
from qdx.verification.units import greatest_of_units, least_of_units


@dataclass(frozen=True)
class Calibrated:
    """One set of known transcripts beside one claim.

    Attributes
    ----------
    data : Replays
    label : str
        The claimed config, which both its producers and its verifier have.
    made : Match
        The producer's class against that of these transcripts.
    dropped : list of int
        References of this set that are judged too, or share a unit with one: they count for nothing here.
    records : Comparable or str
        Of a claim about records, energies of both sides that are made alike, or why there are none; "" of a
        claim about a file that qdx recorded, whose sketches are compared.
    """

    data: Replays
    label: str
    made: Match
    dropped: list[int] = field(default_factory=list)
    records: Comparable | str = ""

    def energies(self, data: Replays) -> tuple[Replays, Replays]:
        """The judged transcripts and these, with energies that can be compared."""
        return (
            (self.records.judged, self.records.known)
            if isinstance(self.records, Comparable)
            else (data, self.data)
        )

    @property
    def machine(self) -> str:
        """Return what the transcripts were made on, in a few words."""
        facts = self.data.class_D[self.data.producers.index(self.label)]
        names = [name for name in (*MACHINE, "backend_version", "torch_version") if facts.get(name)]
        said = ", ".join(facts[n] if n == "gpu or cpu" else f"{TITLES[n]} {facts[n]}" for n in names)
        return said or "a machine that they do not state"


def calibrated(data: Replays, known: Sequence[Replays], d: int, c: int) -> list[Calibrated]:
    """Sets of known transcripts that can be the null of this claim."""
    label, found = data.configs[c], []
    for one in known:
        if label not in one.producers or label not in one.configs:
            continue
        replayed = compare(one.class_C[one.configs.index(label)], data.class_C[c])
        made = compare(data.class_D[d], one.class_D[one.producers.index(label)])
        if replayed.differs or made.differs:
            continue
        records = (one.record_D[one.producers.index(label)], one.record_C[one.configs.index(label)])
        if any(record_differs(record, data.record_C[c]) for record in records):
            continue  # known transcripts of other weights or kernels under the same label
        judged = set(data.reference_keys)
        dropped = [i for i, key in enumerate(one.reference_keys) if key in judged]
        alike = compared(data, one, d) if data.records_D[d] is not None else ""
        found.append(Calibrated(one, label, made, dropped, alike))
    return found


def why_one_value(sets: Sequence[Calibrated]) -> str:
    """Say which fact the producer does not state, and of which the known transcripts have one value only.

    Where an exact config's known transcripts are all alike, any rounding of another library is the greatest
    score: an honest producer would be refuted for what she did not state.
    """
    for title in dict.fromkeys(title for one in sets for title in one.made.unstated):
        names = [name for name, own in TITLES.items() if own == title]
        facts = [one.data.class_D[one.data.producers.index(one.label)] for one in sets]
        if len({own[name] for own in facts for name in names if own.get(name)}) < 2:
            return (
                f"the producer does not state its {title}, and the calibration covers one value of it: give "
                "sets of two or more"
            )
    return ""


def why_one_arithmetic(sets: Sequence[Calibrated]) -> str:
    """Say that no known transcript was made by other arithmetic than the one that replayed it.

    A provider states nothing of its machine, so the null has to hold what an honest other kernel does.
    Transcripts that the replay's own arithmetic made are all greedy here, and any near-tie that another
    kernel decides otherwise would be the greatest score.
    """
    for one in sets:
        d, c = one.data.producers.index(one.label), one.data.configs.index(one.label)
        rows = one.data.decode
        if rows.compared_DCR[d, c].any() and not rows.all_equal_DC[d, c]:
            return ""
        if one.data.listed is not None and not rows.compared_DCR[d, c].any():
            equal_CR, listed_R = one.data.listed.equal_DCR(d)
            # A drawn token is not the greatest one, whatever arithmetic it was drawn by.
            greedy = plain_greedy(one.data.sampling_D[d])
            if (equal_CR[c] < listed_R).any() or (greedy and (one.data.margin_DCRT[d, c] > 0).any()):
                return ""
    return (
        "the provider states nothing of its machine, and the calibration holds no transcript of another "
        "kernel, setting or machine than the replay's (verify.calibration)"
    )


def pooled_test(data: Replays, sets: Sequence[Calibrated], d: int, c: int, name: str) -> Pooled | None:
    judged_SU, null_SN = [], []
    for one in sets:
        of = _profile_scores if name == "distances" else _text_scores if name == "text" else _seed_scores
        scores = of(data, one, d, c)
        if scores is None:
            return None
        judged_R, null_R, kept = scores
        if data.records_D[d] is None:
            judged_U, size_U = greatest_of_units(judged_R, data.units_DR[d])
        else:  # several answers to one prompt count as one
            judged_U, size_U = least_of_units(judged_R, data.units_DR[d]), np.ones(1, np.int64)
        producer = one.data.producers.index(one.label)
        null_U, null_size_U = greatest_of_units(null_R[kept], _renumbered(one.data.units_DR[producer][kept]))
        # A maximum over fewer transcripts is smaller by itself, and would make an honest unit stand out.
        null_U = null_U[null_size_U >= size_U.max(initial=1)]
        judged_U, null_U = judged_U[np.isfinite(judged_U)], null_U[np.isfinite(null_U)]
        if not len(judged_U) or not len(null_U):
            return None
        judged_SU.append(judged_U)
        null_SN.append(null_U)
    count = min(len(null) for null in null_SN)
    null = f"{plural(count, 'known transcript')} of it made on {'; '.join(one.machine for one in sets)}"
    if name == "distances" and isinstance(alike := sets[0].records, Comparable):
        null = f"{alike.what}, first {plural(alike.tokens, 'token')}, against {null}"
        if alike.shorter:
            null += f"; {plural(alike.shorter, 'answer')} with fewer tokens not counted"
    unstated = sorted({title for one in sets for title in one.made.unstated})
    if unstated:
        null += (
            f"; the producer's class is not fully stated ({', '.join(unstated)}), so p is the greatest over "
            f"{plural(len(sets), 'set')} of calibration; not covered: any other"
        )
    return Pooled(name, judged_SU, null_SN, null)


def _renumbered(unit_R: Ints) -> Ints:
    number = {unit: n for n, unit in enumerate(dict.fromkeys(unit_R.tolist()))}
    return np.array([number[unit] for unit in unit_R.tolist()], np.int64)


Scores = tuple[Floats, Floats, list[int]]


def _usable(one: Calibrated) -> tuple[list[int], list[int]]:
    """References of a calibration set that fit centre and scale, and those that test.

    A unit is never divided between the two.
    """
    units_R = one.data.units_DR[one.data.producers.index(one.label)]
    dropped = {int(units_R[i]) for i in one.dropped}
    kept = [i for i in range(len(one.data.references)) if int(units_R[i]) not in dropped]
    first: dict[int, list[int]] = {}
    for i in kept:
        first.setdefault(int(units_R[i]), []).append(i)
    units = list(first.values())
    fit, test = split([min(one.data.reference_keys[i] for i in unit) for unit in units])
    return [i for u in fit for i in units[u]], [i for u in test for i in units[u]]


def _text_scores(data: Replays, one: Calibrated, d: int, c: int) -> Scores | None:
    allowed = 0.0 if data.records_D[d] is None else margin_allowed(data.record_C[c].get("dtype", ""))
    return _token_scores(data, one, d, c, partial(Replays.text_scores, allowed=allowed))


def _seed_scores(data: Replays, one: Calibrated, d: int, c: int) -> Scores | None:
    record = data.records_D[d]
    assert record is not None
    temperature = np.nanmin(record.samplers_RP[:, 0])  # margins are of logits over the temperature
    allowed = margin_allowed(data.record_C[c].get("dtype", "")) / max(float(temperature), LEAST_TEMPERATURE)
    return _token_scores(data, one, d, c, partial(Replays.seed_scores, allowed=allowed))


def _token_scores(
    data: Replays, one: Calibrated, d: int, c: int, score: Callable[..., Floats]
) -> Scores | None:
    """Scores of judged and known tokens; nothing is fitted, and all known ones test."""
    fit, test = _usable(one)
    known = one.data
    producer = _producer(one)
    # The judged texts may be shorter and then count for less, which refutes nobody; the known ones may not.
    most = int(min(known.emitted_DR[producer].max(initial=0), data.emitted_DR[d].max(initial=0)))
    null_R = score(known, most, whole=True)[producer, known.configs.index(one.label)]
    kept = sorted([*fit, *test])
    judged_R = np.where(data.there_DR[d], score(data, most)[d, c], np.nan)
    return (judged_R, null_R, kept) if kept else None


def _profile_scores(data: Replays, one: Calibrated, d: int, c: int) -> Scores | None:
    recorded = data.records_D[d] is not None
    data, known = one.energies(data)
    fit, test = _usable(one)
    if not test:
        return None
    labels = [label for label in data.configs if label in known.configs]
    claim = labels.index(one.label)
    producer = known.producers.index(one.label)
    energy_VN = np.stack([row_mean(known.energy_DCRT[producer, known.configs.index(v)]) for v in labels])
    floor = row_mean(row_mean(known.floor_DRT[producer])[None, fit])[0]
    profile = fit_profile(energy_VN[:, fit], claim, float(floor) if np.isfinite(floor) else 0.0)
    if profile is None:
        return None
    judged_VR = np.stack([row_mean(data.energy_DCRT[d, data.configs.index(v)]) for v in labels])
    judged_VR[:, ~data.there_DR[d]] = np.nan
    factor = FACTOR if recorded else 0.0
    return profile.score(judged_VR, factor), profile.score(energy_VN), test


def gap_p(data: Replays, one: Calibrated, d: int, c: int) -> Fraction | None:
    """P of how much nearer another config's replay lies than the claimed one's; not in the list of tests.

    Of a transcript it is the greatest x_c − x_v over the other configs v: a likelihood ratio.
    """
    (data, known), (fit, test) = one.energies(data), _usable(one)
    labels = [label for label in data.configs if label in known.configs]
    claim, producer = labels.index(one.label), known.producers.index(one.label)
    if len(labels) < 2 or not test:
        return None
    floor = row_mean(row_mean(known.floor_DRT[producer])[None, fit])[0]

    def gaps(energy_VR: Floats) -> Floats:
        least = floor if np.isfinite(floor) else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            x_VR = np.log(np.maximum(energy_VR, least))
            gap_R = (x_VR[claim] - np.delete(x_VR, claim, 0)).max(0)
        return np.asarray(np.where(energy_VR[claim] <= least, np.minimum(gap_R, 0.0), gap_R))

    judged = gaps(np.stack([row_mean(data.energy_DCRT[d, data.configs.index(v)]) for v in labels]))
    judged[~data.there_DR[d]] = np.nan
    null = gaps(np.stack([row_mean(known.energy_DCRT[producer, known.configs.index(v)]) for v in labels]))
    return pooled_p(judged, null[sorted([*fit, *test])])


def _producer(one: Calibrated) -> int:
    return one.data.producers.index(one.label)


def seeded_test(data: Replays, sets: Sequence[Calibrated], d: int, c: int, start: str) -> ListedTest | str:
    """The test of margins after the noise of the seeds; else why there is none."""
    record = data.records_D[d]
    assert record is not None
    if not record.noise:
        return "nobody says how the provider's engine makes noise of a seed (prompts.noise)"
    if data.seeded_DCRT is None or not np.isfinite(data.seeded_DCRT[d, c][data.there_DR[d]]).any():
        return "no answer states a seed"
    sets = [one for one in sets if one.data.seeded_DCRT is not None and one.data.records_D[_producer(one)]]
    if not sets:
        return (
            "no calibration: known answers that another kernel, setting or machine drew with seeds say by "
            "how much an honest token falls short here (verify.calibration)"
        )
    if start:
        return start
    stated = {tuple(row) for row in record.samplers_RP[data.there_DR[d]].tolist()}
    for one in sets:
        other = one.data.records_D[_producer(one)]
        assert other is not None
        if {tuple(row) for row in other.samplers_RP[one.data.there_DR[_producer(one)]].tolist()} != stated:
            return (
                "known and judged answers were sampled otherwise, and kernels move more tokens at a low "
                "temperature: give known answers of the same temperature, top-k, top-p and min-p"
            )
        known_RT = one.data.seeded_DCRT
        assert known_RT is not None
        if not (known_RT[_producer(one), one.data.configs.index(one.label)] > 0).any():
            return (
                "every known answer is the one that its seed draws here, so that nothing shows what another "
                "kernel does: give known answers of another kernel, setting or machine"
            )
    made = pooled_test(data, sets, d, c, "seeded tokens")
    if made is None:
        return "the calibration has too few references that are not judged themselves"
    right, chance, total = explained(data, d)
    return made if right > chance else Silent(made, right, chance, total)


def floor_of(data: Replays, d: int) -> float:
    floor = row_mean(row_mean(data.floor_DRT[d])[None])[0]
    return float(floor) if np.isfinite(floor) else 0.0
