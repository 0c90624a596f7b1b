"""Every form of the original's files: what is read, and that each stated number is computed again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import qdx
from qdx.errors import QdxError
from qdx.legacy import convert
from qdx.legacy.convert import read
from tests.legacy import files

# Stated, reproduced, not finite in both, not computable.
EXPECTED = {
    "generations": (157, 139, 10, 8),
    "verification": (210, 210, 0, 0),
    "batch_verification": (169, 169, 0, 0),
    "batch_verification_old": (53, 53, 0, 0),
    "batch_measurements_vllm": (64, 64, 0, 0),
    "batch_measurements_transformers": (116, 116, 0, 0),
    "tp_measurements": (40, 39, 1, 0),  # the ratio over a diagonal of 0
    "tp_verification": (79, 24, 1, 54),  # matrices of references come from rows of other files
    "attention_verification": (48, 12, 0, 36),
    "activations_of_batches": (15, 15, 0, 0),
    "activations_of_layers": (5, 5, 0, 0),
}


def opened(content, folder, name="f"):
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    said = convert(folder / f"{name}.json", folder / f"{name}.nc")
    return said, qdx.open(folder / f"{name}.nc")


@pytest.mark.parametrize("form", files.FORMS)
def test_every_number_that_a_file_states_is_computed_again(tmp_path, form):
    said, tree = opened(files.FORMS[form](), tmp_path)
    with tree:
        table = tree["analysis/legacy/reproduction"].to_dataset()
        total = {name: int(table[name].sum()) for name in table.data_vars if name not in ("worst", "note")}
        names = ("stated", "reproduced", "neither", "uncomputed")
        assert tuple(total[name] for name in names) == EXPECTED[form]
        assert total["differing"] == 0
        assert not any("DIFFERING" in line for line in said)


@pytest.mark.parametrize("form", files.FORMS)
def test_a_stated_number_that_is_wrong_is_said_to_differ(tmp_path, form):
    """Change each number of the analyses in turn: none may pass for reproduced."""
    content = files.FORMS[form]()
    keys = [k for k in content if k.endswith(("_analysis", "_check")) or k.startswith(("cross", "snr"))]
    keys += [k for k in content if k in ("systematic_deviations", "activation_norms", "layer_statistics")]
    leaves = [leaf for key in keys for leaf in numbers(content[key], [key])]
    assert leaves
    checked = 0
    for path in leaves[:: max(1, len(leaves) // 24)]:
        if path[-2] in ("excluded_pairs", "equivalent_pairs", "kernel_classes"):
            continue
        parent = content
        for step in path[:-1]:
            parent = parent[step]
        before = parent[path[-1]]
        parent[path[-1]] = before * 1.01 + 0.01
        (tmp_path / "f.json").write_text(json.dumps(content), encoding="utf-8")
        said = read(tmp_path / "f.json").ledger.lines()
        given = form in ("tp_verification", "attention_verification") and "matr" in str(path)
        if not given:  # nothing in the file says what such a matrix should be
            assert any("DIFFERING" in line for line in said), path
            checked += 1
        parent[path[-1]] = before
    assert checked or form in ("attention_verification", "tp_verification")


def numbers(value, path):
    """Paths of the finite numbers under a value."""
    if isinstance(value, dict):
        return [leaf for key, one in value.items() for leaf in numbers(one, [*path, key])]
    if isinstance(value, list):
        return [leaf for i, one in enumerate(value) for leaf in numbers(one, [*path, i])]
    return [path] if isinstance(value, float) and math.isfinite(value) else []


def test_verification_becomes_distances_of_producer_and_verifier(tmp_path):
    content = files.verification()
    said, tree = opened(content, tmp_path)
    assert "64 comparisons, 256 numbers read (seed_l2)" in said[0]
    with tree:
        data = tree["metrics/seed_l2/prefill"].to_dataset()
        assert data["seed_l2"].dims == ("producer", "config", "reference")
        for entry in content["comparisons"]:
            at = data.sel(
                producer=entry["claimed_config"],
                config=entry["verify_config"],
                reference=f"ref_{entry['ref_idx']}",
            )
            assert float(at["seed_l2"]) == entry["prefill_distances"]["logprobs_mean"]
            assert float(at["seed_l2_max"]) == entry["prefill_distances"]["logprobs_max"]
        made = tree["analysis/legacy/decode/seed_l2"].to_dataset()
        stated = content["decode_analysis"]
        assert float(made["snr"]) == pytest.approx(stated["snr_all"], rel=1e-12)
        assert float(made["diagonal"]) == pytest.approx(stated["baseline_mean"], rel=1e-12)
        assert json.loads(tree.attrs["legacy: metadata.environment_validation"])["valid"] is False
        assert tree.attrs["labels"] and json.loads(tree.attrs["labels"]) == list(files.CONFIGS)


def test_infinity_in_a_verification_is_not_measured(tmp_path):
    content = files.verification()
    content["comparisons"][0]["prefill_distances"]["logprobs_mean"] = math.inf
    content["prefill_analysis"]["per_reference_matrices"][0][0][0] = math.inf
    content["prefill_analysis"]["matrix"][0][0] = math.inf
    said, tree = opened(content, tmp_path)
    with tree:
        data = tree["metrics/seed_l2/prefill"]["seed_l2"]
        assert np.isnan(data.sel(producer="awq", config="awq", reference="ref_0"))
        assert data.attrs["infinite"] == 1
        assert np.isnan(tree["analysis/legacy/prefill/seed_l2"]["matrix"].sel(producer="awq", config="awq"))
    # The file's ratios were computed before the change, so nothing confirms them now.
    assert any("prefill_analysis.baseline_mean: 1 of 1 not computable" in line for line in said)


def test_batch_sizes_are_labels_and_both_signals_metrics(tmp_path):
    content = files.batch_verification()
    _, tree = opened(content, tmp_path)
    with tree:
        data = tree["metrics/key_vectors_l2/decode"].to_dataset()
        assert data["config"].values.tolist() == ["batch_size=1", "batch_size=2", "batch_size=4"]
        entry = content["comparisons"][5]
        claimed, verifier = (f"batch_size={entry[f'{k}_batch_size']}" for k in ("claimed", "verify"))
        at = data.sel(producer=claimed, config=verifier, reference=entry["ref_name"])
        assert float(at["key_vectors_l2"]) == entry["decode_distances"]["key_vectors_mean"]
        made = tree["analysis/legacy/prefill/seed_l2"].to_dataset()
        assert float(made["meaningful"]) != float(made["off_diagonal"])  # the pair 1, 2 is left out


def test_a_ratio_of_no_pairs_at_all_is_not_computable(tmp_path):
    said, tree = opened(files.batch_verification("old", excluded=False), tmp_path)
    tree.close()
    line = "prefill_analysis.logprobs.snr_meaningful: 1 of 1 not computable: no cell is left"
    assert any(line in one for one in said)


@pytest.mark.parametrize(("engine", "rule"), [("vllm", "the first config"), ("transformers", "config")])
def test_the_rule_that_made_the_files_matrices_is_found(tmp_path, engine, rule):
    said, tree = opened(files.batch_measurements(engine), tmp_path)
    tree.close()
    assert said[0].endswith(f"Distances are at the first five ids of {rule}.")


def test_rows_of_transformers_are_one_place_further_on_in_the_prompt(tmp_path):
    """vLLM lists what predicts a token; Transformers' output at a token predicts the next."""
    for engine, first in (("vllm", 9), ("transformers", 10)):
        content = files.batch_measurements(engine)
        _, tree = opened(content, tmp_path, engine)
        run = content["measurements"][0]
        ids = [*run["prompt_token_ids"][0], *run["generated_ids"]]
        with tree:
            for phase, start in (("prefill", first), ("decode", 15)):
                rows = tree[phase].to_dataset()
                assert rows["position"].values.tolist() == [start, start + 1, start + 2]
                tokens = rows["token_id"].isel(config=0, repeat=0).sel(reference="ref_0")
                assert tokens.values.tolist() == ids[start : start + 3]


