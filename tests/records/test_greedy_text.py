"""Greedy records beside known transcripts: not refuted, refuted, and when nothing can be said."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from qdx.backends.sampling import greedy
from qdx.verification import verify
from qdx.verification.verdicts import BAD, exit_status
from tests.analysis.replaying import trees

TOKENS, JUDGED, KNOWN = 16, 8, 60
Trees = tuple[xr.DataTree, xr.DataTree]


def with_misfits(pair: Trees, share: float, seed: int) -> Trees:
    """Make so many of the replayed tokens other than the greatest logit."""
    made, checked = pair
    generator = np.random.default_rng(seed)
    replay = checked["replay"].to_dataset()
    wrong = generator.random(replay["target_logit"].isel(repeat=0).shape) < share
    margin = np.where(wrong, generator.exponential(1.0, wrong.shape), 0.0).astype(np.float32)
    logit = replay["target_logit"] - xr.DataArray(margin, dims=replay["target_logit"].isel(repeat=0).dims)
    groups = {f"/{name}": child.to_dataset() for name, child in checked.children.items()}
    groups["/replay"] = replay.assign(target_logit=logit.transpose(*replay["target_logit"].dims))
    return made, xr.DataTree.from_dict(groups)


def records(
    share: float,
    *,
    seed: int = 3,
    how: str = "given",
    lengths: tuple[int, int] = (TOKENS + 1, TOKENS + 1),
    sampling: str | None = None,
    stated_prompt: int = -1,
    one_seed: bool = False,
    lost: dict[str, str] | None = None,
    cut: int = 0,
    differing: tuple[int, ...] = (),
    twice: str = "",
    answered: int | None = None,
    judged: int = JUDGED,
) -> Trees:
    """Records of greedy output of lengths between two bounds, and their replays."""
    made, checked = with_misfits(trees({"a": 0.3}, references=judged, tokens=TOKENS, seed=seed), share, seed)
    generator = np.random.default_rng([seed, 1])
    count = generator.integers(lengths[0], lengths[1] + 1, judged)
    count[judged if answered is None else answered :] = 0
    groups = {f"/{name}": child.to_dataset() for name, child in made.children.items()}
    names = groups["/output"]["reference"].values
    output = groups["/output"].isel(repeat=[0]).copy(deep=True)
    for r in range(judged):
        output["token_id"].values[0, 0, r, count[r] :] = -1
    decode = groups["/decode"][["captured"]].isel(repeat=[0], position=[0]) & False
    facts = ("backend", "backend_version", "batch_layout", "torch_version", "kernel_environment", "dtype")
    empty = {name: ("config", [""]) for name in facts}
    kept = {"/references": groups["/references"], "/output": output}
    kept["/decode"] = decode.drop_vars(
        [n for n in decode.coords if decode[n].dims == ("config",) and n != "config"]
    )
    kept["/decode"] = kept["/decode"].assign_coords({**empty, "batch_size": ("config", [0])})
    two = ("config", "reference")
    kept["/stated"] = xr.Dataset(
        {
            "group": (two, np.where(count > 0, 0 if one_seed else np.arange(judged), -1)[None]),
            "prompt_tokens": (two, np.full((1, judged), stated_prompt)),
            "answer_how": (two, np.full((1, judged), how, object)),
            "prompt_differs": (two, np.isin(np.arange(judged), differing)[None]),
            "prompt_alone": (two, np.zeros((1, judged), bool)),
            "template_tokens": (two, np.full((1, judged), -1)),
            "tokens_left_out": (two, np.array([[cut, *[0] * (judged - 1)]])),
        },
        {"config": ["a"], "reference": names},
    )
    said = {"sampling": greedy() if sampling is None else sampling, "assumed": "logit_bias", "asked": ""}
    said |= {"unreadable": "0", "left_out": "0", "duplicates": "0", "left_out_why": "", **(lost or {})}
    kept["/provenance"] = xr.Dataset({n: ("config", [v]) for n, v in said.items()}, {"config": ["a"]})
    checks = {f"/{name}": child.to_dataset() for name, child in checked.children.items()}
    inside = (checks["/replay"]["position"].values[None] - 10) < count[:, None]
    here = xr.DataArray(inside, dims=("reference", "position"))
    captured = checks["/replay"]["captured"]
    checks["/replay"] = checks["/replay"].assign(captured=(captured & here).transpose(*captured.dims))
    if "/prefill" in checks and "first_token_id" in checks["/prefill"]:
        answered_R = xr.DataArray(count > 0, dims="reference")
        first = checks["/prefill"]["first_token_id"]
        checks["/prefill"] = checks["/prefill"].assign(
            first_token_id=first.where(answered_R, -1).astype(first.dtype).transpose(*first.dims)
        )
    root = xr.Dataset(attrs={"kind": "records"})
    if twice:  # every second answer is another one to the prompt before it
        kept["/references"] = paired(kept["/references"])
    if twice == "equal":
        kept["/output"] = paired(kept["/output"])
        checks = {name: paired(group) for name, group in checks.items()}
    return xr.DataTree.from_dict({"/": root, **kept}), xr.DataTree.from_dict(checks)


def paired(group: xr.Dataset) -> xr.Dataset:
    """Put the values of every even reference in the place of the next one's, too."""
    if "reference" not in group.dims:
        return group
    first = [i - i % 2 for i in range(group.sizes["reference"])]
    return group.isel(reference=first).assign_coords(reference=group["reference"].values)


