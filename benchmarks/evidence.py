"""Say what each kind of evidence is worth: tokens until a false claim is refuted, and honest ones that are.

    python benchmarks/evidence.py --folder ROWS            # the demo model: an hour on busy cores
    python benchmarks/evidence.py --folder ROWS --quick    # a small random model: minutes, other figures
    python benchmarks/evidence.py --folder ROWS --csv docs/results/evidence.csv   # for tables and figure

`evidence_rows.py` first computes one text under every config. Each place of it has a row of the claimed
config (the verifier's), of an honest producer, and of a false one. A *redraw* is a record of so many tokens:
places are drawn with replacement, and at each the producer's row gives a token (drawn at the stated
temperature, drawn with noise that the verifier knows, or the greatest), its greatest log-probabilities at 4
decimals, or a sketch. The context of a place is the text's, whatever was drawn before it: each row's test
sees the law that it would see, but no answer goes its own way.

The honest producer ran *another* kernel or card of the claimed weights than the verifier: with the verifier's
own rows an honest record would be refuted as rarely as the level says by construction. Tests that take a
calibration have it from producers that are again others, so that the level is measured. Of several of these
the greatest p counts, as in a verdict. Rows of real cards are not at hand: kernels are numerical models, and
the dense kernels beside the verifier's add partial sums over K that are rounded to float16.

Tests of qdx: e-value and uniformity of drawn tokens (`qdx.verification.sampled`, with their allowance for the
noise of kernels), non-greedy tokens, listed log-probabilities and sketches by profile (`…profile`), each at
1 %. Beside them, written from their papers: Token-DiFR's score (Karvonen et al. 2025: margin under the same
noise, clipped, its mean held against honest ones), RUT (Zhu et al. 2025: the rank of an answer's log-rank
score among 100 own samples, Cramér and von Mises' test) and Model Equality Testing (Gao et al. 2024: MMD with
a Hamming kernel, ten answers a prompt on both sides, permutation). Answers of RUT and MMD are 24 places.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).parent))
import evidence_tables
from evidence_rows import capture
from evidence_tables import EQUAL, HELD, NEEDED, Row

from qdx.capture.densities import Drawn
from qdx.capture.fingerprints import Sketcher
from qdx.verification.kernel_noise import FACTOR, margin_allowed
from qdx.verification.listed import Listed
from qdx.verification.profile import fit_profile
from qdx.verification.sampled import UNIFORM, Alternatives, evidence_against
from qdx.verification.uniforms import uniforms

ALPHA, POWER = 0.01, 0.99
LISTED, KEPT, DIGITS = 20, 20, 4
ANSWER, OWN_SAMPLES, PER_PROMPT = (
    24,
    100,
    10,
)  # places of an answer of RUT and MMD; own samples of RUT; answers
GRID = (
    1,
    2,
    3,
    4,
    6,
    8,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
)
Array = np.ndarray


@dataclass(frozen=True)
class Pair:
    """A false claim: what is claimed and replayed, who is honest, and what was run."""

    title: str
    claim: str
    honest: str
    false: str
    calibration: tuple[str, ...]  # honest producers, others than `honest` and the verifier
    temperature: float = 1.0  # of the false producer; the claim says 1
    known: bool = True  # whether the verifier replays what was run


PAIRS = (
    Pair("none, ran 8-bit", "none", "none split", "w8", ("none split 8",)),
    Pair("none, ran awq", "none", "none split", "awq", ("none split 8",)),
    Pair("awq, ran gptq", "awq", "awq_marlin", "gptq_marlin", ("awq_machete", "awq_marlin 58")),
    Pair("awq_marlin, ran awq", "awq_marlin", "awq_marlin 58", "awq", ("awq_marlin 46",)),
    Pair("T 1.0, ran T 0.7", "none", "none split", "none split", ("none split 8",), temperature=0.7),
    Pair("none, hidden prompt", "none", "none split", "hidden", ("none split 8",), known=False),
)


class Rows:
    """Rows of every config by its label, (place, vocab), and what is made of them once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, Array] = {}
        self._sketches: dict[str, Array] = {}

    def __getitem__(self, label: str) -> Array:
        if label not in self._kept:
            self._kept[label] = np.load(self._folder / f"{label.replace(' ', '_')}.npy", mmap_mode="r")
        return self._kept[label]

    def sketch(self, label: str) -> Array:
        """Sketches, (place, component)."""
        if label not in self._sketches:
            rows = torch.from_numpy(np.asarray(self[label], np.float32))
            self._sketches[label] = Sketcher(rows.shape[1])(rows).numpy().astype(np.float64)
        return self._sketches[label]

    def equal(self, label: str, claim: str) -> float:
        """Share of rows that are bit-equal to those of a claim."""
        return float((self[label] == self[claim]).all(-1).mean())


