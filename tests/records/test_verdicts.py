"""Records through the command line: what is judged, what is not, and what a stranger's file cannot do."""

from __future__ import annotations

import getpass
import json
import platform
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import qdx
from qdx.errors import QdxError
from qdx.prompts._transcript_file import read
from qdx.verification import verify
from qdx.verification.published import keyed
from tests.hostile.making import rewritten
from tests.records import FILES
from tests.sweeping import checkpoints
from tests.sweeping import qdx as run_qdx
from tests.verification.forging import read as read_groups

CLAIMS = {"tiny-greedy": "none", "tiny-sampled": "none", "tiny-hidden": "none"}
PARTS = {
    "vllm_chat_greedy.jsonl": "tiny-greedy",
    "vllm_chat_sampled_token_id.jsonl": "tiny-sampled",
    "vllm_chat_hidden_prompt.jsonl": "tiny-hidden",
}


def mixed(path: Path) -> Path:
    """Three files that vLLM wrote as one, each as the answers of another model."""
    lines = []
    for name, label in PARTS.items():
        for line in (FILES / name).read_text().splitlines():
            value = json.loads(line)
            value["response"]["model"] = label
            lines.append(json.dumps(value))
    path.write_text("\n".join([*lines, lines[0][:99]]))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> dict[str, Path]:
    """The checkpoint that vLLM served, with the tokenizer that it had then."""
    folder = tmp_path_factory.mktemp("served")
    for name, path in tiny_models.items():
        shutil.copytree(path, folder / name)
        for file in (FILES / "tokenizer").iterdir():
            shutil.copy(file, folder / name / file.name)
    return {name: folder / name for name in tiny_models}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> tuple[Path, str]:
    """Replayed two at a time: answers of unequal lengths share batches, and prompts lack answers."""
    folder = tmp_path_factory.mktemp("records")
    done = run_qdx(
        "-m", "prompts=transcripts", f"prompts.path={mixed(folder / 'mixed.jsonl')}", "quant=none,awq",
        "repeats=1", "batch_size=2", "backend.threads=1", "report.formats=[txt]", "hydra.sweep.dir=s",
        f"verify.claims={{{', '.join(f'{k}: {v}' for k, v in CLAIMS.items())}}}",
        *checkpoints(models), cwd=folder,
    )  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    return folder / "s", done.stdout + done.stderr


@pytest.fixture(scope="module")
def result(sweep: tuple[Path, str]) -> Any:
    with qdx.open(sweep[0] / "producers.nc") as made, qdx.open(sweep[0] / "sweep.nc") as here:
        return verify(made, here, claims=CLAIMS).result.load()


def test_another_prompt_than_the_providers_is_the_first_thing_that_is_said(sweep: tuple[Path, str]) -> None:
    folder, said = sweep
    first = next(line for line in said.splitlines() if line.startswith("prompts: "))
    assert "the provider's prompt has 50 tokens, the template makes 38" in first
    report = (folder / "report.txt").read_text()
    claims = report[report.index("\nClaims\n") :]
    assert claims.index("the provider's prompt has 50 tokens") < claims.index("3 claims")


def test_lines_that_could_not_be_read_are_named_and_counted(sweep: tuple[Path, str]) -> None:
    assert "1 could not be read:" in sweep[1] and "mixed.jsonl:11: it is not JSON" in sweep[1]


def test_every_claim_is_undecided_for_its_own_reason(result: Any) -> None:
    at = {str(p): i for i, p in enumerate(result["producer"].values)}
    verdicts = {
        p: (str(result["verdict"].values[i]), str(result["concerns"].values[i])) for p, i in at.items()
    }
    assert verdicts == {
        "tiny-greedy": ("undecided", "coverage"),
        "tiny-sampled": ("undecided", "coverage"),  # a line of the file is cut
        "tiny-hidden": ("undecided", "prompt"),
    }
    because = {p: str(result["because"].values[i]) for p, i in at.items()}
    assert because["tiny-sampled"].startswith("not judged: 1 line could not be read; 100 of 100 tokens drawn")
    assert because["tiny-greedy"].startswith("not judged: 1 line could not be read; ")
    assert "judged as none, as verify.claims says" in because["tiny-greedy"]
    assert "50 tokens, the one replayed here 38" in because["tiny-hidden"]
    assert "no calibration" in because["tiny-greedy"] and "assumed to do nothing" in because["tiny-greedy"]


