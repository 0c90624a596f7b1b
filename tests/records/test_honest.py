"""An honest provider whose records are unusual: nothing is guessed, and what is not known is said."""

from __future__ import annotations

import copy
import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from qdx.backends.sampling import plain_greedy
from qdx.errors import QdxError
from qdx.prompts._record_collect import Request, notes
from qdx.prompts._record_file import write
from qdx.prompts._record_ids import Ids, LeftOut
from qdx.records import FieldError, Record, choose
from qdx.records.decoding import of_all
from tests.records import FILES
from tests.records.test_lying import (
    CHATS,
    PIECES,
    TEXTS,
    VOCAB,
    choice,
    collected,
    events,
    lines,
    say,
    without_ids,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(FILES / "tokenizer"))


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> Ids:
    return Ids(tokenizer, VOCAB)


# Reasoning


def hidden(value: Any) -> None:
    """A model that reasoned 30 tokens which are not returned."""
    without_ids(value)
    value["response"]["usage"] |= {
        "completion_tokens": 38,
        "completion_tokens_details": {"reasoning_tokens": 30},
    }


@pytest.mark.parametrize("with_tokens", [True, False])
def test_an_answer_after_reasoning_that_is_not_returned_is_left_out_and_said(
    with_tokens: bool, tmp_path: Path, ids: Ids
) -> None:
    def edit(value: Any) -> None:
        hidden(value)
        if not with_tokens:
            choice(value)["logprobs"] = None

    found = collected(tmp_path / "f.jsonl", lines(CHATS, at_0=edit), ids)
    assert dict(found.left_out) == {
        "its reasoning is not returned, so that the tokens before its answer are not known": 1
    }
    assert "(f.jsonl:1)" in "\n".join(notes(Request(tmp_path / "f.jsonl"), found, {}))


@pytest.mark.parametrize("lie", [False, True])
def test_given_ids_hold_reasoning_and_the_answer_and_nothing_between_but_markers(
    lie: bool, tokenizer: Any
) -> None:
    own = copy.deepcopy(tokenizer)
    own.add_tokens(["<think>", "</think>"])
    made = Ids(own, len(own))
    given = tuple(own("<think>\nthe class\n</think>\n\nso it is<|im_end|>").input_ids)
    record = Record(
        "f:1", messages=({"role": "user", "content": "a"},), output="it is" if lie else "so it is",
        reasoning="the class so" if lie else "the class", output_ids=given, completion_tokens=len(given),
        finish_reason="stop",
    )  # fmt: skip
    if lie:  # words of one part cannot be pushed into the other
        with pytest.raises(LeftOut, match="its ids do not spell its text"):
            made.answer(record)
    else:
        assert made.answer(record).ids == given


# Echo


@pytest.mark.parametrize("with_ids", [True, False])
def test_an_echo_of_a_prompt_of_ids_is_taken_off(with_ids: bool, tmp_path: Path, ids: Ids) -> None:
    def echo(value: Any) -> None:
        own, prompt = choice(value), choice(value)["prompt_token_ids"]
        shown = ids._decoded(prompt)
        value["request"] |= {"prompt": prompt, "echo": True}
        own["text"] = shown + own["text"]
        own["logprobs"] = None
        if not with_ids:
            own["token_ids"] = None
        own["prompt_token_ids"] = own["prompt_logprobs"] = None

    plain = collected(tmp_path / "f.jsonl", TEXTS, ids)
    found = collected(tmp_path / "f.jsonl", lines(TEXTS, at_0=echo), ids)
    (before,) = [one for one in plain.transcripts if one.stated["where"] == "f.jsonl:1"]
    echoed = [one for one in found.transcripts if one.stated["where"] == "f.jsonl:1"]
    if with_ids:
        assert echoed[0].answer.ids == before.answer.ids and echoed[0].prompt.ids == before.prompt.ids
    else:  # its text is made of random bytes, which do not tell their tokens
        assert not echoed or echoed[0].answer.ids == before.answer.ids[: len(echoed[0].answer.ids)]

    def other(value: Any) -> None:
        echo(value)
        choice(value)["text"] = "not the prompt"

    lost = collected(tmp_path / "f.jsonl", lines(TEXTS, at_0=other), ids)
    assert "the prompt first, since the request has echo" in lost.losses.named[0]


