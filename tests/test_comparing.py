"""Sweeps of several machines are compared by tokens, row by row, and what cannot be compared is said."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import qdx
from qdx import compare as command
from qdx.dataset import merge
from qdx.errors import QdxError
from qdx.verification.machine_blocks import as_object
from qdx.verification.machine_names import LONGEST, machine_names
from qdx.verification.machine_rows import Side
from qdx.verification.machines import Comparison, Pair, compare
from tests import helpers
from tests.analysis import replaying
from tests.helpers import write_sweep
from tests.sweeping import qdx as run

LABELS = ["awq", "awq_marlin", "gptq"]
RESULTS = Path(__file__).parent.parent / "docs" / "results"
Groups = dict[str, xr.Dataset]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_sweep(tmp_path_factory.mktemp("machines") / "one", LABELS, repeats=2)
    merge(made, made / "sweep.nc")
    return made


@pytest.fixture(scope="module")
def tree(folder: Path) -> xr.DataTree:
    """The record in memory, without full rows."""
    with qdx.open(folder / "sweep.nc", trust=True) as opened:
        return opened.load()


def changed(tree: xr.DataTree, edit: Callable[[Groups], object]) -> xr.DataTree:
    """A copy whose groups `edit` has changed: another machine's record."""
    groups = {"/": xr.Dataset(attrs=tree.attrs)}
    groups |= {name: child.to_dataset().copy(deep=True) for name, child in tree.children.items()}
    groups |= {
        path: node.to_dataset().copy(deep=True)
        for path, node in tree.subtree_with_keys
        if path.count("/") > 0
    }
    edit(groups)
    return xr.DataTree.from_dict(groups)


def on(gpu: str, more: Callable[[Groups], object] = lambda groups: None) -> Callable[[Groups], object]:
    """Say that another card computed it."""

    def edit(groups: Groups) -> None:
        for phase in ("prefill", "decode", "replay"):
            count = groups[phase].sizes["config"]
            groups[phase] = groups[phase].assign_coords(gpu=("config", np.array([gpu] * count, object)))
        more(groups)

    return edit


def compared(*trees: xr.DataTree) -> Comparison:
    return compare([Side(tree, f"s{i}") for i, tree in enumerate(trees)])


def at(found: Comparison, phase: str, config: str) -> Pair:
    (pair,) = [one for one in found.pairs if (one.phase, one.config) == (phase, config)]
    return pair


def captured(tree: xr.DataTree, phase: str, config: str) -> int:
    return int(tree[f"{phase}/captured"].sel(config=config).isel(repeat=0).sum())


def test_a_copy_is_equal_in_every_row_and_one_class(tree: xr.DataTree) -> None:
    found = compared(tree, changed(tree, on("NVIDIA H200")))
    assert found.all_equal and len(found.pairs) == 9 and not found.refused
    for pair in found.pairs:
        assert pair.rows == pair.equal == captured(tree, pair.phase, pair.config) > 0
        assert pair.drift == pair.greatest == pair.distance == 0 and pair.distance_of == "sketches"
    # gptq does not repeat in decode and replay: there it is a class by itself, whatever equals it.
    for phase in ("prefill", "decode", "replay"):
        of = found.classes[phase]
        for config in LABELS:
            alone = config == "gptq" and phase != "prefill"
            assert (of[0, config] == of[1, config]) is not alone
        assert len({of[0, config] for config in LABELS}) == 3
    assert found.facts["GPU"] == ["not stated", "NVIDIA H200"]


