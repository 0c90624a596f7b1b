"""A provider who lies: what she leaves out, swaps, renames or counts otherwise is found and said."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import qdx
from qdx.prompts._record_collect import Collected, Request, collect, notes
from qdx.prompts._record_file import write
from qdx.prompts._record_ids import Ids
from qdx.records import Record, Unreadable, choose
from qdx.verification.recorded import Recorded, record_of
from tests.records import FILES

VOCAB = 1200
CHATS = [json.loads(line) for line in (FILES / "vllm_chat_greedy.jsonl").read_text().splitlines()]
TEXTS = [json.loads(line) for line in (FILES / "vllm_completions.jsonl").read_text().splitlines()]
Edit = Callable[[Any], object]


@pytest.fixture(scope="module")
def ids() -> Ids:
    from transformers import AutoTokenizer

    return Ids(AutoTokenizer.from_pretrained(str(FILES / "tokenizer")), VOCAB)


def lines(values: Sequence[Any], **edits: Edit) -> list[Any]:
    """Copies of records, of which those that are named ``at_2`` are changed."""
    made = copy.deepcopy(list(values))
    for name, edit in edits.items():
        edit(made[int(name.removeprefix("at_"))])
    return made


def collected(path: Path, values: Sequence[Any], ids: Ids, **options: Any) -> Collected:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in values))
    return collect(Request(path, **options), ids, {})


def recorded(folder: Path, values: Sequence[Any], ids: Ids, **options: Any) -> dict[str, Recorded]:
    """What the verdict is given of each provider of a file."""
    path = folder / "responses.jsonl"
    found = collected(path, values, ids, **options)
    write(
        Request(path, **options),
        found,
        folder / "made.nc",
        record_sha256="r" * 64,
        tokenizer_sha256="t" * 64,
        vocab=VOCAB,
    )
    with qdx.open(folder / "made.nc") as tree:
        stored = tree["provenance"].to_dataset()
        names = [str(name) for name in tree["references"]["reference"].values]
        return {str(n): record_of(tree, stored, str(n), names) for n in stored["config"].values}


def choice(value: Any) -> Any:
    return value["response"]["choices"][0]


def put(value: Any, name: str, new: object) -> None:
    choice(value)[name] = new


def say(value: Any, text: str) -> None:
    choice(value)["message"]["content"] = text


# What is left out


def test_what_can_be_read_in_whole_loses_nothing(tmp_path: Path, ids: Ids) -> None:
    (one,) = recorded(tmp_path, CHATS, ids).values()
    assert one.lost == "" and one.stated and not one.other_prompts and not one.alone


def test_a_bad_answer_that_was_made_unreadable_is_counted(tmp_path: Path, ids: Ids) -> None:
    (one,) = recorded(tmp_path, [*CHATS[:3], json.dumps(CHATS[3])[:-40]], ids).values()
    assert one.lost == "1 line could not be read"


def test_a_lost_answer_is_its_providers_and_one_that_names_a_stranger_is_everybodys(
    tmp_path: Path, ids: Ids
) -> None:
    def of(model: str, broken: bool) -> Edit:
        def edit(value: Any) -> None:
            value["response"]["model"] = model
            if broken:
                say(value, "another text than its ids spell")

        return edit

    own = recorded(tmp_path, lines(CHATS, at_0=of("a", False), at_1=of("b", False), at_2=of("b", True)), ids)
    assert {name: one.left_out for name, one in own.items() if name in "ab"} == {"a": 0, "b": 1}
    hidden = lines(
        CHATS, at_0=of("a", False), at_1=of("b", False), at_2=of("nobody else", True), at_3=of("a", False)
    )
    assert {name: one.left_out for name, one in recorded(tmp_path, hidden, ids).items()} == {"a": 1, "b": 1}


def test_the_providers_own_ids_cannot_make_an_answer_replace_another(tmp_path: Path, ids: Ids) -> None:
    def same(value: Any) -> None:
        value["response"]["id"] = "one id for all"

    found = collected(tmp_path / "f.jsonl", lines(CHATS, at_0=same, at_1=same, at_2=same, at_3=same), ids)
    assert (len(found.transcripts), found.duplicates) == (4, 0)


def test_two_answers_of_one_custom_id_are_both_judged_and_counted(tmp_path: Path, ids: Ids) -> None:
    def named(value: Any) -> None:
        value["custom_id"] = "request-1"

    (one,) = recorded(tmp_path, lines(CHATS, at_0=named, at_2=named), ids).values()
    assert one.lost == "1 answer with the name of another one"
    assert sum(bool(answer) for answer in one.answers_R) == 4


def test_a_request_that_nobody_answered_is_named(tmp_path: Path) -> None:
    text = (FILES / "vllm_batch_output.jsonl").read_text().splitlines()
    path = tmp_path / "output.jsonl"
    path.write_text("\n".join(text[1:]))
    found = list(choose(path, requests=str(FILES / "batch_input.jsonl"))[1].read(path))
    lost = [str(one) for one in found if isinstance(one, Unreadable)]
    assert lost[-1] == "batch_input.jsonl: 1 of its 4 requests have no answer, the first is 'request-0'"


def test_a_choice_that_was_asked_for_and_is_missing_is_named(tmp_path: Path, ids: Ids) -> None:
    sampled = [json.loads(x) for x in (FILES / "vllm_chat_sampled_token_id.jsonl").read_text().splitlines()]
    del sampled[0]["response"]["choices"][0]
    found = collected(tmp_path / "f.jsonl", sampled, ids)
    assert found.losses.named == ["f.jsonl:1: 1 of the 2 answers that the request asks for"]


# Ids, text and numbers


def test_honest_ids_beside_another_text_are_left_out_by_name(tmp_path: Path, ids: Ids) -> None:
    """Whoever has the weights can state the greedy ids beside the text that a cheap model wrote."""
    swapped = lines(CHATS, at_1=lambda v: say(v, choice(CHATS[2])["message"]["content"]))
    (one,) = recorded(tmp_path, swapped, ids).values()
    assert one.lost == "1 answer left out (its ids do not spell its text (responses.jsonl:2))"


def test_every_other_text_than_that_of_the_ids_is_found(ids: Ids, tmp_path: Path) -> None:
    whole = choice(CHATS[3])["message"]["content"]
    assert len(whole) > 10
    for text in (whole[1:], whole[:-3], f"{whole} more", whole.replace(whole[5], "#"), ""):
        found = collected(tmp_path / "f.jsonl", lines(CHATS, at_3=lambda v, t=text: say(v, t)), ids)
        assert len(found.transcripts) == 3, text


@pytest.mark.parametrize("stated", [1, 6, 18, 40])
def test_a_number_of_tokens_that_is_not_the_ids_is_found(stated: int, tmp_path: Path, ids: Ids) -> None:
    def count(value: Any) -> None:
        value["response"]["usage"]["completion_tokens"] = stated

    found = collected(tmp_path / "f.jsonl", lines(CHATS, at_0=count), ids)
    more = "it counts more tokens than it lists, so that tokens are hidden"
    assert dict(found.left_out) == {(more if stated > 8 else "it lists more tokens than it counts"): 1}


def test_log_probabilities_of_other_tokens_than_the_ids_are_found(tmp_path: Path, ids: Ids) -> None:
    def other(value: Any) -> None:
        for mine, theirs in zip(
            choice(value)["logprobs"]["content"], choice(CHATS[2])["logprobs"]["content"], strict=False
        ):
            mine["token"], mine["bytes"] = theirs["token"], theirs["bytes"]

    found = collected(tmp_path / "f.jsonl", lines(CHATS, at_1=other), ids)
    assert dict(found.left_out) == {"its log-probabilities are of other tokens than its ids": 1}


def without_ids(value: Any) -> None:
    choice(value)["token_ids"] = None


def test_tokens_by_their_bytes_are_held_against_the_text_too(tmp_path: Path, ids: Ids) -> None:
    every = {f"at_{i}": without_ids for i in range(4)}
    honest = collected(tmp_path / "f.jsonl", lines(CHATS, **every), ids)
    assert [one.answer.how for one in honest.transcripts] == ["bytes"] * len(honest.transcripts)
    taken = {str(one.stated["where"]): one for one in honest.transcripts}
    place = next(i for i in range(4) if f"f.jsonl:{i + 1}" in taken)

    def lie(value: Any) -> None:
        without_ids(value)
        say(value, "nothing of that")

    found = collected(tmp_path / "f.jsonl", lines(CHATS, **{**every, f"at_{place}": lie}), ids)
    assert found.left_out["its tokens do not spell its text"] == 1


def test_tokens_that_a_response_counts_and_none_of_its_answers_has_are_found(
    tmp_path: Path, ids: Ids
) -> None:
    sampled = [json.loads(x) for x in (FILES / "vllm_chat_sampled_token_id.jsonl").read_text().splitlines()]
    sampled[1]["response"]["usage"]["completion_tokens"] += 9
    found = collected(tmp_path / "f.jsonl", sampled, ids)
    assert dict(found.left_out) == {
        "its response counts another number of tokens than all its answers have": 2
    }


@pytest.mark.parametrize("how", ["stop", "end", "include"])
def test_what_a_text_lawfully_leaves_out_is_no_lie(how: str, tmp_path: Path, ids: Ids) -> None:
    whole = choice(CHATS[3])["message"]["content"]

    def stopped(value: Any) -> None:
        """A stop string in the last token, which a server cuts off or leaves."""
        own = choice(value)
        last = ids._decoded(own["token_ids"][-1:])
        assert whole.endswith(last) and last.strip()
        value["request"]["stop"] = [last]
        own["finish_reason"] = "stop"
        say(value, whole.removesuffix(last) if how == "stop" else whole)

    def ended(value: Any) -> None:
        end = int(ids._tokenizer.convert_tokens_to_ids("<|im_end|>"))
        choice(value).update(finish_reason="stop", logprobs=None)
        choice(value)["token_ids"].append(end)
        value["response"]["usage"]["completion_tokens"] += 1

    found = collected(tmp_path / "f.jsonl", lines(CHATS, at_3=ended if how == "end" else stopped), ids)
    assert len(found.transcripts) == 4, found.left_out


def test_a_stop_string_excuses_no_other_text(tmp_path: Path, ids: Ids) -> None:
    def lie(value: Any) -> None:
        whole = choice(value)["message"]["content"]
        value["request"]["stop"] = [whole[4:7]]  # in the middle: more tokens follow it
        choice(value)["finish_reason"] = "stop"
        say(value, whole[:4])

    found = collected(tmp_path / "f.jsonl", lines(CHATS, at_3=lie), ids)
    assert found.left_out["its ids do not spell its text"] == 1


# The question


def test_prompt_ids_of_a_completion_are_held_against_its_prompt(tmp_path: Path, ids: Ids) -> None:
    honest = collected(tmp_path / "f.jsonl", TEXTS, ids)
    assert not any(one.prompt.differs for one in honest.transcripts)

    def swap(value: Any) -> None:
        choice(value)["prompt_token_ids"] = choice(TEXTS[1])["prompt_token_ids"]
        choice(value)["prompt_logprobs"] = choice(TEXTS[1])["prompt_logprobs"]
        value["response"]["usage"]["prompt_tokens"] = len(choice(TEXTS[1])["prompt_token_ids"])

    (one,) = recorded(tmp_path, lines(TEXTS, at_0=swap), ids).values()
    assert one.other_prompts == 1 and one.other_R.sum() == 1
    assert "are not those that the request makes" in one.prompt_said


def test_prompt_ids_of_an_answer_do_not_replace_those_of_the_request(tmp_path: Path, ids: Ids) -> None:
    def asked(value: Any) -> None:
        value["request"]["prompt"] = [5, 6, 7]

    found = collected(tmp_path / "f.jsonl", lines(TEXTS, at_1=asked), ids)
    assert [one.prompt.differs for one in found.transcripts] == [False, True, False]
    said = notes(Request(tmp_path / "f.jsonl"), found, {})[0]
    assert said.startswith("PROMPT:") and "the request makes 3" in said and "these are not judged" in said


def test_prompt_ids_that_nothing_can_be_held_against_are_not_judged(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(FILES / "tokenizer"))
    tokenizer.chat_template = None
    found = collected(tmp_path / "f.jsonl", CHATS, Ids(tokenizer, VOCAB))
    assert all(one.prompt.differs for one in found.transcripts)
    assert "nothing can be made of the request here" in notes(Request(tmp_path / "f.jsonl"), found, {})[0]


def test_answers_without_requests_are_said_to_be(tmp_path: Path, ids: Ids) -> None:
    (one,) = recorded(tmp_path, [value["response"] for value in CHATS], ids).values()
    assert one.alone == 4


# Streams


def events(tmp_path: Path, texts: Sequence[str]) -> list[Record | Unreadable]:
    path = tmp_path / "s.sse"
    path.write_text("\n\n".join(texts))
    return list(choose(path)[1].read(path))


PIECES = [line for line in (FILES / "vllm_stream_ids.sse").read_text().splitlines() if "{" in line]


def test_an_answer_without_one_of_its_pieces_is_no_answer(tmp_path: Path) -> None:
    for broken in (PIECES[4][:-20], 'data: {"id": 4}', PIECES[4].replace('"delta":{', '"delta":[{', 1)):
        found = events(tmp_path, [*PIECES[:4], broken, *PIECES[5:]])
        assert not any(isinstance(one, Record) for one in found), broken
        assert found


def test_two_streams_of_one_id_are_no_answer(tmp_path: Path) -> None:
    found = events(tmp_path, [*PIECES, *PIECES])
    assert not any(isinstance(one, Record) for one in found)
    assert "nothing after finish_reason: two answers may have one id" in str(found[0])


def test_an_answer_whose_stream_was_cut_has_lost_a_token(tmp_path: Path, ids: Ids) -> None:
    whole, cut = (
        next(one for one in events(tmp_path, some) if isinstance(one, Record))
        for some in (PIECES, PIECES[:7])
    )
    assert ids.answer(whole).left_out == 0 and ids.answer(cut).left_out == 1