def test_key_vectors_are_kept_and_absent_where_the_file_has_none(tmp_path):
    content = files.batch_measurements("transformers")
    _, tree = opened(content, tmp_path)
    with tree:
        row = tree["decode"]["key_vector"].isel(config=1, repeat=0, position=2).sel(reference="ref_1")
        stated = content["measurements"][4]["decode_signals"]["pos_-1"]["signals"]["key_vectors"]["layer_28"]
        assert row.sel(layer="layer_28").values.tolist() == stated
    _, tree = opened(files.batch_measurements(), tmp_path, "v")
    with tree:
        assert "key_vector" not in tree["decode"].to_dataset()
        assert "key_vectors_l2" not in tree["metrics"].children


def test_positions_count_from_the_end_where_a_file_has_no_token_ids(tmp_path):
    _, tree = opened(files.tp_measurements(), tmp_path)
    with tree:
        rows = tree["prefill"].to_dataset()
        assert rows["position"].values.tolist() == [-3, -2, -1]
        assert "no token ids" in rows["position"].attrs["long_name"]
        assert (rows["token_id"] == -1).all()
        assert rows["config"].values.tolist() == ["tp_size=1", "tp_size=2", "tp_size=4"]
        assert "references" not in tree.children and "output" not in tree.children


def test_matrices_of_two_machines_become_distances_where_each_reference_has_one(tmp_path):
    content = files.tp_verification()
    _, tree = opened(content, tmp_path)
    with tree:
        data = tree["metrics/seed_l2/prefill"]["seed_l2"]
        stated = content["cross_hardware_analysis"]["per_reference_matrices"]
        assert float(data.sel(producer="tp_size=2", config="tp_size=4", reference="ref_1")) == stated[1][1][2]
    _, tree = opened(files.attention_verification(), tmp_path, "a")
    with tree:
        assert "metrics" not in tree.children
        made = tree["analysis/legacy/decode/cross_hardware/key_vectors_l2"]["matrix"]
        assert made["config"].values.tolist() == ["eager", "sdpa", "flash_attention_2"]