def test_as_many_rows_are_unequal_as_were_changed(tree: xr.DataTree) -> None:
    def flip(groups: Groups) -> None:
        hashes = groups["replay"]["row_hash"]
        where = np.argwhere(groups["replay"]["captured"].sel(config="awq").isel(repeat=0).values)[:5]
        for reference, position in where:
            hashes.loc[{"config": "awq"}][0, reference, position] ^= np.uint64(1)

    found = compared(tree, changed(tree, on("NVIDIA H200", flip)))
    rows = captured(tree, "replay", "awq")
    assert (at(found, "replay", "awq").rows, at(found, "replay", "awq").equal) == (rows, rows - 5)
    assert not found.all_equal
    assert found.classes["replay"][0, "awq"] != found.classes["replay"][1, "awq"]
    assert found.classes["replay"][0, "awq_marlin"] == found.classes["replay"][1, "awq_marlin"]
    assert at(found, "prefill", "awq").equal == at(found, "prefill", "awq").rows


def test_prompts_are_matched_by_tokens_whatever_they_are_called_and_in_whatever_order(
    tree: xr.DataTree,
) -> None:
    def rename(groups: Groups) -> None:
        for name, data in groups.items():
            if "reference" in data.dims:
                turned = data.isel(reference=[2, 0, 1])
                groups[name] = turned.assign_coords(reference=np.array(["ref_0", "ref_1", "ref_2"], object))

    found = compared(tree, changed(tree, on("NVIDIA H200", rename)))
    assert found.all_equal and at(found, "prefill", "awq").rows == captured(tree, "prefill", "awq")


def test_a_prompt_of_one_name_and_other_tokens_is_not_compared(tree: xr.DataTree) -> None:
    def other(groups: Groups) -> None:
        groups["references"]["token_ids"][1, 0] += 1

    found = compared(tree, changed(tree, other))
    rows = tree["prefill/captured"].sel(config="awq").isel(repeat=0, reference=[0, 2]).sum()
    assert at(found, "prefill", "awq").rows == int(rows)
    assert any("2 of 4 prompts are in one only" in why for _, why in found.refused)

    def all_other(groups: Groups) -> None:
        groups["references"]["token_ids"][:, 0] += 1

    with pytest.raises(QdxError, match="no prompt in common"):
        compared(tree, changed(tree, all_other))


def test_replay_is_compared_up_to_where_the_continuations_part(tree: xr.DataTree) -> None:
    def part(groups: Groups) -> None:
        groups["references"]["continuation"][0, 3] += 1

    found = compared(tree, changed(tree, part))
    lengths = tree["references/length"].values
    mask = tree["replay/captured"].sel(config="awq").isel(repeat=0).values.copy()
    position = tree["replay/position"].values
    mask[0] &= position <= lengths[0] + 3  # token 3 is consumed at L + 4
    assert at(found, "replay", "awq").rows == int(mask.sum()) < captured(tree, "replay", "awq")
    assert at(found, "prefill", "awq").rows == captured(tree, "prefill", "awq")


def test_free_decode_is_compared_up_to_the_row_that_predicts_the_first_differing_token(
    tree: xr.DataTree,
) -> None:
    def part(groups: Groups) -> None:
        groups["output"]["token_id"].loc[{"config": "awq_marlin", "reference": "ref_1"}][0, 2] += 1

    found = compared(tree, changed(tree, part))
    expected = 0
    rows = tree["decode"].sel(config="awq_marlin").isel(repeat=0)
    for r, length in enumerate(tree["references/length"].values):
        for p, position in enumerate(rows["position"].values):
            same = r != 1 or position <= length + 2
            expected += bool(rows["captured"].values[r, p]) and same
    assert at(found, "decode", "awq_marlin").rows == expected < captured(tree, "decode", "awq_marlin")


def test_other_weights_are_refused_and_unstated_ones_are_said(tree: xr.DataTree) -> None:
    def stating(digests: dict[str, str]) -> Callable[[Groups], object]:
        def edit(groups: Groups) -> None:
            values = [json.dumps({"/x/model.safetensors": digests.get(label, "aa")}) for label in LABELS]
            groups["provenance"]["weights_sha256"] = ("config", np.array(values, object))

        return edit

    one = changed(tree, stating({}))
    found = compared(one, changed(tree, stating({"gptq": "bb"})))
    assert {pair.config for pair in found.pairs} == {"awq", "awq_marlin"}
    assert [what.partition(":")[0] for what, why in found.refused if "other weights" in why] == ["gptq"]
    assert not found.remarks
    assert any("does not state the weights" in remark for remark in compared(one, tree).remarks)