def test_greedy_tokens_of_vllm_are_greedy_here_and_not_in_another_format(result: Any) -> None:
    one = result.sel(producer="tiny-greedy")
    tokens = one["tokens"].sum("reference").sel(config="none").item()
    greedy = one["tokens_greedy"].sum("reference")
    assert tokens == 8 + 12 + 16 + 20, "every emitted token is judged, whatever the lengths"
    assert greedy.sel(config="none").item() >= tokens - 1, "another library may decide a near-tie otherwise"
    assert greedy.sel(config="awq").item() < 0.7 * tokens


def test_answers_of_one_seed_are_one_unit(result: Any) -> None:
    each = result["units"]
    assert each.sel(producer="tiny-sampled").item() == 1
    assert each.sel(producer="tiny-greedy").item() == 4, "those that nobody answered are units of nobody"


def test_what_records_state_is_in_the_tree_for_every_transcript(sweep: tuple[Path, str]) -> None:
    with qdx.open(sweep[0] / "producers.nc") as tree:
        stated, output = tree["stated"].to_dataset().load(), tree["output"].to_dataset().load()
    sampled = stated.sel(config="tiny-sampled")
    here = sampled["group"].values >= 0
    assert here.sum() == 8 and len(set(sampled["group"].values[here])) == 1, "all have seed 11"
    assert set(sampled["seed"].values[here]) == {"11"} and set(sampled["temperature"].values[here]) == {1.0}
    assert (sampled["top_p"].values[here] == 0.95).all() and np.isnan(sampled["min_p"].values[here]).all()
    greedy = stated.sel(config="tiny-greedy")
    assert set(greedy["temperature"].values[greedy["group"].values >= 0]) == {0.0}
    assert set(greedy["finish_reason"].values[greedy["group"].values >= 0]) == {"length"}
    lengths = (output["token_id"].sel(config="tiny-greedy").values[0] >= 0).sum(-1)
    assert sorted(lengths[lengths > 0].tolist()) == [8, 12, 16, 20]
    for reference in greedy["reference"].values:
        own = output["token_id"].sel(config="tiny-greedy", reference=reference).values[0]
        count = int((own >= 0).sum())
        first, listed = (int(greedy[f"listed_{end}"].sel(reference=reference)) for end in ("first", "count"))
        assert listed == count
        logprob, top_id = (stated[name].values[first : first + listed] for name in ("logprob", "top_id"))
        assert np.isfinite(logprob).all()
        known = top_id[:, 0] >= 0
        assert (top_id[:, 0][known] == own[:count][known]).all(), "greedy: the first of the list is the token"
    hidden = stated.sel(config="tiny-hidden")
    own = hidden["group"].values >= 0
    assert (hidden["prompt_tokens"].values[own] - hidden["template_tokens"].values[own] == 12).all()


def test_replays_are_as_long_as_their_transcripts(sweep: tuple[Path, str]) -> None:
    with qdx.open(sweep[0] / "producers.nc") as made, qdx.open(sweep[0] / "none" / "run.nc") as run:
        tokens = made["output"].to_dataset()["token_id"].values[:, 0]
        captured = run["replay"].to_dataset()["captured"].isel(config=0, repeat=0)
        rows = captured.transpose("producer", "reference", "position").values.sum(-1)
        assert str(run.attrs["replay_exact"]) in ("1", "True")
    np.testing.assert_array_equal(rows, np.maximum((tokens >= 0).sum(-1) - 1, 0))


def replay_with(sweep: Path, target: Path, edit: Any, claims: dict[str, str] | None = None) -> Any:
    """The verdicts of a records file that was changed after the replay."""
    path = rewritten(sweep / "producers.nc", target, edit)
    with qdx.open(path) as made, qdx.open(sweep / "sweep.nc") as here:
        return verify(made, here, claims=claims or CLAIMS).result.load()


def test_sampled_output_is_never_judged_by_greedy_tests_whatever_version_the_file_says(
    sweep: tuple[Path, str], tmp_path: Path
) -> None:
    def old(groups: dict[str, xr.Dataset]) -> None:
        count = groups["provenance"].sizes["config"]
        groups["provenance"]["schema_version"] = ("config", np.array(["1"] * count, object))
        groups["provenance"]["sampling"] = ("config", np.array([""] * count, object))

    result = replay_with(sweep[0], tmp_path / "old.nc", old)
    assert set(result["verdict"].values) == {"undecided"}
    assert set(result["plain_greedy"].values) == {"not stated"}


