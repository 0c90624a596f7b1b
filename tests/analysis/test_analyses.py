"""Each analysis on sweeps whose numbers can be worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qdx import analysis
from qdx.document import text
from qdx.errors import QdxError
from tests.synthetic import LENGTH, PREFILL_CONTENT, PREFILL_TEMPLATE, blank, sweep, words

CONTENT = slice(2, 6)  # rows of the snippet among the prefill rows
ALL = (
    analysis.noise_floor,
    analysis.consistency,
    analysis.effects,
    analysis.classes,
    analysis.pairs,
    analysis.snr,
)


def noisy() -> dict[str, np.ndarray]:
    """Two configs; of the second, replay of repeat r of every reference has r in component 0."""
    rows = blank(configs=2, repeats=3, references=4)
    for repeat in range(3):
        rows["replay"][1, repeat, ..., 0] = repeat
    return rows


# Noise floor


def test_all_reruns_equal_gives_a_bound_of_n_reruns_and_never_the_word_deterministic():
    section = analysis.noise_floor(sweep(blank(configs=2, repeats=3, references=4)))
    at = section.result.sel(config="c0", phase="prefill")
    assert (int(at.reruns), int(at.reruns_equal), int(at.rows), int(at.rows_equal)) == (8, 8, 80, 80)
    assert float(at.mismatch_bound) == pytest.approx(1 - 0.05 ** (1 / 8))
    assert "8 of 8" in words(section) and "mismatch rate under 31.3 % at 95 %" in words(section)
    assert "deterministic" not in words(section)


def test_a_config_that_does_not_repeat_has_no_bound_and_its_distances():
    result = analysis.noise_floor(sweep(noisy())).result
    at = result.sel(config="c1", phase="replay")
    assert (int(at.reruns), int(at.reruns_equal), int(at.rows_equal)) == (8, 0, 0)
    assert math.isnan(at.mismatch_bound)
    of = at.sel(metric="l2", region="content")
    # Repeat pairs differ by 1, 2 and 1 in every row.
    assert of.pair_mean.values.tolist() == [1.0, 2.0, 1.0]
    assert (float(of["mean"]), float(of["median"]), float(of.worst)) == (pytest.approx(4 / 3), 1.0, 2.0)
    assert int(of.rows_measured) == 3 * 4 * 5
    assert float(result["mean"].sel(config="c0", phase="replay", metric="l2", region="content")) == 0.0


def test_one_differing_row_is_one_mismatching_rerun():
    rows = blank(configs=1, repeats=3, references=4)
    rows["prefill"][0, 2, 3, 0, 0] = (
        1.0  # a template row: bit-equality looks at it, distances of content do not
    )
    section = analysis.noise_floor(sweep(rows))
    at = section.result.sel(config="c0", phase="prefill")
    assert (int(at.reruns_equal), int(at.rows_equal)) == (7, 79)
    assert float(at.worst.sel(metric="l2", region="content")) == 0.0
    assert float(at.worst.sel(metric="l2", region="template")) == 1.0
    assert int(at.rows_measured.sel(metric="l2", region="template")) == 3 * 4 * PREFILL_TEMPLATE
    assert "does not repeat: 1 of 8 reruns mismatch" in words(section)
    assert "Template rows (separate): greatest l2 between repeats: prefill 1.00 (c0)" in words(section)


def test_decode_reruns_are_compared_up_to_the_first_differing_token():
    rows = blank(configs=1, repeats=2, references=2, tokens=6)
    rows["tokens"][0, 1, 0, 2:] += 50  # token 2 differs: decode rows of tokens 1 and 2 are comparable
    rows["decode"][0, 1, 0, 1:] += 1.0  # the row that predicts token 2 differs, and all later ones
    rows["tokens"][0, 1, 1, 0:] += (
        50  # the first token differs: it lies in prefill, no decode row is comparable
    )
    rows["decode"][0, 1, 1] += 1.0
    result = analysis.noise_floor(sweep(rows)).result
    at = result.sel(config="c0", phase="decode")
    assert (int(at.reruns), int(at.reruns_equal), int(at.rows), int(at.rows_equal)) == (1, 0, 2, 1)
    assert (int(at.generations), int(at.generations_diverged)) == (2, 2)
    assert at.first_divergence.sel(rerun=1).values.tolist() == [2, 0]
    of = at.sel(metric="l2", region="content")
    assert float(of["mean"]) == pytest.approx((0 + 2) / 2) and int(of.rows_measured) == 2


def test_one_repeat_measures_no_floor_and_says_so():
    section = analysis.noise_floor(sweep(blank(repeats=1)))
    assert section.result.reruns.values.sum() == 0 and np.isnan(section.result.mismatch_bound.values).all()
    assert "nothing was run again" in words(section)


def test_a_metric_that_is_more_alike_when_higher_has_its_least_value_as_the_worst():
    section = analysis.noise_floor(sweep(noisy(), metrics=("overlap",)))
    at = section.result.sel(metric="overlap", region="content", config="c1")
    assert float(at.worst.sel(phase="replay")) == 0.0 and float(at.worst.sel(phase="prefill")) == 1.0
    assert "min" in words(section)


# Consistency


def test_agreement_and_first_divergence():
    rows = blank(configs=3, references=2, tokens=4)
    rows["tokens"][1, :, 0, 2] = 99  # reference 0: only token 2 differs
    rows["tokens"][2, :, :, 0:] += 50  # nothing agrees
    section = analysis.consistency(sweep(rows))
    result = section.result
    assert result.agreement.sel(config="c0", config_b="c1") == 7 / 8
    assert result.agreement.sel(config="c0", config_b="c2") == 0
    assert result.first_divergence.sel(config="c0", config_b="c1").values.tolist() == [2, -1]
    assert result.first_divergence.sel(config="c1", config_b="c2").values.tolist() == [0, 0]
    assert result.agreement_at.sel(config="c0", config_b="c1").values.tolist() == [1, 1, 0.5, 1]
    assert result.prefix_agreement.sel(config="c0", config_b="c1").values.tolist() == [1, 1, 0.5, 0.5]
    assert result.text_equal.sel(config="c0", config_b="c1").values.tolist() == [False, True]
    assert str(result.first_words.sel(config="c0", reference="ref_0").item()) == "w0 w1 w2 w3"
    assert "87.5%" in words(section) and "2…=" in words(section)
    assert "Texts equal in every reference: 0 of 3 pairs" in words(section)


def test_tokens_that_a_config_lacks_are_not_compared():
    rows = blank(configs=2, references=1, tokens=4)
    rows["tokens"][1, :, :, 2:] = -1
    result = analysis.consistency(sweep(rows)).result
    assert int(result.tokens_compared.sel(config="c0", config_b="c1")) == 2
    assert float(result.agreement.sel(config="c0", config_b="c1")) == 1.0
    assert np.isnan(result.agreement_at.sel(config="c0", config_b="c1").values[2:]).all()


def test_equal_outputs_are_named():
    assert "c0 and c1" in words(analysis.consistency(sweep(blank())))


# Effects


def test_the_mean_is_over_content_rows_then_over_references():
    rows = blank(configs=2, references=2)
    rows["prefill"][1, :, 0, CONTENT, 0] = 5.0  # reference 0: 4 of 5 content rows differ by 5
    rows["prefill"][1, :, 1, :2, 0] = 100.0  # reference 1: two template rows differ by 100
    section = analysis.effects(sweep(rows))
    at = section.result.sel(phase="prefill", config="c0", config_b="c1")
    of = at.sel(metric="l2", region="content")
    assert of.reference_mean.values.tolist() == [4.0, 0.0] and float(of["mean"]) == 2.0
    assert of.rows.values.tolist() == [PREFILL_CONTENT] * 2 and int(of.not_measured.sum()) == 0
    assert float(at["mean"].sel(metric="l2", region="template")) == pytest.approx(200 / 5 / 2)
    skew = section.result.sel(phase="prefill", metric="skew", region="content")["mean"].values
    assert skew[0, 1] == 2 * 25 * 4 / 5 / 2 and skew[1, 0] == 25 * 4 / 5 / 2
    assert "off the diagonal: mean 2.00, range 2.00 to 2.00" in words(section, "prefill")
    assert "Template rows (separate): l2 off the diagonal: mean 20.0" in words(section, "prefill")
    assert "l2: √ Σ_v (ln p_v − ln q_v)² [nat; higher means less alike]" in words(section, "prefill")


def test_decode_beyond_the_split_is_not_measured_counted_and_in_no_mean():
    rows = blank(configs=2, references=2, tokens=6)
    rows["decode"][1, ..., 0] = 3.0
    rows["tokens"][1, :, 0, 2:] += 50  # two of five rows measured
    rows["tokens"][1, :, 1, 0:] += 50  # none
    section = analysis.effects(sweep(rows))
    of = section.result.sel(phase="decode", metric="l2", region="content", config="c0", config_b="c1")
    assert of.rows.values.tolist() == [2, 0] and of.not_measured.values.tolist() == [3, 5]
    assert of.reference_mean.values[0] == 3.0 and np.isnan(of.reference_mean.values[1])
    assert float(of["mean"]) == 3.0 and int(of.references_measured) == 1
    assert "16 of 20 not measured" in words(section, "decode")
    assert "2 of 2 entries rest on fewer references (fewest 1 of 2)" in words(section, "decode")


def test_a_row_that_only_one_config_captured_is_counted_as_not_measured():
    captured = {"prefill": np.ones((2, 3, 4, LENGTH), bool)}
    captured["prefill"][1, :, :, 3] = False
    result = analysis.effects(sweep(blank(), captured=captured)).result
    of = result.sel(phase="prefill", metric="l2", region="content", config="c0", config_b="c1")
    assert of.rows.values.tolist() == [4] * 4 and of.not_measured.values.tolist() == [1] * 4


def test_a_pair_that_was_nowhere_measured_shows_a_dash_and_is_left_out_of_the_range():
    rows = blank(configs=3, references=1, tokens=4)
    rows["decode"][1, ..., 0] = 1.0
    rows["tokens"][2] += 50
    section = analysis.effects(sweep(rows))
    at = section.result.sel(phase="decode", metric="l2", region="content")
    assert int(at.off_diagonal_measured) == 2 and float(at.off_diagonal_mean) == 1.0
    assert "–" in words(section, "decode") and "4 of 6 entries not measured" in words(section, "decode")


def test_an_infinite_distance_is_refused():
    tree = sweep(blank())
    tree["metrics/l2/prefill/l2"].values[0, 1, 0, 3] = np.inf
    with pytest.raises(QdxError, match="infinite"):
        analysis.effects(tree)


def test_coarsened_rows_and_dropped_infinities_are_said():
    tree = sweep(blank())
    tree["metrics/l2/prefill/l2"].attrs.update(coarse_rows=7, infinite=2)
    text = words(analysis.effects(tree), "prefill")
    assert "7 rows measured on shared top ids" in text and "2 infinite distances" in text


def test_a_metric_that_was_not_measured_is_an_error_with_the_choices():
    with pytest.raises(QdxError, match="'kl' was not measured, only l2, skew"):
        analysis.effects(sweep(blank()), metrics=["kl"])


# Classes


def test_equal_hashes_make_a_class_phase_by_phase():
    rows = blank(configs=3)
    rows["replay"][2, ..., 0] = 1.0
    section = analysis.classes(sweep(rows))
    assert section.result.class_id.sel(phase="prefill").values.tolist() == [0, 0, 0]
    assert section.result.class_id.sel(phase="replay").values.tolist() == [0, 0, 1]
    assert "1 c0, c1 20 shared rows equal" in " ".join(words(section, "replay").split())
    assert "2 c2" in " ".join(words(section, "replay").split())


def test_a_noisy_config_is_its_own_class_although_its_first_repeat_equals_another():
    section = analysis.classes(sweep(noisy()))  # in repeat 0 the noise is 0
    at = section.result.sel(phase="replay")
    assert int(at.rows_equal.sel(config="c0", config_b="c1")) == 20
    assert at.class_id.values.tolist() == [0, 1]
    assert at.repeats.values.tolist() == ["repeats", "does not repeat"]
    assert "2 c1 does not repeat: a class by itself" in " ".join(words(section, "replay").split())


def test_one_differing_template_row_makes_another_class():
    rows = blank()
    rows["prefill"][1, :, 0, 0, 0] = 1.0
    section = analysis.classes(sweep(rows))
    assert section.result.class_id.sel(phase="prefill").values.tolist() == [0, 1]
    assert "equal between classes: at most 39 of 40 (c0 ~ c1)" in words(section, "prefill")


def test_decode_rows_after_a_split_do_not_count_and_the_split_itself_does():
    rows = blank(references=1, tokens=6)
    rows["tokens"][1, :, 0, 2:] += 50
    rows["decode"][1, :, :, 1:] += 1.0
    at = analysis.classes(sweep(rows)).result.sel(phase="decode", config="c0", config_b="c1")
    assert (int(at.rows_shared), int(at.rows_equal)) == (2, 1)


def test_configs_without_a_shared_row_are_not_equal():
    rows = blank(references=1)
    rows["tokens"][1] += 50
    assert analysis.classes(sweep(rows)).result.class_id.sel(phase="decode").values.tolist() == [0, 1]


def test_configs_that_were_not_run_again_are_marked():
    section = analysis.classes(sweep(blank(repeats=1)))
    assert set(section.result.repeats.values.ravel().tolist()) == {"not rerun"}
    assert "not rerun: whether it repeats is not known" in words(section, "prefill")


def test_environment_classes_are_named_and_told_apart():
    one = analysis.classes(sweep(blank()))
    assert one.result.environment_class.values.tolist() == [0, 0]
    assert "one for all configs (CPU, transformers 5.23, batch 1)" in words(one, "prefill")
    two = analysis.classes(
        sweep(blank(), compute_capability=["9.0", "8.0"], sm_count=[132, 108], backend=["vllm", "vllm"])
    )
    assert two.result.environment_class.values.tolist() == [0, 1]
    assert "E2  compute capability 8.0, 108 SMs, vllm 5.23, batch 1: c1" in words(two, "prefill")
    assert "across environment classes" in words(two, "prefill")


def test_cpus_that_model_other_sm_counts_are_other_environment_classes():
    tree = sweep(blank(), simulated=[True, True], sm_count=[108, 132])
    section = analysis.classes(tree)
    assert section.result.environment_class.values.tolist() == [0, 1]
    assert "E1  CPU modelling 108 SMs, transformers 5.23, batch 1: c0" in words(section, "prefill")
    assert "E2  CPU modelling 132 SMs, transformers 5.23, batch 1: c1" in words(section, "prefill")
    measured = sweep(blank(), simulated=[False, False], sm_count=[108, 132])
    assert analysis.classes(measured).result.environment_class.values.tolist() == [0, 0]


def test_the_processor_and_its_threads_tell_environment_classes_apart_on_a_cpu_only():
    one = sweep(blank(), threads=[1, 2], cpu=["Xeon 8481C"] * 2)
    described = words(analysis.classes(one), "prefill")
    assert "E2  CPU Xeon 8481C with 2 threads, transformers 5.23, batch 1: c1" in described
    other = sweep(blank(), cpu=["Xeon 8481C", "EPYC 9654"])
    assert analysis.classes(other).result.environment_class.values.tolist() == [0, 1]
    gpu = sweep(blank(), threads=[1, 2], cpu=["Xeon 8481C", "EPYC 9654"], compute_capability=["9.0"] * 2)
    assert analysis.classes(gpu).result.environment_class.values.tolist() == [0, 0]


def test_settings_of_an_engine_tell_environment_classes_apart():
    gpu = {"compute_capability": ["9.0"] * 2, "sm_count": [132] * 2, "backend": ["vllm"] * 2}
    attention = sweep(blank(), **gpu, backend_attention_backend=["FLASH_ATTN", "FLASHINFER"])
    section = analysis.classes(attention)
    assert section.result.environment_class.values.tolist() == [0, 1]
    assert "batch 1, attention FLASHINFER: c1" in words(section, "prefill")
    budget = {"backend_max_num_batched_tokens": ["4096", "16384"]}
    for chunked, classes in (
        ("False", [0, 0]),
        ("True", [0, 1]),
    ):  # a budget that cuts nothing decides nothing
        tree = sweep(blank(), **gpu, **budget, backend_chunked_prefill=[chunked] * 2)
        assert analysis.classes(tree).result.environment_class.values.tolist() == classes


def test_a_mean_over_references_is_not_called_a_mean_of_rows():
    rows = blank(configs=2, references=3)
    rows["tokens"][1, :, 0, 2:] += 50  # of reference 0 two rows are left, of the others five
    rows["decode"][1, :, 0, :, 0] = 7.0
    effects, pairs = analysis.effects(sweep(rows)), analysis.pairs(sweep(rows))
    mean = effects.result["mean"].sel(metric="l2", phase="decode", region="content").values[0, 1]
    assert mean == pytest.approx(7 / 3) and mean != pytest.approx(2 * 7 / 12)
    assert "Mean over 3 references of each one's mean (12 content rows a pair" in words(effects, "decode")
    assert "ref_0, mean of 2 content rows a pair" in words(effects, "decode")
    assert "over references of each one's mean" in " ".join(words(pairs, "decode").split())


# Pairs


def four() -> dict[str, np.ndarray]:
    rows = blank(configs=4, references=4)
    for phase in ("prefill", "replay"):
        for config, value in enumerate([0.0, 1.0, 10.0, 12.0]):
            rows[phase][config, ..., 0] = value
    return rows


def test_pairs_are_typed_sorted_and_without_interval_under_eight_references():
    tree = sweep(
        four(),
        ["awq", "awq_marlin", "gptq_marlin", "none"],
        ["awq", "awq", "gptq", "none"],
        ["model:awq_gemm", "model:marlin", "model:marlin", "dense"],
    )
    section = analysis.pairs(tree)
    result = section.result.set_index(pair=["config", "config_b"])
    kinds = {p: str(result.pair_type.sel(pair=p).item()) for p in result.pair.values}
    assert kinds[("awq", "awq_marlin")] == "same format, other kernel"
    assert kinds[("awq_marlin", "gptq_marlin")] == "other format, same kernel"
    assert kinds[("awq", "none")] == "vs dense"
    assert np.isnan(section.result.low.values).all()
    lines = [line.split()[:3] for line in words(section, "prefill").splitlines() if " ~ " in line]
    assert lines[0] == ["awq", "~", "awq_marlin"] and lines[1] == ["gptq_marlin", "~", "none"]
    assert "No interval: 4 references, and under 8" in " ".join(words(section, "prefill").split())


def test_the_interval_is_of_the_mean_over_references_and_nan_references_are_counted_out():
    rows = blank(configs=2, references=9, tokens=4)
    step = np.arange(9.0)
    rows["prefill"][1, ..., 0] = step[:, None]
    rows["decode"][1, ..., 0] = step[:, None]
    rows["tokens"][1, :, 8] += 50
    section = analysis.pairs(sweep(rows))
    at = section.result.sel(metric="l2").isel(pair=0)
    assert float(at["mean"].sel(phase="prefill")) == 4.0 and float(at["median"].sel(phase="prefill")) == 4.0
    low, high = float(at.low.sel(phase="prefill")), float(at.high.sel(phase="prefill"))
    # The mean of nine draws has standard deviation √(60/9) / 3.
    spread = math.sqrt(60 / 9) / 3
    assert low == pytest.approx(4 - 1.96 * spread, abs=0.12) and high == pytest.approx(
        4 + 1.96 * spread, abs=0.12
    )
    assert (
        float(at["mean"].sel(phase="decode")) == 3.5 and int(at.references_measured.sel(phase="decode")) == 8
    )
    assert "95% interval" in words(section, "prefill") and "No interval" not in words(section, "prefill")


def test_many_pairs_are_summed_up_by_type():
    text = words(analysis.pairs(sweep(blank(configs=9, references=1)), shown=5), "prefill")
    assert text.count(" ~ ") == 2 * 5 and "31 more pairs" in text
    assert "same format, same kernel" in text and "36 of 36" in text


# Signal to noise


def test_the_ratio_is_the_distance_over_the_pairs_noise_and_exact_where_there_is_none():
    rows = blank(configs=3)
    for repeat in range(3):
        rows["replay"][1, repeat, ..., 0] = repeat
    rows["replay"][1:, ..., 1] = 8.0
    section = analysis.snr(sweep(rows))
    at = section.result.sel(metric="l2", phase="replay")
    floor = 4 / 3
    assert at.floor.values == pytest.approx([0, floor, 0])
    assert float(at.ratio.sel(config="c0", config_b="c1")) == pytest.approx(8 / math.sqrt(floor**2 / 2))
    assert bool(at.exact.sel(config="c0", config_b="c2")) and np.isnan(
        at.ratio.sel(config="c0", config_b="c2")
    )
    assert "exact" in words(section) and "equal" in words(section)  # prefill: all equal
    assert "decode" not in section.result.phase.values


def test_a_floor_of_zero_is_not_exact_where_repeats_differ_in_bits_that_the_metric_does_not_see():
    rows = blank(configs=3)
    rows["replay"][1, 1:, ..., 3] = 1e-9  # skew looks at component 0 alone
    rows["replay"][1:, ..., 0] = 2.0
    section = analysis.snr(sweep(rows, metrics=("skew",)))
    at = section.result.sel(metric="skew", phase="replay")
    assert at.floor.values.tolist() == [0.0, 0.0, 0.0]
    assert at.exact.values.tolist() == [[False, False, True], [False] * 3, [True, False, False]]
    assert np.isnan(at.ratio.values).all()
    prefill, replay = words(section).split("replay (shared continuation)")
    assert replay.count("floor 0, rows differ") == 4 + 1 and "bits that skew does not see" in " ".join(
        replay.split()
    )
    assert "floor 0" not in prefill  # its repeats are equal: no such cell, and the legend comes last


def test_a_metric_of_likeness_has_no_signal_to_noise():
    section = analysis.snr(sweep(noisy(), metrics=("overlap",)))
    assert section.result.sizes["metric"] == 0 and "no metric here is a distance" in words(section)


def test_phases_that_the_sweep_lacks_are_what_signal_to_noise_names():
    tree = sweep(noisy())
    if "decode" in tree.children:
        tree = tree.drop_nodes("decode")
    section = analysis.snr(tree, phases=["decode"])
    said = words(section)
    assert "no rows of the phases that were asked for" in said and "distance" not in said


def test_without_reruns_there_is_no_ratio():
    section = analysis.snr(sweep(four() | {k: v[:, :1] for k, v in four().items()}))
    assert np.isnan(section.result.ratio.values).all() and not section.result.exact.values.any()
    assert "no config was run again" in words(section)


# All of them


@pytest.mark.parametrize("analyse", ALL)
@pytest.mark.parametrize(
    "shape",
    [
        {"configs": 1},
        {"configs": 1, "repeats": 1, "references": 1},
        {"repeats": 1},
        {"references": 1},
        {"configs": 16, "references": 12},
        {"tokens": 2},
    ],
    ids=str,
)
def test_edges_give_finite_text_that_fits(analyse, shape):
    labels = [f"awq_marlin,generate.tokens={i}" for i in range(shape.get("configs", 2))]
    section = analyse(sweep(blank(**shape), labels))
    said = text.render(section.content)
    assert said.strip() and "nan" not in said.lower() and "inf" not in said.replace("infinite", "")
    assert max(map(len, said.splitlines())) <= 110
    for name, variable in section.result.data_vars.items():
        assert variable.attrs.get("long_name"), name
        if variable.dtype.kind == "f":
            assert not np.isinf(variable.values).any(), name


@pytest.mark.parametrize("analyse", ALL)
def test_a_sweep_without_metrics_is_analysed_as_far_as_it_goes(analyse):
    section = analyse(sweep(blank(), metrics=()))
    assert section.name == analyse.qdx.name and section.title == analyse.qdx.meta["title"]
