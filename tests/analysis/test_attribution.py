"""Which of N: error rates that could have come out otherwise, on references that did not calibrate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from qdx.document.blocks import Table
from qdx.verification import attribution, roc
from qdx.verification.held_out import Scores, profile_ranks
from qdx.verification.judge import answers, equal_rows_fit
from qdx.verification.likelihood import Calibration
from qdx.verification.p_values import false_alarm_spread, level, threshold
from qdx.verification.replays import Replays
from qdx.verification.split import (
    beside,
    calibration_references,
    fewest_to_split,
    split,
    threshold_references,
    units_of_all,
)
from qdx.verification.which_blocks import SHOWS_BOTH, SHOWS_TPR, _not_said
from tests.analysis.replaying import lines, trees, words

NOISE = {"awq": 0.0, "marlin": 0.05, "gptq": 1.5}
KEYS = [f"key {i}" for i in range(100)]


def off_diagonal(values: xr.DataArray) -> np.ndarray:
    return values.values[~np.eye(len(values), dtype=bool)]


def change(tree: xr.DataTree, group: str, dataset: xr.Dataset) -> xr.DataTree:
    return xr.DataTree.from_dict({**{k: v.to_dataset() for k, v in tree.children.items()}, group: dataset})


def test_leave_one_out_of_pure_noise_looks_good_and_is_no_headline():
    section = attribution(*trees({"a": 1.0, "b": 1.0}, references=34, tokens=6, alike=True), draws=20)
    # the identity: at most ⌊0.05 · 34⌋ = 1 set leaves the true config out, though nothing was told apart
    assert (section.result["covered"] >= 33).all()
    assert section.result.attrs["headline"].startswith("no error rates")
    assert "is an identity then" in words(section)


def test_pure_noise_gives_a_poor_headline():
    section = attribution(
        *trees({"a": 1.0, "b": 1.0, "c": 1.0}, references=120, tokens=6, alike=True), draws=200
    )
    result = section.result
    assert result["false_refuted_of"].item() == 6 * 60
    assert result["false_refuted"].item() < 0.15 * 6 * 60
    assert result["false_refuted_low"].item() < 0.05 < result["false_refuted_high"].item() < 0.25
    assert (result["rows_needed"] == -1).all()
    assert (off_diagonal(result["tpr_at"].isel(rows=-1)) < 0.35).all()
    inside = (result["auc_low"] <= 0.5) & (result["auc_high"] >= 0.5)
    assert off_diagonal(inside).sum() >= 5
    assert result["likeliest_held"].sum() < 0.6 * 3 * 60
    said = words(section)
    assert f"false claims refuted {result['false_refuted'].item()} of 360" in said
    assert result.attrs["headline"] in said


def test_configs_that_differ_are_told_apart_with_what_so_many_references_show():
    section = attribution(*trees(NOISE, references=100, tokens=6), draws=200)
    result = section.result
    assert {k: result.attrs[k] for k in ("references", "calibration_references", "held_out_references")} == {
        "references": 100,
        "calibration_references": 50,
        "held_out_references": 50,
    }
    assert off_diagonal(result["refuted"]).tolist() == [50] * 6
    assert off_diagonal(result["refuted_low"]) == pytest.approx([0.025 ** (1 / 50)] * 6)
    assert off_diagonal(result["refuted_high"]).tolist() == [1.0] * 6
    assert result["wrong_names"].values.tolist() == [0, 0, 0]
    assert result["wrong_names_high"].values == pytest.approx([1 - 0.025 ** (1 / 50)] * 3)
    # no interval is a point: 25 couples without an inversion
    assert (off_diagonal(result["auc"]) == 1).all()
    assert off_diagonal(result["auc_low"]) == pytest.approx([0.025 ** (1 / 25)] * 6)
    assert result["all_in_set"].item() >= 0.85 * 150
    assert result["false_refuted_low"].item() == pytest.approx(0.025 ** (1 / 50))
    # rows that are all bit-equal are not a false alarm
    assert int(result["refuted"].sel(producer="awq", config="awq")) == 0
    assert max(map(len, lines(section))) <= 110


def test_text_says_what_so_few_references_cannot_show():
    section = attribution(*trees(NOISE, references=100, tokens=4), draws=20)
    said = words(section)
    assert "Split of 100 references by a hash of their token ids: 50 calibrate (10 of them fit" in said
    assert "the other 50 are judged" in said
    assert "Its threshold takes 99 honest scores a config; here are 40" in said
    assert "50 references without an error show at least 94.2%" in said
    assert "299 show one rate of 99%, 368 this and 1% false alarms" in said
    low, high = false_alarm_spread(40, 2)
    assert f"rejects {100 * low:.1f}% to {100 * high:.1f}% (Beta" in said
    assert "right (95 %)" not in said
    assert _not_said(0.01, 99, 368) == []
    assert len(_not_said(0.01, 99, 367)) == 1
    assert 0.05 ** (1 / SHOWS_TPR) >= 0.99 > 0.05 ** (1 / (SHOWS_TPR - 1))
    assert 0.025 ** (1 / SHOWS_BOTH) >= 0.99 > 0.025 ** (1 / (SHOWS_BOTH - 1))


def test_too_few_references_are_not_split_and_show_ranks_only():
    section = attribution(*trees(NOISE, references=34), draws=20)
    said = words(section)
    assert "No error rates: 34 independent units in 34 references" in said
    assert "35 are needed at level 5%" in said
    assert "identity" in said
    assert "refuted" not in section.result
    assert section.result.attrs["held_out_references"] == 0
    assert attribution(*trees(NOISE, references=35), draws=20).result.attrs["held_out_references"] == 8


def test_a_stranger_is_unknown_on_held_out_references():
    noise = {**NOISE, "stranger": 0.3}
    result = attribution(*trees(noise, configs=list(NOISE), references=60), draws=50).result
    counts = result["answers"].sel(producer="stranger")
    assert int(counts.sel(answer="unknown")) >= 28
    assert int(counts.sum()) == 30
    assert int(result["wrong_names"].sel(producer="stranger")) <= 2
    assert int(result["in_set_of"].sel(producer="stranger")) == 0
    for label in NOISE:
        assert int(result["answers"].sel(producer=label, answer=label)) >= 24


def test_a_noisy_config_is_the_likeliest_where_it_is_not_the_nearest():
    # b differs from itself by 3 √2 a component, and from a, which repeats, by less: √(2 + 9).
    producers, verifier = trees({"a": 0.0, "b": 3.0}, references=40)
    result = attribution(producers, verifier, draws=50).result
    few = attribution(*trees({"a": 0.0, "b": 3.0}, references=30), draws=50).result
    assert few["likeliest_right"].values.tolist() == [30, 30]
    assert few["nearest_right"].values.tolist() == [30, 0]
    judged = result.attrs["held_out_references"]
    assert result["likeliest_held"].values.tolist() == [judged, judged]
    assert result["nearest_held"].values.tolist() == [judged, 0]


def test_one_percent_appears_where_the_split_leaves_99_honest_scores():
    producers, verifier = trees({"a": 1.0, "b": 1.0}, references=248, tokens=12)
    result = attribution(producers, verifier, draws=50).result
    assert result.attrs["calibration_references"] == 124
    assert result.attrs["threshold_references"] == 99
    assert result.attrs["curve_level"] == 0.01
    curve = result["tpr_at"].values[0, 1]
    rows = int(result["rows_needed"].values[0, 1])
    assert 1 < rows <= 12
    assert (curve[rows - 1 :] >= 0.99).all()
    assert curve[rows - 2] < 0.99
    assert int(result["rows_low"].values[0, 1]) <= rows
    assert int(result["rows_high"].values[0, 1]) == -1, "124 references cannot show a rate of 99 %"
    spread = [float(result[f"false_alarm_rate_{end}"].sel(config="a", level=0.01)) for end in ("low", "high")]
    assert spread == pytest.approx(stats.beta(1, 99).ppf([0.025, 0.975]))
    rate = result["roc"].sel(producer="a", config="b")
    assert (np.diff(rate.values) >= 0).all()


def test_rows_and_tokens_are_counted_apart():
    producers, verifier = trees(NOISE, references=60, tokens=5)
    result = attribution(producers, verifier, draws=20).result
    assert result.sizes["rows"] == 5
    assert result.sizes["tokens"] == 6  # the first one has no decode row
    assert off_diagonal(result["refuted_by_tokens"]).tolist() == [30] * 6
    replay = verifier["replay"].to_dataset().copy(deep=True)
    replay["target_logit"] = replay["top_logit"].isel(rank=0)  # every token is greedy for every config
    result = attribution(producers, change(verifier, "replay", replay), draws=20).result
    assert off_diagonal(result["refuted_by_tokens"]).tolist() == [0] * 6, "tokens alone show nothing then"
    assert (off_diagonal(result["tokens_greedy"]) == off_diagonal(result["tokens_judged"])).all()
    assert off_diagonal(result["refuted"]).tolist() == [30] * 6
    assert (result["margin_tokens_needed"] == -1).all()


def test_the_split_goes_by_the_token_ids_and_not_by_order_or_name():
    parts = split(KEYS, np.arange(100), 0.05)
    assert [len(x) for x in (parts.fit, parts.honest, parts.judged)] == [10, 40, 50]
    assert sorted([*parts.calibration, *parts.judged]) == list(range(100))
    mixed = np.random.default_rng(0).permutation(100)
    again = split([KEYS[i] for i in mixed], np.arange(100), 0.05)
    assert {KEYS[i] for i in parts.judged} == {KEYS[mixed[i]] for i in again.judged}
    assert {KEYS[i] for i in parts.fit} == {KEYS[mixed[i]] for i in again.fit}
    assert sorted(parts.judged) != list(range(50, 100))
    twice = split([*KEYS, *KEYS[:30]], np.arange(130) % 100, 0.05)
    assert twice.left_out == 30
    assert max([*twice.calibration, *twice.judged]) < 100
    paired = split(KEYS, np.arange(100) // 2, 0.05)  # batches of two: one of each is used
    assert paired.left_out == 50
    assert len({i // 2 for i in [*paired.calibration, *paired.judged]}) == 50


def test_units_of_several_producers_are_joined():
    units = np.array([[0, 0, 1, 2, 3, 4], [0, 1, 1, 2, 3, 3]])
    joined = units_of_all(units)
    assert [sorted(np.flatnonzero(joined == u).tolist()) for u in np.unique(joined)] == [
        [0, 1, 2],
        [3],
        [4, 5],
    ]


def test_references_of_one_batch_are_one_unit():
    producers, verifier = trees(NOISE, references=80, producer_facts={"batch_size": 2})
    section = attribution(producers, verifier, draws=20)
    assert section.result.attrs["left_out_references"] == 40
    assert section.result.attrs["calibration_references"] + section.result.attrs["held_out_references"] == 40
    assert "40 references of one unit with another" in words(section)
    producers, verifier = trees(NOISE, references=80, producer_facts={"batch_size": 20})
    said = words(attribution(producers, verifier, draws=20))
    assert "No error rates: 4 independent units in 80 references" in said


@pytest.mark.parametrize(
    ("alpha", "references"), [(0.05, 35), (0.05, 40), (0.05, 300), (0.01, 132), (0.2, 20)]
)
def test_a_split_leaves_a_threshold_and_eight_judged_references(alpha, references):
    keys = [str(i) for i in range(references)]
    parts = split(keys, np.arange(references), alpha)
    assert len(parts.honest) >= threshold_references(alpha) == math.ceil(1 / level(alpha)) - 1
    assert len(parts.judged) >= 8
    fewest = fewest_to_split(alpha) - 1
    assert fewest < references
    assert split(keys[:fewest], np.arange(fewest), alpha) is None
    assert len(parts.calibration) <= max(calibration_references(0.01), calibration_references(alpha))


def test_a_separate_calibration_lacks_the_judged_prompts_whatever_their_names():
    judged = trees(NOISE, references=20)
    other = trees(NOISE, references=60, seed=1, first_prompt=1000)  # the same names, other prompts
    result = attribution(*judged, draws=20, calibration=other).result
    assert result.attrs["calibration_references"] == 60
    assert result.attrs["held_out_references"] == 20
    assert off_diagonal(result["refuted"]).tolist() == [20] * 6
    overlapping = trees(NOISE, references=60, seed=1, first_prompt=10)  # ref_0 here is the judged ref_10
    result = attribution(*judged, draws=20, calibration=overlapping).result
    assert result.attrs["calibration_references"] == 50
    few = attribution(*judged, draws=20, calibration=trees(NOISE, references=30, seed=1, first_prompt=10))
    assert "20 calibration units of other prompts than the judged" in words(few)
    assert beside(KEYS, np.arange(100), KEYS, np.arange(100), 0.05) is None


def test_transcripts_whose_rows_are_all_equal_are_never_unknown():
    """A kernel that repeats in some references only: the others make bit-equal ones "nearer than usual"."""
    producers, verifier = trees({"a": 1.0, "b": 1.0}, references=100, tokens=8)
    exact = np.arange(0, 100, 9)  # 12 of 100
    replay, own = verifier["replay"].to_dataset().copy(deep=True), producers["decode"].to_dataset()
    at = {"producer": 1, "repeat": 0, "config": 1, "reference": exact}
    for name in ("sketch", "row_hash"):
        rows = own[name].isel(config=1, repeat=0, reference=exact)
        replay[name].transpose("producer", "config", "repeat", "reference", ...)[at] = rows.values
    verifier = change(verifier, "replay", replay)
    section = attribution(producers, verifier, draws=20)
    assert section.result["bit_equal"].values.tolist() == [[0, 0], [0, 12]]
    data = Replays.of(producers, verifier)
    parts = split(data.reference_keys, np.arange(100), 0.05)
    p_DCR = Scores.of(data, data, parts).p_DCR
    there = np.isin(parts.judged, exact)
    assert there.sum() >= 3
    assert (p_DCR[1, 1, there] == 1).all()
    for one in np.array(answers(data.configs, p_DCR, 0.05)[1], object)[there]:
        assert "b" in one.members
    # and a claim of a of these transcripts is still refuted
    assert (p_DCR[1, 0, there] <= 0.05).all()


def test_equal_rows_fit_needs_every_row_that_the_verifier_has():
    p = np.array([[[0.01, 0.01, np.nan]]])
    expected, equal = np.array([[[4, 0, 4]]]), np.array([[[4, 0, 4]]])
    np.testing.assert_array_equal(equal_rows_fit(p, equal, expected), [[[1.0, 0.01, 1.0]]])
    np.testing.assert_array_equal(equal_rows_fit(p, equal - 1, expected)[..., 0], [[0.01]])


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (40, 0.05), (99, 0.01), (100, 0.01)])
def test_a_threshold_has_its_level_on_new_honest_scores(n, alpha):
    generator = np.random.default_rng(n)
    rank = int(level(alpha) * (n + 1))
    rates = []
    for _ in range(3000):
        limit, found = threshold(generator.uniform(size=n), level(alpha))
        assert found == rank
        rates.append(1 - limit)  # share of new uniform scores above it
    spread = stats.beta(rank, n + 1 - rank)
    assert np.mean(rates) == pytest.approx(rank / (n + 1), abs=4 * spread.std() / math.sqrt(3000))
    assert np.mean(rates) <= alpha + 4 * spread.std() / math.sqrt(3000)
    low, high = false_alarm_spread(n, rank)
    assert np.mean([low <= rate <= high for rate in rates]) == pytest.approx(0.95, abs=0.02)


def test_false_claims_found_are_counted_on_other_references_than_the_thresholds():
    generator = np.random.default_rng(1)
    shares = []
    for _ in range(1500):  # nothing to find: the share found is the false-alarm rate
        one = roc.found(generator.normal(size=(99, 2)), generator.normal(size=(30, 2)), 0.01)
        shares.append(one.share_T[0])
    assert np.mean(shares) == pytest.approx(0.01, abs=4 * 0.1 / math.sqrt(30 * 1500))
    few = roc.found(np.zeros((98, 2)), np.ones((30, 2)), 0.01)
    assert np.isnan(few.share_T).all() and few.needed == -1


def test_rows_needed_is_from_where_the_criterion_always_holds():
    false = np.tile(roc.running_mean(np.array([1.0, -2.0, 0.0, 2.0, 1.0])), (400, 1))  # sums 1, −1, −1, 1, 2
    one = roc.found(np.zeros((99, 5)), false, 0.01)
    assert one.share_T.tolist() == [1, 0, 0, 1, 1]
    assert (one.needed, one.low, one.high) == (4, 4, 4)  # 400 references show 99 %
    few = roc.found(np.zeros((99, 5)), false[:100], 0.01)
    assert (few.needed, few.low, few.high) == (4, 4, -1)
    assert few.low_T[-1] == pytest.approx(0.025 ** (1 / 100))
    assert roc.found(np.zeros((99, 5)), -false - 1, 0.01).needed == -1


@pytest.mark.parametrize("n", [19, 40])
def test_coverage_on_a_split_is_the_level_over_calibration_sets(n):
    generator = np.random.default_rng(n)
    judged, trials, alarms = 20, 800, []
    for _ in range(trials):
        scale = generator.gamma(2, 1, (1, 2, 8 + n + judged, 1))  # references differ
        energy = scale * generator.chisquare(8, (2, 2, 8 + n + judged, 6)) / 8
        known = Calibration(energy[:, :, : 8 + n], np.full((2, 8 + n, 6), 1e-9), 8)
        p = profile_ranks(energy[:1, :, 8 + n :], known.only(np.arange(8)), known.only(np.arange(8, 8 + n)))
        alarms.append(int((p[0, 0] <= 0.05).sum()))
    rank = int(0.05 * (n + 1) + 1e-9)
    law = stats.betabinom(judged, rank, n + 1 - rank)
    assert np.mean(alarms) == pytest.approx(law.mean(), abs=4 * law.std() / math.sqrt(trials))
    none = law.pmf(0)  # single sets differ much more than independent trials would
    assert np.mean(np.array(alarms) == 0) == pytest.approx(none, abs=4 * math.sqrt(none / trials))
    assert none > stats.binom(judged, rank / (n + 1)).pmf(0)


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.3, 6.0])
@pytest.mark.parametrize("references", [20, 60])
def test_intervals_of_the_area_hold_the_true_one_and_do_not_collapse(shift, references):
    generator = np.random.default_rng(references)
    truth, held, points, trials = stats.norm.cdf(shift / math.sqrt(2)), 0, 0, 200
    for _ in range(trials):
        honest, false = generator.normal(0, 1, references), generator.normal(shift, 1, references)
        low, high = roc.auc_interval(honest, false, draws=200)
        held, points = held + (low <= truth <= high), points + (low == high)
    assert points == 0
    assert held / trials > 0.9


def test_a_bootstrap_of_few_errors_would_have_collapsed():
    generator = np.random.default_rng(0)
    honest, false = generator.normal(0, 1, 50), generator.normal(6, 1, 50)
    assert roc.bootstrap(roc.auc, honest, false) == (1.0, 1.0)
    low, high = roc.auc_interval(honest, false)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 25)), 1.0)
    assert np.isnan(roc.auc_interval(honest[:7], false[:7])).all()


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99, 1.0])
def test_intervals_of_sums_over_pairs_hold_the_true_share(rate):
    generator = np.random.default_rng(3)
    held, trials = 0, 300
    for _ in range(trials):
        # the six pairs of a reference go together: half of their errors are the reference's own
        own = generator.random(50) < 1 - (1 - rate) / 2
        each = generator.binomial(6, rate / (1 - (1 - rate) / 2), 50)
        low, high = roc.sum_interval(np.where(own, each, 0), np.full(50, 6), draws=400)
        assert low < 1
        held += low <= rate <= high
    assert held / trials > 0.9


def test_a_config_that_made_nothing_has_no_calibration_and_refutes_nothing():
    noise = {**NOISE, "tried": 0.1}
    section = attribution(*trees(noise, producers=list(NOISE), references=40, tokens=4), draws=20)
    result = section.result
    assert (result["refuted_of"].sel(config="tried") == 0).all()
    assert (result["answers"].sel(answer="tried") == 0).all()
    assert int(result["threshold_references"].sel(config="tried")) == 0
    assert np.isnan(result["auc"].sel(config="tried")).all()
    area = next(block for block in section.blocks if isinstance(block, Table) and "AUC" in block.head)
    assert area.rows and "tried" not in {row[1] for row in area.rows}


def test_one_config_and_rows_that_are_missing():
    producers, verifier = trees({"a": 1.0}, references=40, tokens=4)
    replay = verifier["replay"].to_dataset().copy(deep=True)
    replay["captured"].loc[{"reference": "ref_3"}] = False
    section = attribution(producers, change(verifier, "replay", replay), draws=20)
    judged, null = section.result["refuted_of"].item(), section.result["threshold_references"].item()
    assert judged + null + section.result.attrs["fit_references"] in (39, 40)
    assert section.result["false_refuted_of"].item() == 0
    assert "false claims refuted –" in words(section)


def test_calibration_of_other_machines_judges_nothing():
    judged = trees(NOISE, references=20)
    known = trees(NOISE, references=60, seed=1, first_prompt=100, verifier_facts={"sm_count": 114})
    result = attribution(*judged, draws=20, calibration=known).result
    # rows that are all equal are in the set without any calibration; all else has no p and no score
    assert off_diagonal(result["refuted_of"]).tolist() == [0] * 6
    assert result["refuted_of"].values.diagonal().tolist() == [20, 0, 0]
    assert np.isnan(result["tpr_at"]).all()
    fits = trees(NOISE, references=60, seed=1, first_prompt=100)
    result = attribution(*judged, draws=20, calibration=[known, fits]).result
    assert off_diagonal(result["refuted"]).tolist() == [20] * 6, "the first set that fits is used"