def test_an_echos_offsets_that_are_too_few_are_named(tmp_path: Path, ids: Ids) -> None:
    def short(value: Any) -> None:
        value["request"]["echo"] = True
        choice(value)["text"] = value["request"]["prompt"] + choice(value)["text"]
        del choice(value)["logprobs"]["text_offset"][-1]

    found = collected(tmp_path / "f.jsonl", lines(TEXTS, at_0=short), ids)
    assert "logprobs.text_offset is a list of 5: expected 6 entries, as tokens has" in found.losses.named[0]


# Fields of a request that nobody knows


@pytest.mark.parametrize("where", ["request", "extra_body"])
def test_an_unknown_sampling_field_is_asked_for_and_never_ignored(
    where: str, tmp_path: Path, ids: Ids
) -> None:
    def sampler(value: Any) -> None:
        owner = value["request"].setdefault("extra_body", {}) if where == "extra_body" else value["request"]
        owner["xtc_probability"] = 0.5

    found = collected(tmp_path / "f.jsonl", lines(CHATS, at_1=sampler), ids)
    decoding = of_all([one.decoding for one in found.transcripts])
    assert decoding.unknown == ("xtc_probability",) and decoding.open == ("what xtc_probability does",)
    assert plain_greedy(decoding.statement) is None
    said = "\n".join(notes(Request(tmp_path / "f.jsonl"), found, {"m": decoding}))
    assert "prompts.harmless=[xtc_probability]" in said
    told = collected(tmp_path / "f.jsonl", lines(CHATS, at_1=sampler), ids, harmless=["xtc_probability"])
    assert plain_greedy(of_all([one.decoding for one in told.transcripts]).statement) is True


def test_a_known_field_in_extra_body_counts_as_the_client_sent_it(tmp_path: Path, ids: Ids) -> None:
    def penalty(value: Any) -> None:
        value["request"] |= {"extra_body": {"repetition_penalty": 1.3, "temperature": 0.7}}

    found = collected(tmp_path / "f.jsonl", lines(CHATS, at_0=penalty), ids)
    stated = found.transcripts[0].stated
    assert (stated["repetition_penalty"], stated["temperature"]) == (1.3, 0.7)


@pytest.mark.parametrize(("name", "value"), [("use_beam_search", True), ("best_of", 4)])
def test_a_search_over_several_answers_is_not_plain_greedy(
    name: str, value: object, tmp_path: Path, ids: Ids
) -> None:
    found = collected(
        tmp_path / "f.jsonl", lines(CHATS, at_0=lambda v: v["request"].update({name: value})), ids
    )
    assert plain_greedy(of_all([one.decoding for one in found.transcripts]).statement) is False


# The date in a template

DATED = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ strftime_now('%Y-%m-%d') }}\n"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def dated(tokenizer: Any, date: str = "") -> Ids:
    own = copy.deepcopy(tokenizer)
    own.chat_template = DATED
    return Ids(own, VOCAB, date=date)


def made_on(tokenizer: Any, day: str) -> tuple[int, ...]:
    text = f"<|im_start|>user {day}\nHi<|im_end|>\n<|im_start|>assistant\n"
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


HI = ({"role": "user", "content": "Hi"},)
NOON = int(datetime.datetime(2025, 3, 1, 12, tzinfo=datetime.UTC).timestamp())