class Place:
    """The rows of one place."""

    def __init__(self, rows: Rows, place: int, noise: Array) -> None:
        self._rows, self._place, self.noise = rows, place, noise
        self._logs: dict[tuple[str, float], Array] = {}
        self._heads: dict[str, tuple[Array, Array]] = {}
        self._drawn: dict[tuple[str, float], Array] = {}

    def log_p(self, label: str, temperature: float = 1.0) -> Array:
        """Log-probabilities of a config's row."""
        if (label, temperature) not in self._logs:
            scaled = self._rows[label][self._place].astype(np.float32) / np.float32(temperature)
            scaled -= scaled.max()
            self._logs[label, temperature] = scaled - np.log(np.exp(scaled).sum(dtype=np.float64)).astype(
                np.float32
            )
        return self._logs[label, temperature]

    def draw(self, label: str, temperature: float, count: int, generator: np.random.Generator) -> Array:
        """Tokens that a producer draws; pairs that share the producer share them."""
        if (label, temperature) not in self._drawn:
            sums = np.exp(self.log_p(label, temperature)).cumsum(dtype=np.float64)
            at = np.searchsorted(sums, generator.random(count) * sums[-1])
            self._drawn[label, temperature] = at.clip(max=len(sums) - 1)
        return self._drawn[label, temperature]

    def head(self, label: str) -> tuple[Array, Array]:
        """Rank of every token, ties by id, and the probability of all before each rank."""
        if label not in self._heads:
            log_p = self.log_p(label)
            order = np.argsort(-log_p, kind="stable")
            ranks = np.empty(len(order), np.int64)
            ranks[order] = np.arange(len(order))
            sums = np.exp(log_p[order]).cumsum(dtype=np.float64)
            self._heads[label] = ranks, np.concatenate([[0.0], sums]).clip(max=1.0)
        return self._heads[label]

    def listed(self, label: str) -> tuple[Array, Array]:
        """The greatest tokens and their log-probabilities as an API prints them."""
        log_p = self.log_p(label)
        ids = np.argpartition(-log_p, LISTED)[:LISTED]
        ids = ids[np.argsort(-log_p[ids], kind="stable")]
        return ids, np.round(log_p[ids].astype(np.float64), DIGITS)


@dataclass
class Places:
    """What a pair's rows say at every place: P places, R draws at each, `who` a producer.

    `drawn[who]` are the tokens that it drew, as `Drawn` by the claim's rows and by the false config's,
    (place, draw); `seeded[who]` margins of tokens drawn with a known noise, (place, seed); `greedy[who]`
    margins of the greatest, (place, 1); `energy[who]` by kind of evidence, (config, place); `rank[who]`
    log-ranks of the drawn tokens by the claim's rows and `token[who]` their ids.
    """

    drawn: dict[str, list[Drawn]]
    seeded: dict[str, Array]
    greedy: dict[str, Array]
    energy: dict[str, dict[str, Array]]
    rank: dict[str, Array]
    token: dict[str, Array]
    equal: dict[str, float]