def test_other_tokenizers_and_vocabularies_are_refused(tree: xr.DataTree) -> None:
    def tokenizer(groups: Groups) -> None:
        groups["provenance"]["tokenizer_sha256"] = ("config", np.array(["u" * 64] * 3, object))

    with pytest.raises(QdxError, match="other tokenizer"):
        compared(tree, changed(tree, tokenizer))
    third = compared(tree, changed(tree, on("NVIDIA H200")), changed(tree, tokenizer))
    assert {pair.machines for pair in third.pairs} == {(0, 1)} and len(third.refused) == 2


def test_a_config_of_one_machine_is_named_and_no_pair_is_made_of_it(tree: xr.DataTree) -> None:
    fewer = changed(tree, lambda groups: groups.update({
        name: data.sel(config=["awq"]) for name, data in groups.items() if "config" in data.dims
    }))  # fmt: skip
    found = compared(tree, fewer)
    assert {pair.config for pair in found.pairs} == {"awq"}
    assert [what for what, why in found.refused if "only" in why] == ["awq_marlin, gptq"]


def test_rows_without_numbers_are_counted_and_do_not_look_equal(tree: xr.DataTree) -> None:
    def lose(groups: Groups) -> None:
        groups["prefill"]["target_logit"].loc[{"config": "awq"}][0, 0, :2] = np.nan

    found = compared(tree, changed(tree, lose))
    pair = at(found, "prefill", "awq")
    assert pair.not_numbers == 2 and np.isfinite(pair.drift)
    assert "rows without numbers" in command.text(found)
    json.dumps(as_object(found), allow_nan=False)


