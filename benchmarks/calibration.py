"""Level and power of every rule that a verdict rests on, with the calibration set redrawn in every trial.

    python benchmarks/calibration.py                          # noise of known laws
    python benchmarks/calibration.py --sweep DIR/sweep.nc     # and noise resampled from a recorded sweep

A trial draws calibration references and transcripts to judge, of which a share is false: made by another
config than the claimed one. *Level*: how often an honest producer is refuted (0 % false). *Power*: how often
a producer is refuted that has so many false transcripts. Power is of a fifth of the trials.

Sections, in this order:

- equality: Fisher's test of rows that are not bit-equal, at the worst rate of honest mismatches;
- pooled tests (`qdx.verification.p_values`) of profile scores (`…profile.fit_profile`) against
  calibration, beside the old rule 2 · mean p, and the lower bound of the false share by closed testing;
- the same against the verifier's own repeats, without any calibration;
- one transcript: conformal p of four scores (nearest: D_c − min D_c'; distance: D_c alone; likelihood:
  `likelihood_p`; profile: `profile_p`), and which config is named without any level;
- a kernel that is bit-equal in some references, with the profile's sides and without;
- a drift between calibration and judged transcripts, which no rule here survives;
- single calibration sets: a level holds on average over them.

Known laws: four configs as in the first experiment, two checkpoints and two kernels each; one kernel is
noisy; and a stranger, a third kernel of the first checkpoint that is never in the calibration. Rows differ by
an offset a config, run noise (autocorrelated over tokens) on the producer's and on the verifier's side, and a
machine difference; the scale of everything varies from reference to reference (log-normal). The run noise is
normal, heavy-tailed (Student's t of 3 degrees of freedom), discrete (Poisson) or bimodal (a run in nine has
none, on one machine, so that it is bit-equal to a replay that has none). Resampled: a reference of the sweep,
a block of consecutive tokens (circular) and different repeats are drawn anew for each simulated reference.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from qdx.verification import calibration_size
from qdx.verification import p_values as pv
from qdx.verification.judge import best
from qdx.verification.likelihood import (
    Calibration,
    energy,
    likelihood_p,
    log_likelihood,
    row_mean,
    token_misfits,
    ulp_floor,
)
from qdx.verification.profile import fit_profile, profile_fractions, profile_p, symmetric_scores

LABELS = ("awq", "awq_marlin", "gptq", "gptq_marlin")
METHODS = ("nearest", "distance", "likelihood", "profile")
NOISES = ("normal", "heavy-tailed", "discrete", "bimodal")
SHARES = (0.0, 0.1, 0.25, 0.5, 0.9, 1.0)
SETTINGS = ((39, Fraction(1, 20)), (99, Fraction(1, 100)))  # calibration left after the split, level
JUDGED = 20
# draw(generator, references) -> energies (producer, config, reference, token); the configs first, then others
Draw = Callable[[np.random.Generator, int], np.ndarray]
# members(generator, references, members, claimed, maker, false) -> energies between and beside, see `within`
Members = Callable[[np.random.Generator, int, int, int, int, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Law:
    """Where the noise comes from.

    Attributes
    ----------
    pairs : tuple of (maker, claimed)
        False claims by label that the pooled tests are shown on; the first claimed one is noisy.
    most : int
        Members of a reference that there are at most.
    """

    name: str
    labels: tuple[str, ...]
    components: int
    floor: float
    draw: Draw
    members: Members
    pairs: tuple[tuple[str, str], ...]
    most: int


def known(name: str, tokens: int = 8, components: int = 8) -> Law:
    """Noise of a known law."""
    checkpoint, kernel = np.array([0, 0, 1, 1, 0]), np.arange(5)
    sigma, memory = np.array([0.0, 0.0, 0.6, 0.0, 0.0]), 0.5
    machine = 0.0 if name == "bimodal" else 0.15

    def unit(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if name == "heavy-tailed":
            return generator.standard_t(3, shape) / math.sqrt(3)
        if name == "discrete":
            return generator.poisson(1.0, shape) - 1.0
        noise = generator.standard_normal(shape)
        return noise * (generator.random((*shape[:-2], 1, 1)) > 1 / 9) if name == "bimodal" else noise

    def runs(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Noise of variance 1, first-order autoregressive over tokens (the last axis but one)."""
        noise = unit(generator, shape)
        for t in range(1, tokens):
            noise[..., t, :] = memory * noise[..., t - 1, :] + math.sqrt(1 - memory**2) * noise[..., t, :]
        return noise

    def offsets(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        offset = 3.0 * generator.standard_normal((2, *shape))[checkpoint]
        return offset + 0.3 * generator.standard_normal((5, *shape))[kernel]

    def draw(generator: np.random.Generator, references: int) -> np.ndarray:
        shape = (references, tokens, components)
        offset = offsets(generator, shape)
        made = offset + sigma[:, None, None, None] * runs(generator, (5, *shape))
        replayed = offset[:4] + sigma[:4, None, None, None] * runs(generator, (5, 4, *shape))
        replayed += machine * unit(generator, (5, 4, *shape))
        scale = generator.lognormal(0, 0.3, (references, 1, 1))
        return energy((made[:, None] - replayed) * scale)

    def members(
        generator: np.random.Generator, references: int, count: int, claimed: int, maker: int, false: int
    ) -> tuple[np.ndarray, np.ndarray]:
        shape = (references, tokens, components)
        offset = offsets(generator, shape)
        rows = offset[claimed] + sigma[claimed] * runs(generator, (count, *shape))
        rows[0, :false] = offset[maker, :false] + sigma[maker] * runs(generator, (false, *shape[1:]))
        others = [v for v in range(4) if v != claimed]
        beside = offset[others] + sigma[others, None, None, None] * runs(generator, (3, *shape))
        scale = generator.lognormal(0, 0.3, (references, 1, 1))
        between = row_mean(energy((rows[:, None] - rows) * scale))
        against = row_mean(energy((rows[:, None] - beside) * scale))
        return np.moveaxis(between, -1, 0), np.moveaxis(against, -1, 0)

    pairs = (("gptq_marlin", "gptq"), ("awq", "awq_marlin"))
    about = f"{name}, {tokens} tokens of {components} components"
    return Law(about, LABELS, components, 1e-14 if not machine else 1e-8, draw, members, pairs, 4)


def resampled(path: str, tokens: int = 8) -> Law:
    """Noise of the repeats in a sweep's replay."""
    import qdx

    with qdx.open(path) as tree:
        rows = tree["replay"].to_dataset()
        sketch = rows["sketch"].transpose("config", "repeat", "reference", "position", "component").values
        if not rows["captured"].values.all() or sketch.shape[1] < 2 or not np.isfinite(sketch).all():
            raise SystemExit(f"{path}: the replay must have every row, and at least two repeats")
        labels = tuple(str(label) for label in rows["config"].values)
        dtype = str(rows["dtype"].values[0])
    configs, repeats, references, positions, components = sketch.shape
    # Energies of any two runs at every row, once: (config, repeat, config_b, repeat_b, reference, position).
    energies = np.empty((configs, repeats, configs, repeats, references, positions))
    for a, i, b, j in np.ndindex(configs, repeats, configs, repeats):
        energies[a, i, b, j] = energy(sketch[a, i].astype(float) - sketch[b, j])

    def blocks(generator: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        reference = generator.integers(0, references, count)
        return reference, (generator.integers(0, positions, count)[:, None] + np.arange(tokens)) % positions

    def draw(generator: np.random.Generator, count: int) -> np.ndarray:
        reference, block = blocks(generator, count)
        first, second = generator.integers(0, repeats, count), generator.integers(1, repeats, count)
        at = (first[:, None], (first + second)[:, None] % repeats, reference[:, None], block)
        # Advanced indices go first: (reference, token, config, config_b).
        return energies.transpose(1, 3, 4, 5, 0, 2)[at].transpose(2, 3, 0, 1)

    def members(
        generator: np.random.Generator, count: int, members: int, claimed: int, maker: int, false: int
    ) -> tuple[np.ndarray, np.ndarray]:
        reference, block = blocks(generator, count)
        order = np.array([generator.permutation(repeats)[:members] for _ in range(count)])
        config = np.full((count, members), claimed)
        config[:false, 0] = maker
        at = reference[:, None, None, None], block[:, None, None, :]
        run, other = (config[:, :, None, None], order[:, :, None, None]), order[:, None, :, None]
        between = energies[*run, config[:, None, :, None], other, *at].mean(-1)
        others = np.array([v for v in range(configs) if v != claimed])
        replay = generator.integers(0, repeats, (count, 1, len(others), 1))
        return between, energies[*run, others[None, None, :, None], replay, *at].mean(-1)

    about = f"resampled ({references} references × {positions} tokens × {repeats} repeats), {tokens} tokens"
    exact = [c for c in range(configs) if not energies[c, 0, c, 1].any()]
    noisy = [c for c in range(configs) if c not in exact]
    near = energies[:, 0, :, 0].mean((-1, -2))
    np.fill_diagonal(near, np.inf)
    pairs = tuple((labels[int(near[c].argmin())], labels[c]) for c in (*noisy[:1], *exact[:1]))
    floor = float(ulp_floor(sketch, dtype).mean())
    return Law(about, labels, components, floor, draw, members, pairs, repeats)


# Fisher's test of equality


def refuted(rejects_K: np.ndarray, reruns: int, of_judged: float, of_reruns: float) -> float:
    """Chance that no rerun mismatches and as many judged references do as are refuted."""
    judged = len(rejects_K) - 1
    law_K = [math.comb(judged, k) * of_judged**k * (1 - of_judged) ** (judged - k) for k in range(judged + 1)]
    return float((1 - of_reruns) ** reruns * np.dot(law_K, rejects_K))


def equality(alpha: Fraction, trials: int, seed: int) -> None:
    """Print level and power of `p_values.fisher_equality_p`."""
    generator = np.random.default_rng(seed)
    print(
        f"\nequality, α = {float(alpha):g}, {trials:,} trials; power: by the share of the judged references"
    )
    print("that mismatch under a false claim, when no rerun does")
    print(
        "  judged reruns  refuted from   level at the worst q (trials)".ljust(64)
        + "".join(f"{share:9.0%}" for share in SHARES[1:])
    )
    for judged, reruns in ((4, 8), (20, 40), (20, 160), (100, 200)):
        p_K = [pv.fisher_equality_p(k, judged, reruns) for k in range(judged + 1)]
        rejects_K = np.array([p is not None and p <= alpha for p in p_K])
        rates = np.geomspace(1e-4, 0.5, 2000)
        levels = [refuted(rejects_K, reruns, q, q) for q in rates]
        q = float(rates[np.argmax(levels)])
        valid = generator.binomial(reruns, q, trials) == 0
        achieved = float((valid & rejects_K[generator.binomial(judged, q, trials)]).mean())
        least = str(rejects_K.argmax()) if rejects_K.any() else "never"
        said = f"  {judged:6d} {reruns:6d}  {least:>12}   {max(levels):.4f} at {q:.4f} ({achieved:.4f})"
        # A fixed number of false transcripts, each of which mismatches.
        powers = [float(rejects_K[round(share * judged)]) for share in SHARES[1:]]
        print(said.ljust(64) + "".join(f"{power:9.3f}" for power in powers))


# Several transcripts together


def two_mean(judged_M: np.ndarray, null_N: np.ndarray) -> Fraction:
    """The rule before: min(1, 2 · mean) of the conformal p, valid however they depend on each other."""
    p_M = [pv.conformal_p(float(score), null_N) or Fraction(1) for score in judged_M]
    return min(Fraction(1), 2 * sum(p_M, Fraction(0)) / len(p_M))


POOLED: Sequence[tuple[str, Callable[[np.ndarray, np.ndarray], Fraction | None]]] = (
    ("2 · mean p (old)", two_mean),
    ("tail count", pv.tail_count_p),
    ("rank sum", pv.rank_sum_p),
    ("pooled", pv.pooled_p),
)


def table(name: str, values: Sequence[float], digits: int = 3) -> None:
    """Print a row of numbers."""
    print("    " + name.ljust(34) + "".join(f"{value:9.{digits}f}" for value in values))


def pooled(law: Law, trials: int, seed: int) -> None:
    """Print level and power of the pooled tests against calibration."""
    totals = [calibration_size.calibration_total(null) for null, _ in SETTINGS]
    for maker, label in law.pairs:
        d, c = law.labels.index(maker), law.labels.index(label)
        generator = np.random.default_rng(seed)
        shape = (len(SETTINGS), len(SHARES))
        rejected, bound, over = np.zeros((len(POOLED), *shape)), np.zeros(shape), np.zeros(shape)
        for i in range(trials):
            mean = row_mean(law.draw(generator, max(totals) + JUDGED))  # producer, config, reference
            for k, (null, alpha) in enumerate(SETTINGS):
                fit = totals[k] - null
                profile = fit_profile(mean[c, :, :fit], c, law.floor)
                assert profile is not None
                null_N = profile.score(mean[c, :, fit : totals[k]])
                honest_M, false_M = (profile.score(mean[x, :, -JUDGED:]) for x in (c, d))
                for s, share in enumerate(SHARES if i < trials // 5 else SHARES[:1]):
                    false = round(share * JUDGED)
                    judged_M = np.r_[false_M[:false], honest_M[false:]]
                    for t, (_, test) in enumerate(POOLED):
                        p = test(judged_M, null_N)
                        rejected[t, k, s] += p is not None and p <= alpha
                    least = pv.false_share(judged_M, null_N, alpha)
                    bound[k, s] += least
                    over[k, s] += least > false
        count = np.array([trials, *[trials // 5] * (len(SHARES) - 1)])
        for k, (null, alpha) in enumerate(SETTINGS):
            print(
                f"\npooled, {law.name}: claimed {label}, false ones made by {maker}\n"
                f"  {JUDGED} judged, n = {null} of {totals[k]} after the split, α = {float(alpha):g}, "
                f"{trials:,} trials (standard error of the level {math.sqrt(float(alpha) / trials):.4f})"
            )
            print("    " + "false".ljust(34) + "".join(f"{share:9.0%}" for share in SHARES))
            for (name, _), row in zip(POOLED, rejected[:, k] / count, strict=True):
                table(name, row)
            table(f"false at least (mean, of {JUDGED})", bound[k] / count, 1)
            table("… more than there are", over[k] / count)


def within(law: Law, references: int, trials: int, seed: int) -> None:
    """Print level and power of the test against the verifier's own repeats."""
    maker, label = law.pairs[0]
    d, c = law.labels.index(maker), law.labels.index(label)
    print(f"\nown repeats, {law.name}: claimed {label}, false ones made by {maker}")
    print(f"  {references} references, {trials:,} trials, no calibration")
    print("    " + "false".ljust(34) + "".join(f"{share:9.0%}" for share in SHARES))
    for members in range(2, law.most + 1):
        generator = np.random.default_rng(seed)
        found, bound, over = (np.zeros((len(SETTINGS), len(SHARES))) for _ in range(3))
        for s, share in enumerate(SHARES):
            false, count = round(share * references), trials // 5 if s else trials
            for _ in range(count):
                score = symmetric_scores(*law.members(generator, references, members, c, d, false), law.floor)
                p = pv.within_reference_p(score)
                for k, (_, alpha) in enumerate(SETTINGS):
                    least = pv.within_reference_false_share(score, alpha)
                    found[k, s] += (p is not None and p <= alpha) / count
                    bound[k, s] += least / count
                    over[k, s] += (least > false) / count
        for k, (_, alpha) in enumerate(SETTINGS):
            noun = "repeat" if members == 2 else "repeats"
            table(f"{members - 1} own {noun}, α = {float(alpha):g}: refuted", found[k])
            table(f"false at least (mean, of {references})", bound[k], 1)
            table("… more than there are", over[k])


# One transcript


def trial(law: Law, n: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One trial.

    Returns
    -------
    p : array (method, producer, claimed config)
    nearest, likeliest : array (producer,)
        The config that is named without any level.
    """
    drawn = law.draw(generator, n + 1)
    producers, configs, tokens = len(drawn), len(law.labels), drawn.shape[-1]
    floors = np.full((configs, n, tokens), law.floor)
    calibration = Calibration(drawn[:configs, :, :n], floors, law.components)
    distance = row_mean(np.sqrt(drawn * law.components))  # config, config_b, reference
    excess = np.stack([distance[:, c] - np.delete(distance, c, 1).min(1) for c in range(configs)], 1)
    p = np.empty((len(METHODS), producers, configs))
    loglik = np.empty((producers, configs, 1))
    for d in range(producers):
        judged, floor_T = drawn[d, :, n], np.full(tokens, law.floor)
        for c in range(configs):
            p[0, d, c] = pv.conformal_p(excess[d, c, n], excess[c, c, :n])
            p[1, d, c] = pv.conformal_p(distance[d, c, n], distance[c, c, :n])
        p[2, d], p[3, d] = likelihood_p(judged, floor_T, calibration), profile_p(judged, floor_T, calibration)
        misfits = token_misfits(judged, floor_T, calibration)
        loglik[d, :, 0] = log_likelihood(misfits, law.components)
    return p, best(-distance[:, :, n:])[:, 0], best(loglik)[:, 0]


def single(law: Law, n: int, alpha: Fraction, trials: int, seed: int) -> None:
    """Print level and power of single transcripts by four scores."""
    generator = np.random.default_rng(seed)
    started = time.perf_counter()
    configs = len(law.labels)
    rejected, unknown = np.zeros((len(METHODS), configs, configs)), np.zeros(len(METHODS))
    named, strangers, index = np.zeros((2, configs)), 0, np.arange(configs)
    for _ in range(trials):
        p, nearest, likeliest = trial(law, n, generator)
        rejects = p <= float(alpha) + 1e-12
        rejected += rejects[:, :configs]
        unknown += rejects[:, configs:].all(-1).sum(-1)
        strangers += p.shape[1] - configs
        named += [nearest[:configs] == index, likeliest[:configs] == index]
    rate, level = rejected / trials, math.floor(alpha * (n + 1)) / (n + 1)
    error = math.sqrt(max(level * (1 - level), 1e-12) / trials)
    print(f"\none transcript, {law.name}; n = {n}, α = {float(alpha):g}, {trials:,} trials", end="")
    print(f", {time.perf_counter() - started:.0f} s")
    print(f"  level: nominal {float(alpha):.4f}, attainable {level:.4f} ± {error:.4f} (standard error)")
    print("  " + "achieved".ljust(26) + "".join(m.rjust(12) for m in METHODS))
    for c, label in enumerate(law.labels):
        print("  " + label.ljust(26) + "".join(f"{rate[m, c, c]:12.4f}" for m in range(len(METHODS))))
    print("  " + "power: made by → claimed, where a method is under 1")
    off = ~np.eye(configs, dtype=bool)
    for d, c in np.argwhere(off & (rate.min(0) < 1)):
        pair = f"{law.labels[d]} → {law.labels[c]}"
        print("  " + pair.ljust(26) + "".join(f"{rate[m, d, c]:12.4f}" for m in range(len(METHODS))))
    means = "".join(f"{rate[m][off].mean():12.4f}" for m in range(len(METHODS)))
    print("  " + "mean of all pairs".ljust(26) + means)
    if strangers:
        said = "".join(f"{share:12.4f}" for share in unknown / strangers)
        print("  " + "stranger is unknown".ljust(26) + said)
    shares = [
        ", ".join(f"{k} {v / trials:.3f}" for k, v in zip(law.labels, row, strict=True)) for row in named
    ]
    print(f"  forced choice, right: nearest {shares[0]}\n                     likeliest {shares[1]}")


# What a kernel that is sometimes bit-equal, a drift, and a single calibration set do


def two_sided_p(known_VN: np.ndarray, judged_V: np.ndarray, floor: float) -> float:
    """The profile before: nearer to the claimed config (the first one) than usual counted as a misfit."""
    x_VM = np.log(np.maximum(np.c_[known_VN, judged_V], floor))
    x_EM = np.concatenate([x_VM, x_VM[:1] - x_VM[1:]])
    deviation = np.abs(x_EM - np.median(x_EM, -1, keepdims=True))
    score_M = (deviation / (np.median(deviation, -1, keepdims=True) + 1e-6)).max(0)
    return float((score_M >= score_M[-1] * (1 - 1e-9)).mean())


def bit_equal(trials: int, seed: int) -> None:
    """Print what a claimed kernel that is bit-equal in some references does to the profile."""
    alpha, n, floor = Fraction(1, 20), 99, 1e-14
    print(f"\na claimed kernel that is bit-equal to its own replay in some references; n = {n}, α = 0.05,")
    print(f"one transcript, {trials:,} trials; false ones are another kernel's of the same checkpoint")
    print("    " + "bit-equal".ljust(34) + "".join(f"{share:9.0%}" for share in (0, 0.11, 0.3, 0.6, 1)))
    rows = np.zeros((4, 5))
    for s, share in enumerate((0.0, 0.11, 0.3, 0.6, 1.0)):
        generator = np.random.default_rng(seed)
        for _ in range(trials):
            scale = generator.lognormal(0, 0.5, n + 2)
            claimed, other, far = (
                generator.lognormal(offset, 0.4, n + 2) * scale for offset in (-8.0, -6.0, 2.0)
            )
            claimed[generator.random(n + 2) < share] = 0.0
            claimed[-1], other[-1] = other[-1], generator.lognormal(-9.0, 0.4) * scale[-1]  # the false one
            mean = np.stack([claimed, other, far])
            energies = np.full((3, 3, n, 1), np.nan)
            energies[0] = mean[:, :n, None]
            calibration = Calibration(energies, np.full((3, n, 1), floor), 64)
            for k in (0, 1):
                p = profile_fractions(mean[:, n + k, None], np.full(1, floor), calibration)[0]
                rows[k, s] += p is not None and p <= alpha
                rows[2 + k, s] += two_sided_p(mean[:, :n], mean[:, n + k], floor) <= 0.05
    names = ("one-sided: level", "one-sided: power", "both sides (old): level", "both sides (old): power")
    for name, row in zip(names, rows / trials, strict=True):
        table(name, row)


def drift(trials: int, seed: int) -> None:
    """Print how often an honest producer is refuted when all judged scores are shifted."""
    shifts = (0.0, 0.1, 0.25, 0.5, 1.0)
    print(
        f"\na drift: honest producers, all of whose scores are greater than calibration's; {trials:,} trials"
    )
    print("    " + "shift in standard deviations".ljust(34) + "".join(f"{shift:9.2f}" for shift in shifts))
    for null, alpha in SETTINGS:
        for judged in (1, JUDGED, 100):
            generator = np.random.default_rng(seed)
            rate = []
            for shift in shifts:
                p = [
                    pv.pooled_p(generator.normal(shift, 1, judged), generator.normal(0, 1, null))
                    for _ in range(trials)
                ]
                rate.append(float(np.mean([one is not None and one <= alpha for one in p])))
            table(f"n = {null}, α = {float(alpha):g}, {judged} judged", rate)
    print(
        "  No rule here can tell a drift from a false claim: calibrate on the same machine, engine and days."
    )


def single_sets(seed: int, sets: int = 500, fresh: int = 500) -> None:
    """Print the spread of the level over calibration sets."""
    print(f"\nsingle calibration sets: false alarms of {fresh} honest producers for each of {sets} sets")
    print("    " + "".ljust(34) + "     mean     2.5 %   97.5 %      max   by theory")
    generator = np.random.default_rng(seed)
    for null, alpha, judged in ((19, 20, 1), (39, 20, 1), (99, 20, 1), (99, 100, 1), (39, 20, JUDGED)):
        level, rates = Fraction(1, alpha), []
        for _ in range(sets):
            known_N = generator.random(null)
            if judged == 1:
                value, _ = pv.threshold(known_N, level)
                rates.append(float((generator.random(fresh) > value).mean()))
                continue
            top = known_N.max()
            tail = [
                pv.tail_count_p(np.r_[top + 1.0 + np.zeros(k), np.zeros(judged - k)], known_N)
                for k in range(6)
            ]
            least = next(k for k, p in enumerate(tail) if p is not None and 2 * p <= level)
            rates.append(float((generator.binomial(judged, 1 - top, fresh) >= least).mean()))
        low, high = np.quantile(rates, [0.025, 0.975])
        j = int(level * (null + 1))
        ends = pv.false_alarm_spread(null, j) if judged == 1 else None
        theory = f"{ends[0]:.3f}…{ends[1]:.3f}" if ends else "(its tail half)"
        said = f"n = {null}, α = {float(level):g}, {judged} judged"
        print(
            "    "
            + said.ljust(34)
            + f"{np.mean(rates):9.3f}{low:10.3f}{high:9.3f}{max(rates):9.3f}   {theory}"
        )


def main() -> None:
    """Parse the options and run every setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", help="a sweep.nc with sketches and repeats, to resample its noise")
    options = parser.parse_args()
    trials, seed = options.trials, options.seed
    laws = [known(noise) for noise in NOISES]
    if options.sweep:
        laws.append(resampled(options.sweep))
    for _, alpha in SETTINGS:
        equality(alpha, 20 * trials, seed)
    for law in laws:
        pooled(law, trials, seed)
    for law in laws:
        within(law, 24, trials, seed)
    for law in laws:
        single(law, 39, Fraction(1, 20), trials, seed)
        single(law, 99, Fraction(1, 100), trials, seed)
    bit_equal(trials, seed)
    drift(trials // 5, seed)
    single_sets(seed)


if __name__ == "__main__":
    main()
