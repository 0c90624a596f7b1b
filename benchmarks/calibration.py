"""Level and power of the verdict's tests, with the calibration set redrawn in every trial.

    python benchmarks/calibration.py                          # noise of known laws
    python benchmarks/calibration.py --sweep DIR/sweep.nc     # and noise resampled from a recorded sweep

A trial draws n calibration references of every config and one transcript of every config to judge.
*Level*: how often the true claim is rejected, against ⌊α(n + 1)⌋/(n + 1), which it has exactly when no
scores tie. *Power*: how often a false claim is rejected by tests of that same level:

- nearest: conformal p of D_c − min D_c' (c' ≠ c), D the mean distance to a config's replay;
- distance: conformal p of D_c alone;
- likelihood: conformal p of −ℓ_c (`qdx.analysis.verification.likelihood.likelihood_p`);
- profile: conformal p of the energies to all configs (`…profile.profile_p`), what `verify` uses.

Known laws: four configs as in the first experiment, two checkpoints and two kernels each; one kernel is
noisy; and a stranger, a third kernel of the first checkpoint that is never in the calibration. Rows
differ by an offset a config, run noise (autocorrelated over tokens) on the producer's and on the
verifier's side, and a machine difference; the scale of everything varies from reference to reference
(log-normal). Resampled: a reference of the sweep, a block of consecutive tokens (circular) and two
different repeats, one the producer's and one the verifier's, are drawn anew for each simulated reference.

The exact test comes first. An honest reference mismatches with a rate q that nobody knows, in the judged
run and in the verifier's reruns alike; the test is valid where no rerun mismatches. Its level is the greatest
over q, from the binomial law and from trials at that q.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qdx.analysis.verification.attribution import best
from qdx.analysis.verification.conformal import attainable_level, conformal_p
from qdx.analysis.verification.exact import equality_p
from qdx.analysis.verification.likelihood import (
    Calibration,
    energy,
    likelihood_p,
    log_likelihood,
    row_mean,
    token_misfits,
    ulp_floor,
)
from qdx.analysis.verification.profile import profile_p

LABELS = ("awq", "awq_marlin", "gptq", "gptq_marlin")
METHODS = ("nearest", "distance", "likelihood", "profile")
# draw(generator, references) -> energies (producer, config, reference, token); the configs first, then others
Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass(frozen=True)
class Law:
    """Where the noise comes from."""

    name: str
    labels: tuple[str, ...]
    components: int
    floor: float
    draw: Draw


def known(name: str, tokens: int = 8, components: int = 8) -> Law:
    """Noise of a known law: normal, or Student's t of 3 degrees of freedom (scaled to variance 1)."""
    checkpoint, kernel = np.array([0, 0, 1, 1, 0]), np.arange(5)
    sigma, machine, memory = np.array([0.0, 0.0, 0.6, 0.0, 0.0]), 0.15, 0.5

    def unit(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if name == "normal":
            return generator.standard_normal(shape)
        return generator.standard_t(3, shape) / math.sqrt(3)

    def runs(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Noise of variance 1, first-order autoregressive over tokens (the last axis but one)."""
        noise = unit(generator, shape)
        for t in range(1, tokens):
            noise[..., t, :] = memory * noise[..., t - 1, :] + math.sqrt(1 - memory**2) * noise[..., t, :]
        return noise

    def draw(generator: np.random.Generator, references: int) -> np.ndarray:
        shape = (references, tokens, components)
        offset = 3.0 * generator.standard_normal((2, *shape))[checkpoint]
        offset = offset + 0.3 * generator.standard_normal((5, *shape))[kernel]
        made = offset + sigma[:, None, None, None] * runs(generator, (5, *shape))
        replayed = offset[:4] + sigma[:4, None, None, None] * runs(generator, (5, 4, *shape))
        replayed += machine * unit(generator, (5, 4, *shape))
        scale = generator.lognormal(0, 0.3, (references, 1, 1))
        return energy((made[:, None] - replayed) * scale)

    return Law(f"{name}, {tokens} tokens of {components} components", LABELS, components, 1e-8, draw)


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

    def draw(generator: np.random.Generator, count: int) -> np.ndarray:
        reference = generator.integers(0, references, count)
        first, second = generator.integers(0, repeats, count), generator.integers(1, repeats, count)
        block = (generator.integers(0, positions, count)[:, None] + np.arange(tokens)) % positions
        at = (first[:, None], (first + second)[:, None] % repeats, reference[:, None], block)
        # Advanced indices go first: (reference, token, config, config_b).
        return energies.transpose(1, 3, 4, 5, 0, 2)[at].transpose(2, 3, 0, 1)

    about = (
        f"resampled from {references} references × {positions} tokens × {repeats} repeats, {tokens} tokens"
    )
    return Law(about, labels, components, float(ulp_floor(sketch, dtype).mean()), draw)


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
            p[0, d, c] = conformal_p(excess[d, c, n], excess[c, c, :n])
            p[1, d, c] = conformal_p(distance[d, c, n], distance[c, c, :n])
        p[2, d], p[3, d] = likelihood_p(judged, floor_T, calibration), profile_p(judged, floor_T, calibration)
        misfits = token_misfits(judged, floor_T, calibration)
        loglik[d, :, 0] = log_likelihood(misfits, law.components)
    return p, best(-distance[:, :, n:])[:, 0], best(loglik)[:, 0]


def refuted(rejects_K: np.ndarray, reruns: int, of_judged: float, of_reruns: float) -> float:
    """Chance that no rerun mismatches and as many judged references do as are refuted."""
    judged = len(rejects_K) - 1
    law_K = [math.comb(judged, k) * of_judged**k * (1 - of_judged) ** (judged - k) for k in range(judged + 1)]
    return float((1 - of_reruns) ** reruns * np.dot(law_K, rejects_K))


def exact_test(alpha: float, trials: int, seed: int) -> None:
    """Print level and power of the exact test (`qdx.analysis.verification.exact.equality_p`)."""
    generator = np.random.default_rng(seed)
    shares = (0.05, 0.2, 0.5, 1.0)
    print(f"exact test, α = {alpha:g}, {trials:,} trials; power: by the share of the judged references that")
    print("mismatch under a false claim, when no rerun does")
    heads = "".join(f"{share:9.0%}" for share in shares)
    print("  judged reruns  refuted from   level at the worst q (trials)".ljust(64) + heads)
    for judged, reruns in ((4, 8), (16, 32), (16, 160), (100, 200)):
        rejects_K = np.array([equality_p(k, judged, reruns) for k in range(judged + 1)]) <= alpha
        rates = np.geomspace(1e-4, 0.5, 2000)
        levels = [refuted(rejects_K, reruns, q, q) for q in rates]
        q = float(rates[np.argmax(levels)])
        valid = generator.binomial(reruns, q, trials) == 0
        achieved = float((valid & rejects_K[generator.binomial(judged, q, trials)]).mean())
        least = str(rejects_K.argmax()) if rejects_K.any() else "never"
        said = f"  {judged:6d} {reruns:6d}  {least:>12}   {max(levels):.4f} at {q:.4f} ({achieved:.4f})"
        powers = [refuted(rejects_K, reruns, share, 0.0) for share in shares]
        print(said.ljust(64) + "".join(f"{power:9.3f}" for power in powers))


def run(law: Law, n: int, alpha: float, trials: int, seed: int) -> None:
    """Run the trials of one setting and print level and power."""
    generator = np.random.default_rng(seed)
    started = time.perf_counter()
    configs = len(law.labels)
    rejected, unknown = np.zeros((len(METHODS), configs, configs)), np.zeros(len(METHODS))
    named, strangers, index = np.zeros((2, configs)), 0, np.arange(configs)
    for _ in range(trials):
        p, nearest, likeliest = trial(law, n, generator)
        rejected += p[:, :configs] <= alpha
        unknown += (p[:, configs:] <= alpha).all(-1).sum(-1)
        strangers += p.shape[1] - configs
        named += [nearest[:configs] == index, likeliest[:configs] == index]
    rate, level = rejected / trials, attainable_level(n, alpha)
    error = math.sqrt(max(level * (1 - level), 1e-12) / trials)
    print(f"\n{law.name}; n = {n}, α = {alpha:g}, {trials:,} trials, {time.perf_counter() - started:.0f} s")
    print(f"  level: nominal {alpha:.4f}, attainable {level:.4f} ± {error:.4f} (standard error)")
    print("  " + "achieved".ljust(26) + "".join(m.rjust(12) for m in METHODS))
    for c, label in enumerate(law.labels):
        print("  " + label.ljust(26) + "".join(f"{rate[m, c, c]:12.4f}" for m in range(len(METHODS))))
    print("  " + "power: made by → claimed".ljust(26))
    for d, c in np.ndindex(len(law.labels), len(law.labels)):
        if d != c:
            pair = f"{law.labels[d]} → {law.labels[c]}"
            print("  " + pair.ljust(26) + "".join(f"{rate[m, d, c]:12.4f}" for m in range(len(METHODS))))
    off = ~np.eye(len(law.labels), dtype=bool)
    print(
        "  " + "mean power".ljust(26) + "".join(f"{rate[m][off].mean():12.4f}" for m in range(len(METHODS)))
    )
    if strangers:
        said = "".join(f"{share:12.4f}" for share in unknown / strangers)
        print("  " + "stranger is unknown".ljust(26) + said)
    shares = [
        ", ".join(f"{k} {v / trials:.3f}" for k, v in zip(law.labels, row, strict=True)) for row in named
    ]
    print(f"  forced choice, right: nearest {shares[0]}\n                     likeliest {shares[1]}")


def main() -> None:
    """Parse the options and run every setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--references", type=int, nargs="*", default=[19, 39], help="n at α = 0.05")
    parser.add_argument("--sweep", help="a sweep.nc with sketches and repeats, to resample its noise")
    options = parser.parse_args()
    exact_test(0.05, options.trials, options.seed)
    laws = [known("normal"), known("student")]
    if options.sweep:
        laws.append(resampled(options.sweep))
    for law in laws:
        for n in options.references:
            run(law, n, 0.05, options.trials, options.seed)
        run(law, 99, 0.01, options.trials, options.seed)


if __name__ == "__main__":
    main()