def test_a_record_without_a_claim_is_asked_for_one_and_says_what_fits(sweep: tuple[Path, str]) -> None:
    with qdx.open(sweep[0] / "producers.nc") as made, qdx.open(sweep[0] / "sweep.nc") as here:
        result = verify(made, here).result
    because = str(result["because"].sel(producer="tiny-greedy").values)
    assert "'verify.claims={tiny-greedy: …}', one of none, awq" in because
    assert "none 5" in because and "of 56 tokens greedy" in because
    assert "greedy;" not in str(result["because"].sel(producer="tiny-sampled").values)


def test_a_file_of_records_with_rows_is_refused(sweep: tuple[Path, str], tmp_path: Path) -> None:
    def with_rows(groups: dict[str, xr.Dataset]) -> None:
        groups["decode"]["captured"][:] = True

    def with_a_hole(groups: dict[str, xr.Dataset]) -> None:
        groups["output"]["token_id"].values[0, 0, 0, 1] = -1

    for edit, said in (
        (with_rows, "a file of records has no rows"),
        (with_a_hole, "a transcript has a hole"),
    ):
        with pytest.raises(QdxError, match=said):
            read(rewritten(sweep[0] / "producers.nc", tmp_path / "changed.nc", edit))


def test_the_same_records_are_not_read_twice(sweep: tuple[Path, str], models: dict[str, Path]) -> None:
    """Every config of the sweep replayed one file, whose hash is in each."""
    hashes = {
        str(read_groups(sweep[0] / label / "run.nc")["/"].attrs["transcripts_sha256"])
        for label in ("none", "awq")
    }
    assert hashes == {read(sweep[0] / "producers.nc").sha256}


def test_a_file_that_cannot_be_used_ends_the_sweep_before_it_starts(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"doc_id": 0, "arguments": {}, "resps": [[]]}\n')
    done = run_qdx(
        "-m", "prompts=transcripts", f"prompts.path={path}", "quant=none", "hydra.sweep.dir=s",
        *checkpoints(models), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "read as lm_eval, no answer can be replayed" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "s" / "sweep.json").exists()


def lying(path: Path) -> Path:
    """Six answers: one shows another text than its ids, one another prompt, and two share a name."""
    lines = [json.loads(line) for line in (FILES / "vllm_chat_greedy.jsonl").read_text().splitlines()]
    values = [*lines, json.loads(json.dumps(lines[0])), json.loads(json.dumps(lines[1]))]
    for i, value in enumerate(values):
        value["custom_id"] = f"r{i % 5}"
        value["response"] |= {"model": "none", "id": "one id for all"}
    values[4]["response"]["choices"][0]["message"]["content"] = "what a cheaper model said"
    values[2]["response"]["prompt_token_ids"][3] = 5
    path.write_text("\n".join(json.dumps(value) for value in values))
    return path


