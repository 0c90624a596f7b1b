"""Files of strangers: a one-line error or the right result, in linear time and bounded memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import pytest

import qdx
from qdx.errors import QdxError, printable
from qdx.legacy import convert, reading
from tests.legacy import files

ROW = {"logprobs": {"token_ids": [1], "log_probs": [-0.5]}}


def run(text: str, folder, *more: str):
    """The command line on a file, under 3 GB of memory."""
    (folder / "f.json").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "qdx.legacy", str(folder / "f.json"), str(folder / "f.nc"), *more]
    limit = 3 * 2**30
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip


def refused(done, said: str, folder) -> None:
    """Exit status 2 and one line that says it, and nothing written."""
    assert done.returncode == 2, done.stderr[-2000:]
    assert said in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("qdx.legacy: error: ")
    assert not list(folder.glob("f.nc*"))


def refused_here(content, said: str, folder) -> None:
    """The same in this process, which is quicker: an error of one line, and nothing written."""
    (folder / "f.json").write_text(
        content if isinstance(content, str) else json.dumps(content), encoding="utf-8"
    )
    with pytest.raises(QdxError) as raised:
        convert(folder / "f.json", folder / "f.nc")
    message = str(raised.value)
    assert said in message
    assert message == printable(message) and "\n" not in message
    assert not list(folder.glob("f.nc*"))


def one_config(**changed):
    """A small result file, of one config and reference."""
    run_of = {
        "ref_idx": 0, "prompt_ids": [1, 2, 3], "generated_ids": [4, 5], "prompt_length": 3,
        "num_generated": 2,
        "prefill_signals": {"pos_-1": ROW}, "decode_signals": {"pos_-1": ROW},
    }  # fmt: skip
    return {
        "metadata": {
            "model_configs": {"awq": {"model_name": "m", "quantization": "awq", "dtype": "float16"}}
        },
        "generations": {"awq": [{**run_of, **changed}]},
    }


def test_rows_spread_over_many_positions_are_refused_before_a_table_is_made(tmp_path):
    """30 references of 3,000 rows each, none where another has one: 30 × 90,000 positions of 30 ids."""
    content = one_config()
    runs = []
    for r in range(30):
        length = 100_000
        rows = {f"pos_-{1 + r + 30 * i}": ROW for i in range(3000)}
        runs.append({**content["generations"]["awq"][0], "ref_idx": r, "prompt_ids": [7] * length,
                     "prompt_length": length, "prefill_signals": rows})  # fmt: skip
    wide = {"logprobs": {"token_ids": list(range(30)), "log_probs": [-0.5] * 30}}
    runs[0]["prefill_signals"]["pos_-1"] = wide
    content["generations"]["awq"] = runs
    refused(
        run(json.dumps(content), tmp_path),
        "log-probabilities of prefill would need 1 × 30 × 90,000",
        tmp_path,
    )


def test_prompts_of_which_one_is_long_are_refused_as_a_table(tmp_path):
    content = one_config()
    first = content["generations"]["awq"][0]
    content["generations"]["awq"] = [
        {**first, "ref_idx": r, "prompt_ids": [7] * length, "prompt_length": length}
        for r, length in enumerate([100_000, *[3] * 999])
    ]
    refused(
        run(json.dumps(content), tmp_path), "token ids of the prompts would need 1,000 × 100,000", tmp_path
    )


def test_configs_and_references_that_never_meet_are_refused_as_a_table(tmp_path):
    content = one_config()
    model, first = content["metadata"]["model_configs"]["awq"], content["generations"]["awq"][0]
    names = [f"c{i}" for i in range(8000)]
    content["metadata"]["model_configs"] = dict.fromkeys(names, model)
    content["generations"] = {name: [{**first, "ref_idx": i}] for i, name in enumerate(names)}
    refused(run(json.dumps(content), tmp_path), "the table of generations would need 8,000 × 8,000", tmp_path)
    entries = [
        {"ref_idx": i, "claimed_config": f"c{i}", "verify_config": f"v{i}", "is_diagonal": False,
         "prefill_distances": {"logprobs_mean": 0.5}}
        for i in range(2000)
    ]  # fmt: skip
    text = json.dumps({"metadata": {}, "comparisons": entries})
    refused_here(text, "distances would need 2,000 × 2,000 × 2,000", tmp_path)


def test_more_positions_than_any_real_file_has_are_refused(tmp_path):
    content = one_config(prefill_signals={f"pos_-{i}": ROW for i in range(1, 200_002)})
    refused(run(json.dumps(content), tmp_path), "got 200,001 positions, limit 100,000", tmp_path)


@pytest.mark.slow
def test_time_is_linear_in_the_positions(tmp_path):
    """Four times the positions may not take more than seven times as long; quadratic would be sixteen."""
    seconds = {}
    for count in (4000, 16_000):
        content = one_config(
            prompt_ids=[7] * count,
            prompt_length=count,
            prefill_signals={f"pos_-{i}": ROW for i in range(1, count + 1)},
        )
        (tmp_path / "f.json").write_text(json.dumps(content))
        least = []
        for _ in range(3):
            start = time.process_time()
            convert(tmp_path / "f.json", tmp_path / "f.nc")
            least.append(time.process_time() - start)
        seconds[count] = min(least)
        with qdx.open(tmp_path / "f.nc") as tree:
            assert tree["prefill"]["captured"].sum() == count
    assert seconds[16_000] < 7 * seconds[4000]


NUMBERS = [
    (("ref_idx",), 1e22, "ref_idx: got 1e+22, expected a whole number"),
    (("ref_idx",), 10**22, "ref_idx: got 10000000000000000000000, expected a whole number"),
    (("prompt_ids",), [1, 1e22, 3], "prompt_ids[1]: got 1e+22, expected a whole number"),
    (("prompt_length",), 1e22, "prompt_length: got 1e+22, expected a whole number"),
    (("decode_signals",), {"pos_-1": {"logprobs": {"token_ids": [1], "log_probs": [10**400]}}},
     "expected a number below 1.8e308"),
    (("decode_signals",), {"pos_-99999999999": ROW}, ""),  # no position: kept as an attribute
    (("prefill_signals",), {"pos_-999999999": ROW}, "got a position before the first token"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "said"), NUMBERS, ids=[str(i) for i in range(len(NUMBERS))])
def test_numbers_of_any_size_are_refused_or_read(tmp_path, path, value, said):
    content = one_config(**{path[0]: value})
    if said:
        refused_here(content, said, tmp_path)
    else:
        (tmp_path / "f.json").write_text(json.dumps(content))
        assert convert(tmp_path / "f.json", tmp_path / "f.nc")


@pytest.mark.parametrize("value", ["1e22", "1" + "0" * 22, "-1" + "0" * 30, "1" + "0" * 4000, "1e999", "NaN"])
def test_numbers_of_any_size_in_what_is_only_kept_do_not_end_in_a_traceback(tmp_path, value):
    text = json.dumps(files.verification()).replace('"20251130_120000"', value)
    assert value in text
    (tmp_path / "f.json").write_text(text)
    convert(tmp_path / "f.json", tmp_path / "f.nc")
    with qdx.open(tmp_path / "f.nc") as tree:
        kept = str(tree.attrs["legacy: metadata.timestamp"])
        assert kept in (value, {"1e22": "1e+22", "1e999": "inf", "NaN": "nan"}.get(value))


def test_an_integer_beyond_what_python_prints_is_no_json(tmp_path):
    refused(run('{"comparisons": [' + "9" * 5000 + "]}", tmp_path), "not a JSON file", tmp_path)


def test_numbers_whose_squares_overflow_are_not_measured(tmp_path):
    content = json.loads(json.dumps(files.results()))
    rows = [
        content["generations"][name][0]["prefill_signals"]["pos_-1"]["logprobs"] for name in ("awq", "gptq")
    ]
    for row, value in zip(rows, (-1e200, 1e200), strict=True):
        row["log_probs"] = [value] * len(row["log_probs"])
    done = run(json.dumps(content), tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    with qdx.open(tmp_path / "f.nc") as tree:
        assert tree["metrics/seed_l2/prefill"]["seed_l2"].attrs["infinite"] > 0


SURROGATE = "\ud800"


def test_halves_of_a_surrogate_pair_become_replacement_characters(tmp_path):
    content = files.results()
    content["metadata"]["environment"] = {**files.MACHINE, "hostname": f"a{SURROGATE}b", f"k{SURROGATE}": "x"}
    content["metadata"]["remark"] = [SURROGATE, {SURROGATE: SURROGATE}]
    content["metadata"]["model_configs"]["awq"]["model_name"] = SURROGATE
    done = run(json.dumps(content), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with qdx.open(tmp_path / "f.nc") as tree:
        assert str(tree["provenance"]["hostname"].values[0]) == "a\ufffdb"
        assert str(tree["provenance"]["model_name"].sel(config="awq").values) == "\ufffd"
        assert json.loads(tree.attrs["legacy: metadata.remark"]) == ["\ufffd", {"\ufffd": "\ufffd"}]


def test_keys_that_become_the_same_by_it_are_refused(tmp_path):
    refused_here('{"\\ud800": 1, "\\ud801": 2}', "stands twice", tmp_path)


NAMES = ["a\x00", "a\x00b", SURROGATE, "a\x1b[2J", "a\nb", "a/b", " a", "a\u200b", "a\u202eb", "", "x" * 201]


@pytest.mark.parametrize("bad", NAMES, ids=[ascii(n)[:12] for n in NAMES])
@pytest.mark.parametrize("form", ["generations", "verification", "reference"])
def test_a_label_that_no_file_or_terminal_should_hold_is_refused(tmp_path, form, bad):
    if form == "generations":
        content = one_config()
        content["metadata"]["model_configs"][bad] = content["metadata"]["model_configs"].pop("awq")
        content["generations"][bad] = content["generations"].pop("awq")
    elif form == "verification":
        content = files.verification()
        for entry in content["comparisons"]:
            for key in ("claimed_config", "verify_config"):
                entry[key] = bad if entry[key] == "awq" else entry[key]
    else:
        content = files.batch_verification()
        content["comparisons"][0]["ref_name"] = bad
    refused_here(content, "got the name", tmp_path)


@pytest.mark.parametrize("bad", ["a\x00", SURROGATE, "a\x1b[2J"], ids=["nul", "surrogate", "escape"])
def test_such_a_label_is_refused_on_the_command_line_without_acting_on_the_terminal(tmp_path, bad):
    text = json.dumps(one_config()).replace('"awq":', f"{json.dumps(bad)}:")
    done = run(text, tmp_path)
    refused(done, "got the name", tmp_path)
    assert "\x1b" not in done.stderr and "\x00" not in done.stderr


def test_what_is_written_is_opened_again(tmp_path):
    """NUL in a text that is not a label: qdx wrote files that it then refused."""
    content = files.results()
    content["metadata"]["environment"] = {
        **files.MACHINE,
        "hostname": "a\x00b",
        "x\x00y": "\x00",
        "": "e",
        "config": "c",
    }
    content["metadata"]["n\x00te"] = "\x00"
    content["metadata"]["model_configs"]["gptq"]["dtype"] = "\x00float16\x00"
    assert run(json.dumps(content), tmp_path).returncode == 0
    with qdx.open(tmp_path / "f.nc") as tree:
        assert str(tree["decode"]["dtype"].sel(config="gptq").values) == "\ufffdfloat16\ufffd"
        assert tree.attrs["legacy: metadata.n\ufffdte"] == "\ufffd"


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"comparisons": ' * 5000,
        '{"metadata": {}, "comparisons": ' + "[" * 3000 + "]" * 3000 + "}",
    ],
    ids=["lists", "objects", "within"],
)
def test_deep_files_are_refused_in_one_line(tmp_path, text):
    done = run(text, tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_a_file_larger_than_the_limit_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "f.json").write_text(json.dumps(files.results()))
    monkeypatch.setattr(reading, "MOST_BYTES", 1000)
    with pytest.raises(QdxError, match="bytes, limit 1,000"):
        convert(tmp_path / "f.json", tmp_path / "f.nc")


def test_unknown_keys_without_end_are_counted_and_not_all_kept(tmp_path):
    content = files.verification()
    content["metadata"] |= {f"k{i}": i for i in range(20_000)}
    done = run(json.dumps(content), tmp_path)
    assert done.returncode == 0
    assert "other keys of the file are not kept" in done.stdout
    with qdx.open(tmp_path / "f.nc") as tree:
        assert 1000 < len(tree.attrs) < 1100


def test_a_duplicate_key_among_very_many_is_found_at_once(tmp_path):
    text = "{" + ",".join(f'"k{i}": 1' for i in range(300_000)) + ', "k299999": 2}'
    start = time.monotonic()
    refused(run(text, tmp_path), "'k299999' stands twice", tmp_path)
    assert time.monotonic() - start < 60


ODD = ["@x", "-", ".", " lead", "a b", "9", "é", "-_-", "x" * 300, "\u202e", "config", "reference", "string7"]


def test_facts_of_a_machine_may_have_any_names(tmp_path):
    content = one_config()
    content["metadata"]["environment"] = dict.fromkeys(ODD, "value")
    content["metadata"] |= dict.fromkeys(ODD, "value")
    (tmp_path / "f.json").write_text(json.dumps(content))
    convert(tmp_path / "f.json", tmp_path / "f.nc")
    with qdx.open(tmp_path / "f.nc") as tree:
        assert "value" in {str(tree["provenance"][name].values[0]) for name in tree["provenance"].data_vars}
    (tmp_path / "f.nc").unlink()
    content["metadata"]["environment"] = {f"k{i}": "v" for i in range(201)}
    refused_here(content, "metadata.environment: got 201 facts, limit 200", tmp_path)


def test_names_of_signals_and_keys_are_words(tmp_path):
    for bad in ("@a", "a b", "a/b", "é", "x" * 65, "a\x00"):
        content = files.verification()
        content["comparisons"][0]["prefill_distances"] = {f"{bad}_mean": 0.5}
        refused_here(content, "expected a name of letters, digits and underscores", tmp_path)


def test_places_from_the_end_fit_the_files_integers(tmp_path):
    content = files.tp_measurements()
    content["measurements"]["1"][0]["prefill_signals"] |= {"pos_-999999999": ROW, "pos_-9999999999": ROW}
    (tmp_path / "f.json").write_text(json.dumps(content))
    convert(tmp_path / "f.json", tmp_path / "f.nc")
    with qdx.open(tmp_path / "f.nc") as tree:
        assert tree["prefill"]["position"].values.tolist() == [-999999999, -3, -2, -1]


@pytest.mark.parametrize("depth", [100, 900, 960, 990])
def test_a_nested_key_is_kept_or_refused_in_one_line(tmp_path, depth):
    content = json.dumps(files.verification()).replace('"20251130_120000"', "[" * depth + "]" * depth)
    done = run(content, tmp_path)
    if done.returncode:
        refused(done, "f.json", tmp_path)
    else:
        assert (done.returncode, done.stderr) == (0, "")