@dataclass
class _Made:
    """Lists that grow by a place."""

    own: list[tuple[Array, ...]]
    other: list[Array]
    seeded: list[Array]
    greedy: list[Array]
    listed: list[tuple[Array, ...]]


def places(rows: Rows, pairs: Sequence[Pair], draws: int, seeds: int, seed: int) -> list[Places]:
    """Compute the numbers of all pairs, one place at a time."""
    generator = np.random.default_rng(seed)
    everybody = [_producers(pair) for pair in pairs]
    made = [{w: _Made([], [], [], [], []) for w in who} for who in everybody]
    count, vocab = rows[pairs[0].claim].shape
    for i in range(count):
        noise = -np.log(-np.log(generator.random((seeds, vocab)).astype(np.float32).clip(1e-30, 1 - 1e-7)))
        place = Place(rows, i, noise)
        for pair, who, into in zip(pairs, everybody, made, strict=True):
            for w, (label, temperature) in who.items():
                _one(place, pair, label, temperature, into[w], draws, generator)
    return [_joined(rows, pair, who, into) for pair, who, into in zip(pairs, everybody, made, strict=True)]


def _producers(pair: Pair) -> dict[str, tuple[str, float]]:
    who = {"honest": (pair.honest, 1.0), "false": (pair.false, pair.temperature), "own": (pair.claim, 1.0)}
    return who | {f"calibration {i}": (label, 1.0) for i, label in enumerate(pair.calibration)}


def _one(
    place: Place,
    pair: Pair,
    label: str,
    temperature: float,
    into: _Made,
    draws: int,
    generator: np.random.Generator,
) -> None:
    claimed = place.log_p(pair.claim)
    ids = place.draw(label, temperature, draws, generator)
    ranks, sums = place.head(pair.claim)
    rank, before = ranks[ids], sums[ranks[ids]]
    into.own.append((ids, claimed[ids], before, np.log1p(rank)))
    into.other.append(place.log_p(pair.false, pair.temperature)[ids])
    chosen = (place.log_p(label, temperature) + place.noise).argmax(-1)
    perturbed = claimed + place.noise
    into.seeded.append(perturbed.max(-1) - perturbed[np.arange(len(chosen)), chosen])
    into.greedy.append(claimed.max(keepdims=True) - claimed[place.log_p(label).argmax()])
    top, stated = place.listed(label)
    here = []
    for config in _replayed(pair):
        values = place.log_p(config)[top].astype(np.float64)
        least = float(np.partition(place.log_p(config), -KEPT)[-KEPT])
        here.append(np.where(values >= least, values, np.minimum(stated, least)))
    into.listed.append((stated, np.stack(here)))


def _replayed(pair: Pair) -> list[str]:
    return [pair.claim, pair.false] if pair.known and pair.temperature == 1 else [pair.claim]


def _joined(rows: Rows, pair: Pair, who: dict[str, tuple[str, float]], made: dict[str, _Made]) -> Places:
    drawn: dict[str, list[Drawn]] = {}
    energy, rank, token = ({w: {} for w in who}, {}, {})  # type: ignore[var-annotated]
    for w, into in made.items():
        ids, own, before, ranks = (np.stack(part) for part in zip(*into.own, strict=True))
        ones, place = np.ones(own.shape), np.full(own.shape, 2, np.int8)
        other = np.stack(into.other).astype(np.float64)
        drawn[w] = [
            Drawn(own.astype(np.float64), before, ones, ones, place),
            Drawn(other, np.zeros(own.shape), ones, ones, place),
        ]
        rank[w], token[w] = ranks, ids
        stated, here = (np.stack(part) for part in zip(*into.listed, strict=True))
        at = here.swapaxes(0, 1)
        one = Listed(
            stated[None, None],
            at[None, :, None],
            np.broadcast_to(np.arange(LISTED) == 0, (1, 1, *stated.shape)),
            stated[None, None, :, 0],
            at[None, :, None, :, 0],
            [LISTED],
            [DIGITS],
            np.zeros((1, len(at), 1, len(ids))),
        )
        energy[w] = {f"top-{k}": one.energies(0, k, DIGITS)[0][:, 0] for k in (5, 20)}
        mine = rows.sketch(who[w][0])
        energy[w]["sketch"] = np.stack(
            [((mine - rows.sketch(config)) ** 2).mean(-1) for config in _replayed(pair)]
        )
    margins = [
        {w: np.stack(getattr(into, name)) for w, into in made.items()} for name in ("seeded", "greedy")
    ]
    equal = {w: rows.equal(who[w][0], pair.claim) for w in ("honest", "false")}
    return Places(drawn, margins[0], margins[1], energy, rank, token, equal)