@pytest.mark.slow
def test_lies_are_named_before_the_replay_and_in_the_verdict_and_the_draw_can_be_repeated(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    path = lying(tmp_path / "lies.jsonl")
    drawn: list[str] = []
    for folder in ("one", "two"):
        done = run_qdx(
            "-m", "prompts=transcripts", f"prompts.path={path}", "prompts.records=6", "quant=none",
            "repeats=1", "backend.threads=1", "report.formats=[txt]", f"hydra.sweep.dir={folder}",
            *(["verify.claims={none: none}", *drawn] if drawn else []), *checkpoints(models), cwd=tmp_path,
        )  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode == 4, said
        assert "its ids do not spell its text (lies.jsonl:5)" in said
        assert "1 answers have the name (such as custom_id) of an earlier one" in said
        assert "(1 of 5 answers, first lies.jsonl:3); these are not judged" in said
        seed = said.partition("prompts.draw_seed=")[2].partition(",")[0]
        assert seed.isdigit() and (not drawn or drawn == [f"prompts.draw_seed={seed}"])
        drawn = [f"prompts.draw_seed={seed}"]
        assert f"draw_seed: {seed}" in str(
            read_groups(tmp_path / folder / "none" / "run.nc")["/"].attrs["config"]
        )
    verdicts = {
        folder: json.loads((tmp_path / folder / "summary.json").read_text())["verdicts"]["claims"][0]
        for folder in ("one", "two")
    }
    assert (
        verdicts["one"]["verdict"] == "undecided"
        and "'verify.claims={none: …}'" in verdicts["one"]["because"]
    ), "its model is called like a config, and claims none"
    because = verdicts["two"]["because"]
    assert (verdicts["two"]["verdict"], verdicts["two"]["concerns"]) == ("undecided", "prompt")
    assert (
        "not judged: 1 answer left out (its ids do not spell its text (lies.jsonl:5)), 1 answer with"
        in because
    )


def test_what_qdx_made_of_records_is_not_taken_from_a_stranger(
    sweep: tuple[Path, str], models: dict[str, Path], tmp_path: Path
) -> None:
    """Such a file says itself that nothing was left out."""
    done = run_qdx(
        "-m", "prompts=transcripts", f"prompts.path={sweep[0] / 'producers.nc'}", "quant=none",
        "hydra.sweep.dir=s", *checkpoints(models), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and "which states itself how much was left out of them" in done.stderr


def test_a_published_verdict_says_nothing_of_prompts_answers_and_places(
    sweep: tuple[Path, str], tmp_path: Path
) -> None:
    from qdx.commit import main

    target = tmp_path / "verdict.json"
    assert main([str(sweep[0]), str(target), "--verdict"]) == 0
    text = target.read_text()
    found = json.loads(text)
    assert {one["producer"] for one in found["claims"]} == set(CLAIMS)
    assert {one["verdict"] for one in found["claims"]} == {"undecided"} and found["exit_status"] == 4
    one = next(one for one in found["claims"] if one["producer"] == "tiny-greedy")
    assert one["by_config"]["none"]["tokens"] == 56 and one["by_config"]["none"]["listed"] == 56
    assert one["by_config"]["none"]["listed_equal"] == 0, "vLLM's float32 beside float16"
    assert len(one["record_sha256"]) == 64 and one["unreadable"] == "1" and one["tests"]["text"] is None
    key_file = sweep[0] / "verdict.key"
    assert key_file.stat().st_mode & 0o77 == 0
    key = bytes.fromhex(key_file.read_text().strip())
    plain = set()
    for name, file in (("references_sha256", "sweep.nc"), ("record_sha256", "producers.nc")):
        with qdx.open(sweep[0] / file) as tree:
            digest = str(tree["provenance"].to_dataset()[name].values.flat[0])
        plain |= {digest, key_file.read_text().strip()}
        shown = found[name][0] if name in found else one[name]
        assert shown == keyed(digest, key), name
    assert not {secret for secret in plain if secret in text}, "a guess of a prompt could be tried"
    likelihood = one["by_config"]["none"].get("drawn_log_likelihood")
    assert likelihood is None or likelihood == float(f"{likelihood:.3g}")
    again = tmp_path / "again.json"
    assert main([str(sweep[0]), str(again), "--verdict"]) == 0 and again.read_text() == text, (
        "one key a folder"
    )
    assert set(found["configs"]) == {"none", "awq"} and found["configs"]["awq"]["format"] == "awq"
    said = set()
    for name in PARTS:
        for line in (FILES / name).read_text().splitlines():
            value = json.loads(line)
            said |= {message["content"] for message in value["request"]["messages"]}
            said |= {choice["message"]["content"] for choice in value["response"]["choices"]}
    words = {word for part in said for word in part.split() if len(word) > 6 and word.isascii()}
    assert len(words) > 20 and not {word for word in words if word in text}
    secrets = {platform.node(), getpass.getuser(), "jsonl", str(tmp_path.parent), "/", "\\\\", "chatcmpl"}
    assert not {secret for secret in secrets if secret and secret in text}
    assert not re.search(r"\[\s*-?\d+\s*,", text), "a list of numbers, such as token ids"


def test_a_producers_sweep_has_no_verdict_to_publish(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from qdx.commit import main

    (tmp_path / "sweep.nc").write_bytes(b"")
    assert main([str(tmp_path), "--verdict"]) == 2
    assert "holds no producers.nc" in capsys.readouterr().err
