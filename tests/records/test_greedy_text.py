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
) -> Trees:
    """Records of greedy output of lengths between two bounds, and their replays."""
    made, checked = with_misfits(trees({"a": 0.3}, references=JUDGED, tokens=TOKENS, seed=seed), share, seed)
    generator = np.random.default_rng([seed, 1])
    count = generator.integers(lengths[0], lengths[1] + 1, JUDGED)
    groups = {f"/{name}": child.to_dataset() for name, child in made.children.items()}
    names = groups["/output"]["reference"].values
    output = groups["/output"].isel(repeat=[0]).copy(deep=True)
    for r in range(JUDGED):
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
            "group": (two, np.zeros((1, JUDGED), int) if one_seed else np.arange(JUDGED)[None]),
            "prompt_tokens": (two, np.full((1, JUDGED), stated_prompt)),
            "answer_how": (two, np.full((1, JUDGED), how, object)),
            "prompt_differs": (two, np.zeros((1, JUDGED), bool)),
            "prompt_alone": (two, np.zeros((1, JUDGED), bool)),
            "template_tokens": (two, np.full((1, JUDGED), -1)),
            "tokens_left_out": (two, np.array([[cut, *[0] * (JUDGED - 1)]])),
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
    root = xr.Dataset(attrs={"kind": "records"})
    return xr.DataTree.from_dict({"/": root, **kept}), xr.DataTree.from_dict(checks)


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