def calibration(share: float = 0.1, noise: float = 0.3) -> Trees:
    pair = trees({"a": noise}, references=KNOWN, tokens=TOKENS, seed=11, first_prompt=500)
    return with_misfits(pair, share, 12)


def verdict(pair: Trees, known: Trees | None) -> tuple[str, str, str]:
    result = verify(*pair, calibration=known, claims={"a": "a"}).result
    return tuple(str(result[name].values[0]) for name in ("verdict", "concerns", "because"))  # type: ignore[return-value]


@pytest.mark.parametrize("lengths", [(17, 17), (6, 17), (2, 9)])
def test_honest_greedy_records_end_at_most_in_not_refuted(lengths: tuple[int, int]) -> None:
    kind, concerns, because = verdict(records(0.1, lengths=lengths), calibration())
    assert (kind, concerns) == ("not refuted", "text"), because
    assert "assumed to do nothing, since it is not stated: logit_bias" in because
    assert "not covered: any other" in because, "the provider states no machine"
    assert exit_status([kind]) == 0


@pytest.mark.parametrize("lengths", [(17, 17), (8, 17)])
def test_false_greedy_records_are_refuted_by_ids_that_were_emitted(lengths: tuple[int, int]) -> None:
    kind, concerns, because = verdict(records(0.7, lengths=lengths), calibration())
    assert (kind, concerns) == ("refuted", "text"), because


@pytest.mark.parametrize("how", ["text", "joined"])
def test_ids_that_were_made_from_text_refute_nothing(how: str) -> None:
    kind, concerns, because = verdict(records(0.7, how=how), calibration())
    assert (kind, concerns) == ("undecided", "text") and "refutes only where the ids are those" in because


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_known_transcripts_of_the_replays_own_arithmetic_decide_nothing(share: float) -> None:
    kind, _, because = verdict(records(share), calibration(0.0, noise=0.0))
    assert kind == "undecided" and "no transcript of another kernel" in because


SAMPLED = (
    greedy().replace('"method":"greedy"', '"method":"random"').replace('"temperature":0', '"temperature":1')
)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("sampling", [SAMPLED, ""])
def test_sampled_and_unstated_output_is_neither_confirmed_nor_refuted(share: float, sampling: str) -> None:
    kind, concerns, because = verdict(records(share, sampling=sampling), calibration())
    assert (kind, concerns) == ("undecided", "sampling")
    assert ("sampled output" in because) == bool(sampling)


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_another_prompt_than_the_one_replayed_is_never_judged(share: float) -> None:
    kind, concerns, because = verdict(records(share, stated_prompt=41), calibration())
    assert (kind, concerns) == ("undecided", "prompt") and "has 41 tokens" in because


def test_answers_that_share_a_seed_are_one_unit_and_too_few_to_decide() -> None:
    kind, concerns, because = verdict(records(0.1, one_seed=True), calibration())
    assert (kind, concerns) == ("undecided", "units") and kind not in BAD, because


