"""Import of the original experiment's files."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qdx
from qdx.errors import QdxError
from qdx.legacy import convert
from tests.legacy import files


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("legacy")
    content = files.results()
    said = convert(write(folder / "results.json", content), folder / "out.nc")
    tree = qdx.open(folder / "out.nc")
    yield content, tree, said
    tree.close()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_distances_reproduce_the_matrices_of_the_file(imported, phase):
    content, tree, said = imported
    theirs = np.array(content[f"{phase}_sanity_check"]["per_reference_matrices"]).transpose(1, 2, 0)
    kept = tree[f"analysis/legacy/{phase}/seed_l2"].to_dataset()
    own = kept["per_reference"].transpose("config", "config_b", "reference").values
    finite = np.isfinite(theirs)
    assert phase == "prefill" or (~finite).sum() == 4  # gptq against both of awq, both ways
    assert np.array_equal(np.isnan(own), ~finite)
    np.testing.assert_allclose(own[finite], theirs[finite], rtol=0, atol=1e-9)
    matrix = np.array(content[f"{phase}_sanity_check"]["matrix"])
    expected = np.where(np.isfinite(matrix), matrix, np.nan)
    np.testing.assert_allclose(kept["matrix"], expected, atol=1e-9)
    np.testing.assert_allclose(kept["file_matrix"], expected, atol=0)
    np.testing.assert_allclose(kept["pair_distance"], (expected + expected.T) / 2, atol=1e-9)
    assert not np.allclose(expected, expected.T, equal_nan=True)  # or the direction would not be tested
    assert any("10 not finite in both, 8 not computable" in line and "DIFF" not in line for line in said)


def test_metrics_hold_no_distance_of_rows_after_two_outputs_split(imported):
    content, tree, _ = imported
    data = tree["metrics/seed_l2/decode"].to_dataset()["seed_l2"]
    same = data.sel(config="awq", config_b="awq_marlin", reference="ref_0")
    assert np.isfinite(same).sum() == 3
    assert not np.isfinite(data.sel(config="awq", config_b="gptq_marlin")).any()  # they part at token 4 of 10
    assert data.attrs["after_divergence"] == 2 * 2 * 2 * 3 * 3  # 8 directed pairs, 3 references, 3 rows
    # The original's own means over those rows stay beside its analyses.
    stated = content["decode_sanity_check"]["per_reference_matrices"][0][0][2]
    kept = tree["analysis/legacy/decode/seed_l2"]["per_reference"]
    assert float(kept.sel(config="awq", config_b="gptq_marlin", reference="ref_0")) == pytest.approx(stated)


def test_a_list_of_six_ids_counts_all_of_b_and_five_of_a():
    from qdx.legacy.distance import Row, row_distance

    a = Row(np.arange(6), np.zeros(6))
    b = Row(np.array([10, 11, 12, 13, 14, 5]), np.full(6, -2.0))
    c = Row(np.array([10, 11, 12, 13, 14, 0]), np.full(6, -2.0))
    assert math.isnan(row_distance(a, b))  # a's sixth id does not count
    assert row_distance(a, c) == 2.0  # c's sixth does
    assert math.isnan(row_distance(c, a))


def test_rows_positions_and_tokens_are_those_of_the_file(imported):
    content, tree, _ = imported
    run = content["generations"]["gptq_marlin"][2]
    row = tree["decode"].to_dataset().sel(config="gptq_marlin", repeat=0, reference="ref_2")
    assert row["position"].values[row["captured"].values].tolist() == [33, 34, 35]  # 26 + 10 − 3 …
    assert row.sel(position=34)["token_id"] == run["generated_ids"][-2]
    signal = run["decode_signals"]["pos_-2"]["logprobs"]
    stored = row.sel(position=34)
    listed = dict(zip(signal["token_ids"], signal["log_probs"], strict=True))
    ids = [i for i in stored["top_id"].values.tolist() if i >= 0]
    assert sorted(ids) == sorted(listed)
    assert [listed[i] for i in ids] == stored["top_logit"].values[: len(ids)].tolist()
    assert (np.diff(stored["top_logit"].values[: len(ids)]) <= 0).all()
    assert [signal["token_ids"][i] for i in stored["listed_rank"].values[: len(ids)]] == ids
    assert stored["logsumexp"] == 0
    prefill = tree["prefill"].to_dataset().sel(config="awq", repeat=0, reference="ref_0")
    assert prefill["position"].values[prefill["captured"].values].tolist() == [17, 18, 19]
    assert tree["references"]["length"].values.tolist() == [20, 23, 26]
    assert (
        tree["output/token_id"].sel(config="awq", repeat=0, reference="ref_1").values.tolist()
        == (content["generations"]["awq"][1]["generated_ids"])
    )


def test_what_is_not_in_the_file_is_absent(imported):
    _, tree, _ = imported
    for name in ("row_hash", "sketch", "target_rank", "logit"):
        assert name not in tree["decode"].to_dataset()
    assert "text" not in tree["output"].to_dataset()
    assert "prefix_length" not in tree["references"].to_dataset()
    assert "repeat_distance" not in tree["metrics/seed_l2/decode"].to_dataset()
    assert "batch_size" not in tree["decode"].to_dataset().variables


def test_noise_floors_environment_and_unknown_keys_are_kept(tmp_path):
    content = files.results()
    content["noise_floors"]["gptq"]["decode"] = math.inf
    content["surprise"] = {"a": [1, math.inf]}
    content["metadata"]["remark"] = "x" * 100_000
    content["\x10a/b\ud800"] = 3  # NetCDF takes no control character and no slash in a name, UTF-8 no half
    content["generations"]["awq"][0]["seconds"] = 1.5
    convert(write(tmp_path / "f.json", content), tmp_path / "out.nc")
    with qdx.open(tmp_path / "out.nc") as tree:
        attrs = tree.attrs
        assert json.loads(attrs["legacy: surprise"]) == {"a": [1, math.inf]}
        assert attrs["legacy: metadata.remark"] == "x" * 100_000
        assert attrs["legacy: generations.awq[0].seconds"] == 1.5
        assert attrs["legacy: _a_b\ufffd"] == 3
        assert json.loads(attrs["legacy: snr_analysis"]) == content["snr_analysis"]
        noise = tree["analysis/legacy/decode/seed_l2"]["noise_floor"].sel(config=["awq", "gptq"]).values
        assert noise[0] == 0
        assert np.isnan(noise[1])
        assert tree["provenance"]["torch_version"].values.tolist() == ["2.9.0+cu128"] * 4
        assert str(tree["decode"]["gpu"].values[0]) == "NVIDIA A100"


def test_existing_analyses_run_on_an_imported_file(imported):
    from qdx.analysis import classes, consistency, effects, noise_floor, pairs

    content, tree, _ = imported
    for analysis in (consistency, effects, pairs):
        section = analysis(tree)
        assert section.result.sizes
        assert section.blocks
    for analysis in (classes, noise_floor):
        with pytest.raises(QdxError, match="/prefill has no row_hash"):
            analysis(tree)
    words = consistency(tree).result["first_words"].sel(config="awq", reference="ref_0")
    assert str(words.values).split() == [str(i) for i in content["generations"]["awq"][0]["generated_ids"]]
    mean = pairs(tree).result["mean"].sel(metric="seed_l2", phase="prefill")
    expected = tree["analysis/legacy/prefill/seed_l2"]["matrix"].values[0, 1]
    assert float(mean[0]) == pytest.approx(expected, abs=1e-9)


def broken(content, path, value):
    """The content with one key replaced (or deleted, with value ``...``)."""
    content = json.loads(json.dumps(content))  # a deep copy would keep the prompts shared
    *parents, last = path
    at = content
    for key in parents:
        at = at[key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return content


AWQ = ("generations", "awq", 2)
LISTED = (*AWQ, "decode_signals", "pos_-3", "logprobs")
BAD = [
    ((*LISTED, "token_ids"), "x", 'generations.awq[2].decode_signals.pos_-3.logprobs.token_ids: got "x"'),
    ((*LISTED, "token_ids", 0), 1.5, "logprobs.token_ids[0]: got 1.5, expected a whole number"),
    ((*LISTED, "log_probs"), [0.0], "pos_-3.logprobs.log_probs: got 1 numbers, expected"),
    ((*LISTED, "log_probs"), ..., "pos_-3.logprobs.log_probs: got nothing, expected this key"),
    ((*LISTED, "log_probs", 0), True, "log_probs[0]: got true, expected a number"),
    ((*AWQ, "prompt_length"), 7, "awq[2].prompt_length: got 7, expected 26, the length of prompt_ids"),
    ((*AWQ, "prompt_ids", 0), 999_999, "generations.awq_marlin[2].prompt_ids: got other ids than awq has"),
    ((*AWQ, "ref_idx"), 1, "generations.awq[2].ref_idx: got 1, expected a reference that"),
    ((*AWQ, "ref_idx"), -1, "generations.awq[2].ref_idx: got -1, expected a whole number of at least 0"),
    (("metadata",), ..., "metadata: got nothing"),
    (("metadata", "model_configs", "awq"), ..., "generations.awq: got a config that metadata.model"),
    (("metadata", "model_configs", "awq", "dtype"), 5, "metadata.model_configs.awq.dtype: got 5, expected"),
    (("generations",), {}, "generations: got {}, expected at least one config"),
    (("noise_floors", "gptq", "decode"), "inf", 'noise_floors.gptq.decode: got "inf", expected a number'),
    (("decode_sanity_check", "matrix", 1), [1.0], "decode_sanity_check.matrix[1]: got 1 entries"),
    (("decode_sanity_check", "per_reference_matrices"), [], "matrices: got [], expected one matrix"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "said"), BAD, ids=[f"{i}" for i in range(len(BAD))])
def test_a_malformed_file_is_refused_with_the_path_of_the_bad_key(tmp_path, path, value, said):
    file = write(tmp_path / "f.json", broken(files.results(), path, value))
    with pytest.raises(QdxError) as raised:
        convert(file, tmp_path / "out.nc")
    assert said in str(raised.value)
    assert not (tmp_path / "out.nc").exists()


def test_text_that_is_no_json_or_names_a_key_twice_is_refused(tmp_path):
    for text, said in (
        ("{", "not a JSON file"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ("[1]", "expected an object"),
    ):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(QdxError, match=said):
            convert(tmp_path / "f.json", tmp_path / "out.nc")


def test_the_file_is_never_overwritten_by_its_conversion(tmp_path):
    file = write(tmp_path / "f.json", files.results())
    with pytest.raises(QdxError, match="is the file to read"):
        convert(file, file)
    assert json.loads(file.read_text())["metadata"]["max_new_tokens"] == 10


def test_a_matrix_that_seed_l2_does_not_reproduce_is_said(tmp_path):
    content = files.results()
    content["prefill_sanity_check"]["per_reference_matrices"][0][0][1] += 0.5
    content["prefill_sanity_check"]["per_reference_matrices"][1][0][1] = math.inf
    content["decode_sanity_check"]["off_diagonal_mean"] *= 1.001
    said = convert(write(tmp_path / "f.json", content), tmp_path / "out.nc")
    assert any("DIFFERING" in line for line in said)
    assert "  prefill_sanity_check.per_reference_matrices: 2 of 48 differ, by up to 0.5" in said
    assert any(line.startswith("  decode_sanity_check.off_diagonal_mean: 1 of 1 differ") for line in said)
    with qdx.open(tmp_path / "out.nc") as tree:
        table = tree["analysis/legacy/reproduction"].to_dataset()
        row = table.sel(entry="prefill_sanity_check.per_reference_matrices")
        assert [int(row[name]) for name in ("stated", "reproduced", "differing")] == [48, 46, 2]


def test_command_line_converts_and_refuses_in_one_line(tmp_path):
    file = write(tmp_path / "f.json", files.results())
    command = [sys.executable, "-m", "qdx.legacy", str(file), str(tmp_path / "out.nc")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 configs, 3 references" in done.stdout
    write(file, broken(files.results(), ("metadata",), ...))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "qdx.legacy: error: metadata: got nothing, expected this key: it is missing\n"
