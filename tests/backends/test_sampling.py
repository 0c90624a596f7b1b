"""Statements of decoding: what qdx and an engine state, and what is believed of a stranger's."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from qdx.backends.sampling import PLAIN, greedy, plain_greedy, stated_by


def changed(**values: Any) -> str:
    return json.dumps({**PLAIN, **values})


def without(name: str) -> str:
    return json.dumps({key: value for key, value in PLAIN.items() if key != name})


def test_what_qdx_states_is_plain_greedy() -> None:
    assert plain_greedy(greedy()) is True
    assert json.loads(greedy()) == PLAIN


@pytest.mark.parametrize(
    "text",
    [
        changed(method="random"),
        changed(temperature=0.7),
        changed(temperature=-1),
        '{"temperature":' + "9" * 4050 + "}",
        changed(repetition_penalty=1.1),
        changed(presence_penalty=0.1),
        changed(frequency_penalty=-0.1),
        changed(logit_bias={"5": 100}),
        changed(min_tokens=4),
        changed(bad_words=["x"]),
        changed(allowed_token_ids=[1]),
        changed(temperature=1, unheard_of=1),  # one that is known to choose otherwise is enough
    ],
    ids=lambda text: text[:40],
)
def test_anything_that_moves_the_greatest_logit_is_not_plain(text: str) -> None:
    assert plain_greedy(text) is False


@pytest.mark.parametrize(
    "text",
    [
        changed(top_p=0.9),
        changed(top_k=1),
        changed(top_k=-1),
        changed(min_p=0.1),
        changed(ignore_eos=False),
        changed(logit_bias=None),
        changed(bad_words=[]),
        changed(temperature=0.0),
    ],
)
def test_what_the_greatest_logit_survives_is_plain(text: str) -> None:
    assert plain_greedy(text) is True


@pytest.mark.parametrize(
    "text",
    [
        "",
        "greedy",
        "null",
        "[]",
        "1",
        "{}",
        "{",
        None,
        7,
        b"{}",
        float("nan"),
        *(without(name) for name in PLAIN),
        changed(unheard_of=1),
        changed(temperature=False),
        changed(temperature="0"),
        changed(temperature=None),
        changed(temperature=float("nan")),
        changed(temperature=float("inf")),
        changed(top_p=2),
        changed(method=["greedy"]),
        changed(logit_bias=[]),
        changed(ignore_eos=1),
        greedy()[:-1] + ',"temperature":0}',  # readers disagree on which of two counts
        "[" * 4000,
        '{"a":' * 800,
        greedy() + " " * 5000,
    ],
    ids=lambda text: str(text)[:40],
)
def test_what_is_missing_unknown_or_unreadable_states_nothing(text: object) -> None:
    assert plain_greedy(text) is None


def test_an_engines_parameters_are_stated_as_it_settled_them() -> None:
    values = {name: value for name, value in PLAIN.items() if name != "method"}
    parameters = SimpleNamespace(**values, logits_processors=None, bad_words=[])
    parameters.logit_bias = None
    assert stated_by(parameters) == greedy()
    parameters.temperature, parameters.logit_bias = 0.7, {5: 1.0}
    stated = json.loads(stated_by(parameters))
    assert stated["method"] == "random" and stated["logit_bias"] == {"5": 1.0}
    assert plain_greedy(stated_by(parameters)) is False
    parameters.temperature, parameters.logit_bias, parameters.bad_words = 0, None, ["no"]
    assert plain_greedy(stated_by(parameters)) is False
    del parameters.min_tokens
    with pytest.raises(AttributeError, match="min_tokens"):
        stated_by(parameters)