LOST = {
    "a line that cannot be read": ({"unreadable": "1"}, 0, "1 line could not be read"),
    "an answer that gives no transcript": (
        {"left_out": "2", "left_out_why": "its ids do not spell its text (f:3, f:9)"}, 0,
        "2 answers left out (its ids do not spell its text (f:3, f:9))",
    ),
    "two answers of one name": ({"duplicates": "1"}, 0, "1 answer with the name of another one"),
    "a token that cannot be known": ({}, 1, "1 token that cannot be known"),
    "a file that does not say": ({"unreadable": ""}, 0, "does not state what was left out"),
}  # fmt: skip


@pytest.mark.parametrize("case", LOST)
def test_what_is_lost_takes_good_news_and_leaves_bad_news(case: str) -> None:
    lost, cut, said = LOST[case]
    kind, concerns, because = verdict(records(0.1, lost=lost, cut=cut), calibration())
    assert (kind, concerns) == ("undecided", "coverage") and said in because
    kind, concerns, because = verdict(records(0.7, lost=lost, cut=cut), calibration())
    assert (kind, concerns) == ("refuted", "text") and said in because


def test_equal_answers_to_one_prompt_are_one_unit_and_no_obstacle() -> None:
    """With n=2 a greedy provider gives every answer twice."""
    result = verify(*records(0.1, twice="equal"), calibration=calibration(), claims={"a": "a"}).result
    assert str(result["verdict"].values[0]) == "not refuted", result["because"].values[0]
    assert int(result["units"].values[0]) == JUDGED // 2
    assert verdict(records(0.9, twice="equal"), calibration())[0] == "refuted"


def test_answers_to_one_prompt_that_differ_hide_nothing() -> None:
    kind, concerns, because = verdict(records(0.1, twice="other"), calibration())
    assert (kind, concerns) == ("undecided", "units") and "stand behind an honest one" in because


@pytest.mark.parametrize("twice", ["equal", "other"])
@pytest.mark.slow
def test_honest_answers_given_twice_are_refuted_no_more_often_than_the_level(twice: str) -> None:
    """The greatest score of several answers to a prompt would be greater by itself than a known one's."""
    known = calibration(0.1)
    kinds = [verdict(records(0.1, seed=seed, twice=twice), known)[0] for seed in range(30, 50)]
    assert kinds.count("refuted") <= 4, "of 20 at 5 %: more than 4 with probability 0.3 %"


def test_one_answer_to_another_prompt_takes_good_news_and_shields_nobody() -> None:
    kind, concerns, because = verdict(records(0.1, differing=(2,)), calibration())
    assert (kind, concerns) == ("undecided", "prompt") and "nothing shows that the ids" in because
    kind, concerns, because = verdict(records(0.8, differing=(2,)), calibration())
    assert (kind, concerns) == ("refuted", "text"), because


def test_what_the_provider_calls_its_model_is_no_claim() -> None:
    """The label is made of what the records state: called like a config, it would choose its claim."""
    pair = records(0.1)
    result = verify(*pair, calibration=calibration()).result
    because = str(result["because"].values[0])
    assert str(result["verdict"].values[0]) == "undecided" and "'verify.claims={a: …}'" in because
    judged = verify(*pair, calibration=calibration(), claims={"a": "a"}).result
    assert "judged as a, as verify.claims says" in str(judged["because"].values[0])


def unmet(pair: Trees, **require: int) -> str:
    result = verify(*pair, calibration=calibration(), claims={"a": "a"}, require=require).result
    return str(result["unmet"].values[0])


def test_demands_count_what_the_provider_answered() -> None:
    some = records(0.1, lengths=(9, 9), answered=5)
    assert unmet(some, references=5, units=5, tokens=9) == ""
    assert unmet(some, references=6) == "references: got 5, wanted 6 or more"
    assert unmet(some, units=6) == "units: got 5, wanted 6 or more"
    assert unmet(some, tokens=10) == "tokens: got 9, wanted 10 or more"
    assert unmet(records(0.1, differing=(0, 1)), units=7) == "units: got 6, wanted 7 or more"