@dataclass(frozen=True)
class Found:
    """Tokens at which a test has its power (0: at none, −1: never), that power, and its level there."""

    tokens: int
    level: float
    most: int
    power: float
    level_most: float  # with the most tokens that were tried


def first_with_power(
    grid: Sequence[int], power: Callable[[int], float], level: Callable[[int], float]
) -> Found:
    """Walk the grid until a test has its power."""
    reached = 0.0
    for count in grid:
        reached = power(count)
        if reached >= POWER:
            return Found(count, level(count), grid[-1], reached, level(grid[-1]))
    last = level(grid[-1])
    return Found(0, last, grid[-1], reached, last)


def of_means(
    nulls: Sequence[Array],
    judged: Array,
    false: Array,
    redraws: int,
    generator: np.random.Generator,
    grid: Sequence[int],
) -> Found:
    """A score that is a mean over tokens, against the same of every calibration."""

    def means(pool: Array, count: int) -> Array:
        flat = pool.ravel()
        return np.asarray(flat[generator.integers(0, len(flat), (redraws, count))].mean(-1))

    def share(pool: Array, count: int) -> float:
        threshold = max(np.sort(means(null, count))[-max(1, int(ALPHA * (redraws + 1)))] for null in nulls)
        return float((means(pool, count) > threshold).mean())

    return first_with_power(grid, lambda n: share(false, n), lambda n: share(judged, n))


def of_profiles(
    nulls: Sequence[Array],
    judged: Array,
    false: Array,
    redraws: int,
    generator: np.random.Generator,
    grid: Sequence[int],
) -> Found:
    """The profile of mean energies, as the verdict scores it; arrays (config, place)."""

    def means(pool: Array, count: int, number: int) -> Array:
        at = generator.integers(0, pool.shape[1], (number, count))
        return np.stack([row[at].mean(-1) for row in pool])

    def share(pool: Array, count: int) -> float:
        records, refuted = means(pool, count, redraws), np.ones(redraws, bool)
        for null in nulls:
            profile = fit_profile(means(null, count, 200), 0, floor)
            assert profile is not None
            scores = np.sort(profile.score(means(null, count, redraws)))
            apart = profile.score(records, FACTOR)
            refuted &= apart > scores[-max(1, int(ALPHA * (redraws + 1)))]
        return float(refuted.mean())

    floor = 10.0 ** (-2 * DIGITS) / 6
    return first_with_power(grid, lambda n: share(false, n), lambda n: share(judged, n))


def _records(both: Sequence[Drawn], at: Array, draw: Array, length: int) -> Drawn:
    """Redraws as answers of so many tokens, (config, answer, token) behind one producer."""
    shape = (-1, min(length, at.size))
    columns = {}
    for one in fields(Drawn):
        values = np.stack([getattr(config, one.name)[at, draw] for config in both])
        columns[one.name] = (
            values.reshape(1, len(both), *shape)
            if at.size % shape[1] == 0
            else values.reshape(1, len(both), 1, -1)
        )
    return Drawn(**columns)