def test_a_template_that_writes_the_date_writes_the_records_and_not_todays(tokenizer: Any) -> None:
    record = Record("f:1", messages=HI, created=NOON, output="x")
    prompt = dated(tokenizer).prompt(record)
    assert (prompt.ids, prompt.day) == (made_on(tokenizer, "2025-03-01"), "2025-03-01")
    told = dated(tokenizer, "2024-12-31").prompt(record)
    assert told.ids == made_on(tokenizer, "2024-12-31")
    with pytest.raises(
        LeftOut, match=r"does not state when it was made: say it with prompts.date=2026-01-31"
    ):
        dated(tokenizer).prompt(Record("f:1", messages=HI, output="x"))


def test_a_template_whose_clock_cannot_be_set_gives_no_prompt(tokenizer: Any) -> None:
    own = copy.deepcopy(tokenizer)
    own.chat_template = DATED.replace("'%Y-%m-%d'", "'%Y' ~ '-%m'")
    with pytest.raises(LeftOut, match="in a form that is not known before it runs"):
        Ids(own, VOCAB).prompt(Record("f:1", messages=HI, created=NOON, output="x"))


@pytest.mark.parametrize(
    ("day", "differs"), [("2025-02-28", False), ("2025-03-02", False), ("2025-03-03", True)]
)
def test_given_ids_may_be_of_the_day_in_another_time_zone(day: str, differs: bool, tokenizer: Any) -> None:
    record = Record("f:1", messages=HI, created=NOON, output="x", prompt_ids=made_on(tokenizer, day))
    assert dated(tokenizer).prompt(record).differs == differs


def test_a_date_is_a_day_and_a_record_cannot_bring_a_clock(tokenizer: Any) -> None:
    with pytest.raises(QdxError, match=r"prompts.date=yesterday: must be a day such as 2026-01-31"):
        Request(Path("x"), date="yesterday")
    with pytest.raises(FieldError, match=r"chat_template_kwargs.strftime_now"):
        dated(tokenizer).prompt(Record("f:1", messages=HI, created=NOON, template={"strftime_now": "x"}))


# Several prompts, several answers


def several(values: list[Any]) -> dict[str, Any]:
    """The records of single prompts as a server answers a list of them: usage is a sum."""
    made = copy.deepcopy(values[0])
    made["request"]["prompt"] = [one["request"]["prompt"] for one in values]
    made["response"]["choices"] = [{**choice(one), "index": i} for i, one in enumerate(copy.deepcopy(values))]
    usage = made["response"]["usage"]
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        usage[name] = sum(one["response"]["usage"][name] for one in values)
    return made


def test_the_usage_of_a_list_of_prompts_is_a_sum(tmp_path: Path, ids: Ids) -> None:
    single = collected(tmp_path / "f.jsonl", TEXTS, ids)
    found = collected(tmp_path / "f.jsonl", [several(TEXTS)], ids)
    assert [one.prompt.ids for one in found.transcripts] == [one.prompt.ids for one in single.transcripts]
    assert not found.left_out and {one.stated["prompt_tokens"] for one in found.transcripts} == {-1}
    more = several(TEXTS)
    more["response"]["usage"]["prompt_tokens"] += 12
    with pytest.raises(QdxError, match="counts another number of prompt tokens than all its prompts have"):
        collected(tmp_path / "f.jsonl", [more], ids)


def test_choices_of_one_index_are_named(tmp_path: Path, ids: Ids) -> None:
    twice = several(TEXTS)
    twice["response"]["choices"][1]["index"] = 0
    found = collected(tmp_path / "f.jsonl", [twice, *TEXTS], ids)
    assert "expected another index in each choice" in found.losses.named[0]


def test_the_last_usage_of_a_stream_counts(tmp_path: Path) -> None:
    pieces = [json.loads(one.removeprefix("data: ")) for one in PIECES]
    running = [
        {**one, "usage": {"prompt_tokens": 38, "completion_tokens": i}} for i, one in enumerate(pieces[:-1])
    ]
    (record,) = events(tmp_path, [f"data: {json.dumps(one)}" for one in [*running, pieces[-1]]])
    (whole,) = events(tmp_path, PIECES)
    assert isinstance(record, Record) and isinstance(whole, Record)
    assert record.completion_tokens == whole.completion_tokens


# SentencePiece