def test_activations_that_do_not_repeat_are_said_and_their_noise_not_guessed(tmp_path):
    content = files.activations()
    content["raw_activations"]["batch_size_1"][1] = [
        x + 0.5 for x in content["raw_activations"]["batch_size_1"][1]
    ]
    said, tree = opened(content, tmp_path)
    with tree:
        equal = tree["analysis/legacy/activations"]["repeats_equal"].values.tolist()
        assert equal == [False, True, True]
    line = next(line for line in said if "statistical_noise.batch_size_1.mean" in line)
    assert line.endswith(
        "1 of 1 not computable: the repeats differ, and the file does not say how it was computed"
    )


NOTHING = [
    ({"prefill_distances": {"pos_-1": 0.5, "pos_-2": 0.25}}, "got prefill_distances: ['pos_-1', 'pos_-2']"),
    ({"prefill_distances": {"logprobs_mean": math.inf, "logprobs_max": math.inf}}, "no number was read"),
    ({"other": 1}, "no number was read in 1 comparisons"),
]


@pytest.mark.parametrize(("distances", "said"), NOTHING, ids=["positions", "infinite", "other"])
def test_a_verification_of_which_no_number_is_read_is_refused(tmp_path, distances, said):
    entry = {"ref_idx": 0, "claimed_config": "awq", "verify_config": "awq", "is_diagonal": True, **distances}
    content = {"metadata": {}, "comparisons": [entry]}
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(QdxError) as raised:
        convert(tmp_path / "f.json", tmp_path / "f.nc")
    assert said in str(raised.value)
    assert not (tmp_path / "f.nc").exists()


def test_a_file_of_another_form_is_refused_with_the_forms_that_are_known(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps({"token_sequences": [[1]], "config": {}}))
    with pytest.raises(QdxError, match=r"expected one of the keys comparisons, generations, .*got token_seq"):
        convert(tmp_path / "f.json", tmp_path / "f.nc")


BAD = [
    ("verification", ("comparisons", 4, "is_diagonal"), True, "comparisons[4].is_diagonal: got true"),
    ("verification", ("comparisons", 3, "ref_idx"), "0", 'comparisons[3].ref_idx: got "0"'),
    ("verification", ("comparisons", 1), "again", "expected it once"),
    ("verification", ("comparisons", 0, "prefill_distances", "logprobs_mean"), "x", "logprobs_mean: got"),
    ("verification", ("prefill_analysis", "matrix", 0), [1.0], "prefill_analysis.matrix[0]: got 1 entries"),
    ("verification", ("prefill_analysis", "per_reference_matrices"), [], "expected one matrix or more"),
    ("verification", ("prefill_analysis", "excluded_pairs"), [["awq"]], "excluded_pairs[0]: got 1 entries"),
    ("batch_verification", ("comparisons", 0, "claimed_batch_size"), 1.5, "claimed_batch_size: got 1.5"),
    ("batch_measurements_vllm", ("measurements", 0, "batch_size"), 3, "measurements[0].batch_size: got 3"),
    ("batch_measurements_vllm", ("measurements", 1, "batch_size"), 1, "at reference ref_0 again"),
    ("batch_measurements_vllm", ("measurements", 0, "prompt_length"), 3, "prompt_length: got 3, expected 12"),
    ("batch_measurements_vllm", ("measurements", 0, "generated_ids"), ..., "num_generated: got 6"),
    ("batch_measurements_vllm", ("metadata", "batch_sizes"), ..., "expected one, such as batch_sizes"),
    ("batch_measurements_transformers", ("measurements", 0, "generated_ids"), ..., "generated_ids beside"),
    ("batch_measurements_transformers",
     ("measurements", 0, "decode_signals", "pos_-3", "absolute_position"), 9, "got 9, expected 14"),
    ("tp_measurements", ("metadata", "tp_sizes"), [1, 2], "metadata: got the lists tp_sizes"),
    ("tp_verification", ("metadata", "tp_sizes"), [1, 2], "expected a list of so many configs in metadata"),
    ("activations_of_layers", ("raw_activations", "layer_1", 0), [1.0], "one vector for each repeat"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "path", "value", "said"), BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)]
)
def test_a_malformed_file_is_refused_with_the_path_of_the_bad_key(tmp_path, form, path, value, said):
    content = json.loads(json.dumps(files.FORMS[form]()))
    if form == "tp_verification":
        del content["metadata"]["reference_environments"], content["metadata"]["verifier_environments"]
    *parents, last = path
    at = content
    for key in parents:
        at = at[key]
    if value is ...:
        del at[last]
    elif value == "again":
        at[last] = at[0]
    else:
        at[last] = value
    (tmp_path / "f.json").write_text(json.dumps(content))
    with pytest.raises(QdxError) as raised:
        convert(tmp_path / "f.json", tmp_path / "f.nc")
    assert said in str(raised.value)
    assert not (tmp_path / "f.nc").exists()