def e_values(
    found: Places, redraws: int, generator: np.random.Generator, grid: Sequence[int], honest_tokens: int
) -> tuple[Found, list[tuple[int, float]]]:
    """Tokens until E reaches 1/α with the wanted power, and how often honest records do, by tokens."""
    claim = Alternatives([0], [1])

    def crossings(who: str, tokens: int) -> Array:
        crossed = np.full(redraws, np.iinfo(np.int64).max)
        places_, draws = found.drawn[who][0].logprob.shape
        for i in range(redraws):
            at, draw = generator.integers(0, places_, tokens), generator.integers(0, draws, tokens)
            one = _records(found.drawn[who], at, draw, 128)
            weighed = evidence_against(one, range(one.logprob.shape[2]), 0, claim, ALPHA)
            assert weighed is not None
            crossed[i] = weighed.crossed if weighed.crossed >= 0 else crossed[i]
        return crossed

    one = found.drawn["false"]
    step = float((one[1].log_density() - one[0].log_bound()).mean())
    gain = step - math.sqrt(2 * 5e-4)
    honest = crossings("honest", honest_tokens)
    held = [(n, float((honest <= n).mean())) for n in (128, 256, 512, 1024, 2048, 4096) if n <= honest_tokens]
    if gain <= 0.002:
        return Found(-1, held[-1][1], grid[-1], 0.0, held[-1][1]), held
    tokens = int(min(grid[-1], 2 ** math.ceil(math.log2(max(16.0, 6 * math.log(1 / ALPHA) / gain)))))
    false = np.sort(crossings("false", tokens))
    at = int(false[math.ceil(POWER * redraws) - 1])
    level = next((share for n, share in held if n >= at), held[-1][1])
    if at > tokens:
        return Found(0, level, tokens, float((false <= tokens).mean()), held[-1][1]), held
    return Found(at, level, tokens, POWER, held[-1][1]), held


def uniformity(found: Places, redraws: int, generator: np.random.Generator, grid: Sequence[int]) -> Found:
    """Kolmogorov and Smirnov's distance, with the allowance of `sampled.uniform_p`."""
    u = {w: uniforms(found.drawn[w][0], 5) for w in ("honest", "false")}

    def share(who: str, count: int) -> float:
        limit = float(stats.kstwo.isf(ALPHA, count)) + UNIFORM
        flat, ecdf, hits = u[who].ravel(), np.arange(1, count + 1) / count, 0
        for _ in range(redraws):
            own = np.sort(flat[generator.integers(0, len(flat), count)])
            hits += max((ecdf - own).max(), (own - ecdf + 1 / count).max()) > limit
        return hits / redraws

    return first_with_power(grid, lambda n: share("false", n), lambda n: share("honest", n))