def test_distances_of_full_rows_are_those_of_the_log_probabilities(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(helpers.CONFIGS, "awq", ("awq", "awq_gemm", 1, 5, 0.0))  # other rounding errors
    other = write_sweep(tmp_path / "two", ["awq"], repeats=1)
    found = command.compare_files([folder, other], trust=True)
    pair = at(found, "replay", "awq")
    rows = [qdx.open(place, trust=True)["replay"].to_dataset().sel(config="awq").isel(repeat=0)
            for place in (folder, other)]  # fmt: skip
    logs = []
    for one in rows:
        logit = one["logit"].transpose("reference", "position", "vocab").values.astype(np.float64)
        logs.append(logit - np.log(np.exp(logit).sum(-1, keepdims=True)))
    l2 = np.sqrt(((logs[0] - logs[1]) ** 2).sum(-1))[rows[0]["captured"].values.astype(bool)]
    assert pair.distance_of == "full rows" and pair.equal == 0
    assert pair.distance == pytest.approx(l2.mean(), rel=1e-9) and pair.distance > 0.01
    by_sketch = command.compare_files([folder, other], full_rows=False, trust=True)
    estimate = at(by_sketch, "replay", "awq")
    assert estimate.distance_of == "sketches" and estimate.distance == pytest.approx(l2.mean(), rel=0.5)


def test_verifiers_sweeps_are_compared_where_they_replayed_the_same_transcripts() -> None:
    noise = {"a": 0.0, "b": 0.0}
    sides = [replaying.trees(noise, references=4, tokens=6)[1] for _ in range(2)]
    for tree in sides:
        ids = np.arange(4 * replaying.LENGTH, dtype=np.int32).reshape(4, -1)
        references = tree["references"].to_dataset() if "references" in tree.children else xr.Dataset()
        names = tree["replay"]["reference"].values
        tree["references"] = xr.DataTree(references.assign(
            token_ids=(("reference", "token"), ids),
            length=("reference", np.full(4, replaying.LENGTH)),
        ).assign_coords(reference=names))  # fmt: skip
    found = compared(*sides)
    pair = at(found, "replay", "a")
    assert pair.rows == pair.equal == 2 * 4 * 6  # producers, references, tokens
    replay = sides[1]["replay"].to_dataset().copy(deep=True)
    replay["token_id"].loc[{"producer": "b", "reference": "ref_2"}] += 1
    sides[1]["replay"] = xr.DataTree(replay)
    assert at(compared(*sides), "replay", "a").rows == 7 * 6


def test_one_sweep_is_not_compared(tree: xr.DataTree) -> None:
    with pytest.raises(QdxError, match="1 sweep given: give two or more"):
        compared(tree)


def test_an_h100_and_an_h200_give_the_rows_that_the_results_page_states() -> None:
    found = command.compare_files(
        [RESULTS / "h100_vllm_0_20_2" / "demo", RESULTS / "h200_vllm_0_20_2" / "demo"], trust=True
    )
    assert found.names == ["H100 vllm 0.20.2", "H200 vllm 0.20.2"]
    counts = {(one.phase, one.config): (one.equal, one.rows) for one in found.pairs}
    for config in ("none", "awq", "awq_marlin", "awq_machete", "gptq_marlin", "gptq_machete"):
        assert counts["prefill", config] == (408, 408)
        assert counts["decode", config] == counts["replay", config] == (124, 124)
    assert counts["prefill", "gptq"] == (408, 408)
    assert counts["decode", "gptq"] == counts["replay", "gptq"] == (0, 124)
    printed = command.text(found)
    assert "5*" in printed and max(map(len, printed.splitlines())) <= 110


FACTS = st.fixed_dictionaries(
    {
        name: st.one_of(st.sampled_from(["", "NVIDIA H100 80GB HBM3", "1", "0.20.2"]), st.text(max_size=60))
        for name in ("gpu", "cpu", "backend", "backend_version", "threads", "driver_version", "host", "path")
    }
)


@given(facts=st.lists(FACTS, min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_names_of_machines_are_short_printable_and_never_alike(facts: list[dict[str, str]]) -> None:
    names = machine_names(facts)
    assert len(set(names)) == len(names) == len(facts)
    for name in names:
        assert len(name) <= LONGEST and "\n" not in name and not re.search("[\x00-\x1f\x7f-\x9f]", name)


def test_the_command_prints_writes_a_page_and_ends_as_documented(folder: Path, tmp_path: Path) -> None:
    one, two = folder / "sweep.nc", Path(shutil.copytree(folder, tmp_path / "t\x1b[2Jwo"))
    done = run(str(one), str(two), "--html", "c.html", "--equal", cwd=tmp_path, module="qdx.compare")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout and "bit-equal" in done.stdout
    page = (tmp_path / "c.html").read_text(encoding="utf-8")
    assert "default-src &#39;none&#39;" in page and "\x1b" not in page and "Classes over configs" in page
    asked = run(str(one), str(two), "--json", cwd=tmp_path, module="qdx.compare")
    assert json.loads(asked.stdout)["all_equal"] is True
    nowhere = run(str(one), "nowhere", cwd=tmp_path, module="qdx.compare")
    assert nowhere.returncode == 2 and nowhere.stderr.count("\n") == 1 and "Traceback" not in nowhere.stderr


def test_equal_exits_with_3_for_an_unequal_row_and_4_for_what_was_not_compared(
    tree: xr.DataTree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flip(groups: Groups) -> None:
        groups["replay"]["row_hash"].loc[{"config": "awq"}][0] += np.uint64(1)

    def fewer(groups: Groups) -> None:
        del groups["decode"]

    for edit, status in ((flip, 3), (fewer, 4)):
        found = compared(tree, changed(tree, edit))
        monkeypatch.setattr(command, "compare_files", lambda *_, found=found, **__: found)
        assert command.main(["a", "b", "--equal"]) == status
        assert command.main(["a", "b"]) == 0
    capsys.readouterr()
