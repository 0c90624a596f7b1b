"""What quantization costs: against numbers by hand, scipy on stored rows, and where it says nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import scipy.stats
import xarray as xr

import qdx
from qdx.analysis import cost
from qdx.analysis.cost import percentiles
from qdx.dataset import merge
from qdx.distances.measure import compute
from qdx.errors import QdxError
from qdx.plugins import build
from qdx.statistics import ratio_interval, tails
from tests import helpers, synthetic
from tests.synthetic import words

TOKENS = 6


def tree(
    p: np.ndarray, q: np.ndarray, references: int = 2, kl: float = 0.0, **options: object
) -> xr.DataTree:
    """A dense config and another that give the text's token of row i the probabilities p[i] and q[i].

    Prefill: four rows of the snippet. Replay: five rows of the continuation. All others are nonsense.
    """
    rows = synthetic.blank(configs=2, repeats=1, references=references, tokens=TOKENS)
    found = synthetic.sweep(rows, ["dense", "small"], ["none", "awq"], metrics=("l2",), **options)
    groups = {name: node.to_dataset() for name, node in found.subtree_with_keys}
    for phase in ("prefill", "replay"):
        group = groups[phase]
        shape = tuple(group.sizes[d] for d in ("config", "repeat", "reference", "position"))
        text = group["region"].values == ("content" if phase == "prefill" else "output")
        probability = np.full(shape, 1e-9)
        for c, wanted in enumerate((p, q)):
            count = int(text[0].sum())
            probability[c, 0][text] = np.tile(wanted[:count], references)
        logsumexp = np.full(shape, 3.0)
        groups[phase] = group.assign(
            target_logit=(synthetic.ROW_DIMS, (np.log(probability) + 3.0).astype(np.float32)),
            logsumexp=(synthetic.ROW_DIMS, logsumexp),
            token_id=(synthetic.ROW_DIMS, np.full(shape, 7)),
            top_id=((*synthetic.ROW_DIMS, "rank"), np.full((*shape, 2), 7)),
        )
        pair = ("config", "config_b", "reference", "position")
        value = np.full((2, 2, *shape[2:]), kl)
        groups[f"metrics/kl/{phase}"] = xr.Dataset(
            {"kl": (pair, value, {"units": "nat"})}, {k: group[k] for k in ("config", "region")}
        )
    return xr.DataTree.from_dict(groups)


def test_perplexity_and_token_probabilities_by_hand():
    p, q = np.array([0.5, 0.25, 0.5, 0.25, 0.5]), np.array([0.25, 0.25, 0.5, 0.5, 0.25])
    found = cost(tree(p, q, kl=0.5)).result.sel(config="small")
    prefill, replay = found.sel(phase="prefill"), found.sel(phase="replay")
    assert (int(prefill.rows), int(replay.rows)) == (8, 10)
    # Prefill: p = ½ ¼ ½ ¼ and q = ¼ ¼ ½ ½, so both perplexities are 2^1.5.
    assert float(prefill.perplexity) == pytest.approx(2**1.5)
    assert float(prefill.perplexity_ratio) == pytest.approx(1.0)
    assert float(prefill.delta_p_mean) == pytest.approx(0.0, abs=1e-5)
    assert float(prefill.delta_p_rms) == pytest.approx(25 / math.sqrt(2), rel=1e-6)
    assert float(prefill.delta_p_least) == pytest.approx(-25, rel=1e-6)
    assert float(prefill.delta_p_greatest) == pytest.approx(25, rel=1e-6)
    # Replay: one more row of ½ and ¼ in five.
    assert float(replay.perplexity_ratio) == pytest.approx(2**0.2)
    assert float(replay.baseline_perplexity) == pytest.approx(2 ** (7 / 5))
    assert float(replay.delta_p_mean) == pytest.approx(-5, rel=1e-6)
    assert float(replay.kl_mean) == float(replay.kl_greatest) == 0.5
    assert np.isnan(replay.perplexity_ratio_low)  # two references


def test_same_top_is_a_share_with_wilsons_interval():
    sweep = tree(np.full(5, 0.5), np.full(5, 0.5))
    group = sweep["replay"].to_dataset()
    top = group["top_id"].values
    top[1, 0, 0, :3, 0] = 8  # three of ten rows
    top[1, 0, :, :, 1] = 99  # the second place does not matter
    sweep["replay"] = xr.DataTree(group.assign(top_id=(group["top_id"].dims, top)))
    found = cost(sweep).result.sel(config="small", phase="replay")
    expected = scipy.stats.binomtest(7, 10).proportion_ci(0.95, method="wilson")
    assert float(found.same_top) == pytest.approx(0.7)
    assert (float(found.same_top_low), float(found.same_top_high)) == pytest.approx(
        (expected.low, expected.high)
    )


def test_rows_of_another_token_or_without_one_do_not_count():
    sweep = tree(np.full(5, 0.5), np.full(5, 0.25))
    group = sweep["replay"].to_dataset()
    token = group["token_id"].values
    token[:, 0, 0, 0] = -1
    token[1, 0, 1, 4] = 8
    captured = group["captured"].values
    captured[0, 0, 0, 1] = False
    replaced = group.assign(token_id=(synthetic.ROW_DIMS, token), captured=(synthetic.ROW_DIMS, captured))
    sweep["replay"] = xr.DataTree(replaced)
    assert int(cost(sweep).result.rows.sel(config="small", phase="replay")) == 7


def test_a_constant_ratio_has_an_interval_of_no_width_from_eight_references_on():
    p, q = np.full(5, 0.5), np.full(5, 0.25)
    for references, shown in ((7, False), (8, True)):
        section = cost(tree(p, q, references=references, kl=0.1))
        found = section.result.sel(config="small", phase="replay")
        ends = [float(found[f"{n}_{e}"]) for n in ("perplexity_ratio", "kl_mean") for e in ("low", "high")]
        assert np.isnan(ends).all() if not shown else ends == pytest.approx([2, 2, 0.1, 0.1])
        assert ("2.0000 to 2.0000" in words(section)) == shown


def test_the_interval_of_a_ratio_covers_the_true_mean_about_as_often_as_it_says():
    generator, hits = np.random.default_rng(0), 0
    for trial in range(300):
        count = generator.integers(1, 20, 30)
        total = count * (1 + generator.normal(0, 1, 30))
        low, high = ratio_interval(total, count, tails(0.9), 400, trial)
        hits += low <= 1 <= high
    assert 0.82 <= hits / 300 <= 0.95


def test_a_percentile_is_given_only_where_a_row_lies_beyond():
    values = np.arange(1000.0)
    levels = (0.001, 0.5, 0.999)
    assert percentiles(values, levels) == pytest.approx([0.999, 499.5, 998.001])
    assert np.isnan(percentiles(values[:999], levels)).tolist() == [True, False, True]
    assert np.isnan(percentiles(values[:0], levels)).all()


def test_a_sweep_without_dense_weights_is_told_so_in_one_line():
    section = cost(synthetic.sweep(synthetic.blank()))
    assert "quant=none" in words(section) and "\n" not in words(section)
    assert not section.result.sizes


def test_an_unknown_baseline_names_the_nearest_and_a_chosen_one_is_used():
    sweep = tree(np.full(5, 0.5), np.full(5, 0.25))
    with pytest.raises(QdxError, match=r"baseline=smal: .* \(did you mean 'small'\?\)"):
        cost(sweep, baseline="smal")
    found = cost(sweep, baseline="small").result
    assert float(found.perplexity_ratio.sel(config="dense", phase="replay")) == pytest.approx(0.5)


def test_without_kl_the_rest_is_there_and_the_text_says_how_to_have_it():
    sweep = tree(np.full(5, 0.5), np.full(5, 0.25))
    sweep = xr.DataTree.from_dict({n: d.to_dataset() for n, d in sweep.subtree_with_keys if "kl" not in n})
    section = cost(sweep)
    assert "add kl to metric=" in words(section)
    assert int(section.result.kl_rows.sum()) == 0
    assert float(section.result.perplexity_ratio.sel(config="small", phase="replay")) == pytest.approx(2)


@pytest.mark.parametrize("mode", ["full", "topk"])
@pytest.mark.slow
def test_on_files_it_is_what_the_stored_rows_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str):
    monkeypatch.setitem(helpers.CONFIGS, "awq", ("none", "dense", 1, 0, 0.0))
    folder = helpers.write_sweep(tmp_path / "s", ["awq", "awq_marlin", "gptq_marlin"], mode=mode)
    merge(folder, folder / "sweep.nc")
    compute(folder, folder / "sweep.nc", {"kl": build({"_target_": "qdx.metrics.kl"})})
    section = cost(qdx.open(folder / "sweep.nc"))
    assert section.result.attrs["baseline"] == "awq"
    assert ("lower bound" in words(section)) == (mode == "topk")
    full = (
        qdx.open(helpers.write_sweep(tmp_path / "full", ["awq", "gptq_marlin"])) if mode == "topk" else None
    )
    data = qdx.open(folder) if full is None else full
    for phase, region in (("prefill", "content"), ("replay", "output")):
        group = data[phase].to_dataset().isel(repeat=0)
        used = group["captured"].values[0] & (group["region"].values == region)
        own, base = (
            scipy.special.log_softmax(group["logit"].sel(config=c).values[used].astype(float), -1)
            for c in ("gptq_marlin", "awq")
        )
        token = group["token_id"].sel(config="awq").values[used]
        at = np.arange(len(token))
        found = section.result.sel(config="gptq_marlin", phase=phase)
        assert int(found.rows) == len(token) > 10
        ratio = np.exp(base[at, token].mean() - own[at, token].mean())
        assert float(found.perplexity_ratio) == pytest.approx(ratio, rel=1e-9)
        delta = 100 * (np.exp(own[at, token]) - np.exp(base[at, token]))
        assert float(found.delta_p_rms) == pytest.approx(np.sqrt((delta**2).mean()), rel=1e-9)
        assert float(found.same_top) == pytest.approx((own.argmax(-1) == base.argmax(-1)).mean())
        kl = scipy.special.rel_entr(np.exp(base), np.exp(own)).sum(-1)
        if mode == "full":
            assert float(found.kl_mean) == pytest.approx(kl.mean(), rel=1e-9)
            assert float(found.kl_percentile.sel(kl_level=0.5)) == pytest.approx(np.median(kl), rel=1e-9)
        else:
            assert 0 < float(found.kl_mean) < kl.mean()


@pytest.mark.slow
def test_the_report_has_the_section_in_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from qdx.report import build as report

    monkeypatch.setitem(helpers.CONFIGS, "awq", ("none", "dense", 1, 0, 0.0))
    folder = helpers.write_sweep(tmp_path, ["awq", "gptq_marlin"])
    built = report(folder, formats=["txt", "html", "md"], console=False)
    assert not built.failed
    for suffix in ("txt", "html", "md"):
        text = (folder / f"report.{suffix}").read_text()
        assert "Cost of quantization" in text and "exp(−mean ln q(x))" in text, suffix
    assert built.summary["analyses"]["cost"]["perplexity_ratio"]["replay"]["gptq_marlin"] > 0
    assert max(map(len, built.text.split("Cost of quantization")[1].split("Results")[0].splitlines())) <= 110