def rut(found: Places, redraws: int, generator: np.random.Generator, grid: Sequence[int]) -> Found:
    """RUT: ranks of answers' log-rank scores among own samples, Cramér and von Mises' test."""
    blocks = len(found.rank["own"]) // ANSWER

    def answers(who: str, number: int) -> Array:
        ranks = found.rank[who][: blocks * ANSWER].reshape(blocks, ANSWER, -1)
        at = generator.integers(0, ranks.shape[-1], (number, blocks, ANSWER))
        return np.sort(np.take_along_axis(ranks[None], at[..., None], -1)[..., 0].sum(-1), 0)

    own = answers("own", 1000)
    pools = {w: answers(w, 400) for w in ("honest", "false")}
    below = {
        w: np.stack([np.searchsorted(own[:, b], pools[w][:, b]) / len(own) for b in range(blocks)])
        for w in pools
    }

    def statistic(u: Array) -> Array:
        n = u.shape[-1]
        return np.asarray(
            1 / (12 * n) + (((2 * np.arange(1, n + 1) - 1) / (2 * n) - np.sort(u, -1)) ** 2).sum(-1)
        )

    def share(who: str, tokens: int) -> float:
        n = max(1, tokens // ANSWER)
        critical = np.quantile(statistic(generator.random((20_000, n))), 1 - ALPHA)
        shape = (redraws, n)
        chance = below[who][generator.integers(0, blocks, shape), generator.integers(0, 400, shape)]
        u = (generator.binomial(OWN_SAMPLES, chance) + generator.random(shape)) / (OWN_SAMPLES + 1)
        return float((statistic(u) > critical).mean())

    grid = [n for n in grid if n >= ANSWER]
    return first_with_power(grid, lambda n: share("false", n), lambda n: share("honest", n))


def mmd(found: Places, redraws: int, generator: np.random.Generator, grid: Sequence[int]) -> Found:
    """Model Equality Testing: MMD with a Hamming kernel, permuted within prompts."""
    blocks = len(found.token["own"]) // ANSWER
    permutations, both = 199, 2 * PER_PROMPT
    signs = np.full(both, -1.0)
    signs[:PER_PROMPT] = 1.0

    def gram(who: str, block: int) -> Array:
        places_ = slice(block * ANSWER, (block + 1) * ANSWER)
        parts = []
        for w in (who, "own"):
            ids = generator.permuted(found.token[w][places_], axis=1)  # no draw in two answers of a prompt
            parts.append(ids[:, :PER_PROMPT].T)
        all_ = np.concatenate(parts)
        kernel = (all_[:, None] == all_[None]).mean(-1)
        np.fill_diagonal(kernel, 0.0)
        return np.asarray(kernel)

    def share(who: str, tokens: int) -> float:
        prompts, hits = max(1, tokens // (ANSWER * PER_PROMPT)), 0
        for _ in range(redraws):
            total = np.zeros(permutations + 1)
            for block in generator.permutation(blocks)[:prompts]:
                kernel = gram(who, int(block))
                order = generator.permuted(np.tile(signs, (permutations + 1, 1)), axis=1)
                order[0] = signs
                total += ((order @ kernel) * order).sum(-1)
            hits += (total >= total[0] - 1e-12).mean() <= ALPHA
        return hits / redraws

    counts = [n for n in (1, 2, 4, 8, 16) if n <= blocks and n * ANSWER * PER_PROMPT <= grid[-1]]
    grid = [n * ANSWER * PER_PROMPT for n in counts]
    return first_with_power(grid, lambda n: share("false", n), lambda n: share("honest", n))


def evaluate(
    found: Places, pair: Pair, redraws: int, seed: int, grid: Sequence[int], survive: float
) -> tuple[dict[str, Found], list[tuple[int, float]]]:
    """Every kind of evidence on one pair."""
    generator = np.random.default_rng([seed, 9])
    nulls = [f"calibration {i}" for i in range(len(pair.calibration))]
    results: dict[str, Found] = {}
    held: list[tuple[int, float]] = []

    def score(margin: Array) -> Array:  # non-greedy tokens, equal numbers by their margin, as `text_scores`
        margin = np.maximum(margin - margin_allowed("float16"), 0.0)
        return np.asarray((margin > 0) + 1e-3 * margin / (1 + margin))

    def clipped(pools: dict[str, Array]) -> dict[str, Array]:
        limit = np.quantile(np.concatenate([pools[null].ravel() for null in nulls]), 0.999)
        return {w: np.minimum(values, limit) for w, values in pools.items()}

    def means(pools: dict[str, Array]) -> Found:
        of_nulls = [pools[null] for null in nulls]
        return of_means(of_nulls, pools["honest"], pools["false"], redraws, generator, grid)

    if pair.known:
        results["sampled ids: e-value"], held = e_values(found, redraws, generator, grid, 2048)
    results["sampled ids: uniformity"] = uniformity(found, redraws, generator, grid)
    for name in ("e-value", "uniformity"):
        if (ids := results.get(f"sampled ids: {name}")) is not None:
            tokens = math.ceil(ids.tokens / survive) if ids.tokens > 0 else ids.tokens
            results[f"text: {name}"] = replace(ids, tokens=tokens)
    results["greedy ids"] = means({w: score(m) for w, m in found.greedy.items()})
    results["seeded ids"] = means({w: score(m) for w, m in found.seeded.items()})
    for name in ("top-5", "top-20", "sketch"):
        of_nulls = [found.energy[null][name] for null in nulls]
        honest, false = (found.energy[who][name] for who in ("honest", "false"))
        results[name] = of_profiles(of_nulls, honest, false, redraws, generator, grid)
    results["Token-DiFR, greedy"] = means(clipped(found.greedy))
    results["Token-DiFR, seeded"] = means(clipped(found.seeded))
    results["RUT"] = rut(found, redraws, generator, grid)
    results["MMD"] = mmd(found, min(redraws, 200), generator, grid)
    return results, held


def surviving(folder: Path, quick: bool) -> float:
    """Share of the text's tokens that come out again when the text is tokenized."""
    if quick:
        return 1.0
    from transformers import AutoTokenizer

    from qdx.models.checkpoint import resolve

    tokenizer = AutoTokenizer.from_pretrained(
        resolve("demo:smollm2/none", format="none", progress=False).path
    )
    kept = total = 0
    for ids in np.load(folder / "text.npy").tolist():
        again = tokenizer(tokenizer.decode(ids), add_special_tokens=False).input_ids
        ends, at = set(), 0
        for one in again:
            at += len(tokenizer.decode([one]))
            ends.add((at, one))
        at = 0
        for one in ids:
            at += len(tokenizer.decode([one]))
            kept, total = kept + ((at, one) in ends), total + 1
    return kept / total


def rows_of(
    pair: Pair, results: dict[str, Found], held: list[tuple[int, float]], equal: dict[str, float]
) -> list[Row]:
    """What was measured of a pair, as `evidence_tables` takes it."""
    return [
        *(
            Row(NEEDED, pair.title, name, one.tokens, one.most, one.power, one.level, one.level_most)
            for name, one in results.items()
        ),
        *(Row(HELD, pair.title, f"{count:,}", value=share) for count, share in held),
        *(Row(EQUAL, pair.title, who, value=share) for who, share in equal.items()),
    ]


def main() -> None:
    """Parse the options, compute what is missing, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="rows; computed where they are missing")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--answers", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--redraws", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=64, help="tokens drawn at each place, to draw from")
    parser.add_argument("--most", type=int, default=4096, help="tokens of a record, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", default="1,2,3,4,5,6", help="columns of the table, numbered from 1")
    parser.add_argument("--csv", type=Path, help="where the numbers are written, for tables and figure")
    options = parser.parse_args()
    pairs = [PAIRS[int(n) - 1] for n in options.pairs.split(",")]
    used = {label for pair in pairs for label in (pair.claim, pair.honest, pair.false, *pair.calibration)}
    sizes = {"answers": options.answers, "tokens": options.tokens}
    capture(options.folder, quick=options.quick, **sizes, say=_to_stderr, used=used | {"none"})
    rows, grid = Rows(options.folder), [n for n in GRID if n <= options.most]
    survive = surviving(options.folder, options.quick)
    made: list[Row] = []
    start = time.monotonic()
    every = places(rows, pairs, options.draws, 2, options.seed)
    _to_stderr(f"rows: {time.monotonic() - start:.0f} s")
    for pair, found in zip(pairs, every, strict=True):
        start = time.monotonic()
        results, held = evaluate(found, pair, options.redraws, options.seed, grid, survive)
        made += rows_of(pair, results, held, found.equal)
        _to_stderr(f"{pair.title}: {time.monotonic() - start:.0f} s")
        if options.csv:
            evidence_tables.write(made, options.csv)
    model = (
        "a small random model"
        if options.quick
        else "SmolLM2-135M-Instruct (widened), float16, modelled kernels"
    )
    print(
        f"{model}; {len(rows['none']):,} places of a text drawn at T = 1, {options.redraws:,} redraws "
        f"(MMD: {min(200, options.redraws)})"
    )
    print(f"{survive:.1%} of the text's tokens come out again when it is tokenized\n")
    print(evidence_tables.everything(made))


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