@pytest.fixture(scope="module")
def pieces() -> Any:
    """A tokenizer with ▁ before the first word, as SentencePiece's of Llama 2 and Mistral are converted."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocab = {
        name: i for i, name in enumerate(["<s>", "</s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))])
    }
    merges = [("▁", "h"), ("e", "l"), ("▁h", "el"), ("h", "el"), ("l", "o"), ("▁hel", "lo"), ("hel", "lo")]
    for name in [*"▁helo", *("".join(pair) for pair in merges)]:
        vocab.setdefault(name, len(vocab))
    made = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_a_text_that_shows_its_first_space_has_its_ids_and_one_that_does_not_is_not_guessed(
    pieces: Any,
) -> None:
    own = Ids(pieces, len(pieces))
    first, inner = (int(pieces.convert_tokens_to_ids(name)) for name in ("▁hello", "hello"))
    shown = own.answer(Record("f:1", prompt="h", output=" hello hello", finish_reason="length"))
    assert (shown.ids, shown.left_out) == ((first, first), 0)
    with pytest.raises(LeftOut, match="whether its first token begins with a space: ask for token ids"):
        own.answer(Record("f:1", prompt="h", output="hello hello", finish_reason="length"))
    for given, text in (
        ((first, first), "hello hello"), ((first, first), " hello hello"), ((inner, first), "hello hello"),
        ((first, 1), "hello"), ((first, 198), " hello"),
    ):  # fmt: skip
        record = Record("f:1", prompt="h", output=text, output_ids=given, finish_reason="stop")
        assert own.answer(record).ids == given, (given, text)
    with pytest.raises(LeftOut, match="its ids do not spell its text"):
        own.answer(Record("f:1", prompt="h", output="hello hello", output_ids=(first, inner)))


# Limits


def test_a_line_of_six_hundred_thousand_choices_is_named_and_the_others_are_read(
    tmp_path: Path, ids: Ids
) -> None:
    many = '{"choices": [' + ",".join(['{"text":"a"}'] * 600_000) + "]}"
    assert len(many) < 2**24
    found = collected(tmp_path / "f.jsonl", [CHATS[0], many, CHATS[1]], ids)
    assert found.losses.named == ["f.jsonl:2: choices is a list of 600000: expected a list of at most 1,024"]
    assert len(found.transcripts) == 2


def test_attachments_that_are_named_without_end_are_refused(tmp_path: Path) -> None:
    from qdx.dataset.guarding import allow

    log = json.loads((FILES / "inspect_log.json").read_text())
    good, bad = log["samples"][0], copy.deepcopy(log["samples"][0])
    bad["attachments"] = {"a": "x" * 10_000}
    bad["messages"][0]["content"] = [{"type": "text", "text": "attachment://a"}] * 500
    path = tmp_path / "log.json"
    path.write_text(json.dumps({**log, "samples": [bad, good]}))
    allow(max_length=1_000_000)
    lost, read = list(choose(path)[1].read(path))
    assert "expected texts of at most 1,000,000 characters together (max_length)" in str(lost)
    assert isinstance(read, Record)


HOSTILE: list[Any] = [None, True, -1, 10**30, "x", [], ["x"], {}, {"a": 1}, [[1]], [{"index": {}}]]


def test_a_piece_of_any_shape_ends_no_file(tmp_path: Path) -> None:
    """Whatever stands in a field of a piece, the answers of other lines are read."""
    base = json.loads(PIECES[3].removeprefix("data: "))
    bad = []
    for junk in HOSTILE:
        for name in ("choices", "usage", "object", "created", "model"):
            bad.append({**base, name: junk})
        for name in ("index", "delta", "logprobs", "token_ids", "finish_reason", "message", "text"):
            bad.append({**base, "choices": [{**base["choices"][0], name: junk}]})
        for name in ("content", "role", "reasoning", "tool_calls"):
            bad.append({**base, "choices": [{"index": 0, "delta": {name: junk}}]})
        bad.append(
            {**base, "choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": junk}]}}]}
        )
        bad.append({**base, "choices": [junk]})
    texts = [f"data: {json.dumps({**one, 'id': f'bad-{i}'})}" for i, one in enumerate(bad)]
    found = events(tmp_path, [*texts, *PIECES])
    whole = events(tmp_path, PIECES)
    assert whole[0].output_ids in {one.output_ids for one in found if isinstance(one, Record)}  # type: ignore[union-attr]


def test_tables_are_as_large_as_what_they_hold_and_bounded(tmp_path: Path, ids: Ids) -> None:
    """One long answer with log-probabilities does not make every other one as long."""
    from qdx.dataset.guarding import allow

    long = copy.deepcopy(CHATS[0])
    own = choice(long)
    times = 400
    own["token_ids"] *= times
    own["logprobs"]["content"] *= times
    say(long, ids._decoded(own["token_ids"]))
    long["response"]["usage"]["completion_tokens"] *= times
    many = [copy.deepcopy(CHATS[i % 4]) for i in range(100)]
    for i, one in enumerate(many):
        one["request"]["messages"][-1]["content"] = f"question {i}"
        one["response"].update(prompt_token_ids=None, usage={})
    path, target = tmp_path / "f.jsonl", tmp_path / "made.nc"
    found = collected(path, [long, *many], ids)
    assert len(found.transcripts) == 101, found.left_out
    write(Request(path), found, target, record_sha256="r" * 64, tokenizer_sha256="t" * 64, vocab=VOCAB)
    import xarray as xr

    with xr.open_dataset(target, group="stated") as stated:
        tokens = sum(len(one.logprob_T) for one in found.transcripts)
        assert stated["top_logprob"].shape == (tokens, 5)
        assert stated["top_logprob"].size < 0.1 * 101 * 400 * 8 * 5
    allow(max_bytes=200_000)
    with pytest.raises(QdxError, match=r"take [0-9,]+ bytes, limit 50,000: take fewer \(prompts.records"):
        write(Request(path), found, target, record_sha256="r" * 64, tokenizer_sha256="t" * 64, vocab=VOCAB)


def test_a_file_of_a_thousand_providers_is_refused(tmp_path: Path, ids: Ids) -> None:
    many = [copy.deepcopy(CHATS[0]) for _ in range(70)]
    for i, one in enumerate(many):
        one["response"]["model"] = f"m{i}"
    path = tmp_path / "f.jsonl"
    found = collected(path, many, ids)
    with pytest.raises(QdxError, match=r"name 70 providers and models, limit 64"):
        write(
            Request(path),
            found,
            tmp_path / "made.nc",
            record_sha256="r" * 64,
            tokenizer_sha256="t" * 64,
            vocab=VOCAB,
        )


@pytest.mark.parametrize(
    ("claimed", "said"),
    [
        ("fp8", "FORMAT: Together states fp8, which may be quant=fp8,fp8_block: the claim is about all"),
        ("bf16", "FORMAT: Together states bf16, which is quant=none model.dtype=bfloat16: the claim"),
        ("fp6", "FORMAT: Together states fp6, which names no format that is known here"),
        ("unknown", ""),
        ("in\nt4\x1b[1m", "FORMAT: Together states in t4�[1m, which names no format that is known here"),
    ],
)
def test_a_marketplace_s_name_of_a_format_is_told_with_the_configs_that_it_may_mean(
    claimed: str, said: str, tmp_path: Path, ids: Ids
) -> None:
    values = [json.loads(line) for line in (FILES / "openrouter.jsonl").read_text().splitlines()]
    for value in values:
        value["request"]["provider"]["quantizations"] = [claimed]
        value["response"]["provider"] = "Together"
    found = collected(tmp_path / "f.jsonl", values, ids)
    told = [line for line in notes(Request(tmp_path / "f.jsonl"), found, {}) if line.startswith("FORMAT")]
    assert len(told) == bool(said) and all(line.startswith(said) for line in told)
