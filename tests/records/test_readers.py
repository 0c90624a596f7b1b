"""Every committed file is read by its reader, and what is read agrees with itself and with the model."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from qdx.backends.sampling import plain_greedy
from qdx.errors import QdxError
from qdx.prompts._record_collect import transcript
from qdx.prompts._record_ids import Ids, LeftOut
from qdx.records import FieldError, Record, Sampling, Token, Unreadable, choose, readers
from qdx.records.decoding import Decoding, of_all
from tests.legacy.files import results
from tests.records import FILES

VOCAB = 1200
BATCH = str(FILES / "batch_input.jsonl")
# File → reader, answers, lines that cannot be read, transcripts and how their ids are known, reasons without.
EXPECTED: dict[str, tuple[str, int, int, dict[str, int], int]] = {
    "vllm_chat_greedy.jsonl": ("vllm", 4, 0, {"given": 4}, 0),
    "vllm_chat_text.jsonl": ("vllm", 4, 0, {"text": 3}, 1),
    "vllm_chat_sampled_token_id.jsonl": ("vllm", 8, 0, {"given": 8}, 0),
    "vllm_chat_hidden_prompt.jsonl": ("vllm", 2, 0, {"text": 2}, 0),
    "vllm_chat_chunks.jsonl": ("vllm", 2, 0, {"text": 1}, 1),
    "vllm_stream_ids.sse": ("vllm", 1, 0, {"given": 1}, 0),
    "vllm_completions.jsonl": ("vllm", 3, 0, {"given": 3}, 0),
    "vllm_completions_ids_prompt.jsonl": ("vllm", 3, 0, {"bytes": 3}, 0),
    "vllm_batch_output.jsonl": ("vllm", 3, 1, {"bytes": 3}, 0),
    "vllm_topk_known.jsonl": ("vllm", 44, 0, {"given": 44}, 0),
    "vllm_topk_answers.jsonl": ("vllm", 8, 0, {"given": 8}, 0),
    "vllm_topk_awq.jsonl": ("vllm", 8, 0, {"given": 8}, 0),
    "llamacpp_answers.jsonl": ("llamacpp", 4, 0, {"given": 4}, 0),
    "vllm_processed_known.jsonl": ("vllm", 36, 0, {"given": 36}, 0),
    "vllm_processed_answers.jsonl": ("vllm", 8, 0, {"given": 8}, 0),
    "vllm_processed_awq.jsonl": ("vllm", 8, 0, {"given": 8}, 0),
    "k2_results.jsonl": ("k2", 3, 1, {"text": 2}, 1),
    "difr_openrouter_api.json": ("difr", 3, 0, {"text": 3}, 0),
    "difr_package_list.json": ("difr", 2, 0, {"given": 2}, 0),
    "difr_readme.json": ("difr", 2, 0, {"given": 2}, 0),
    "inspect_log.eval": ("inspect", 3, 0, {"bytes": 3}, 0),
    "inspect_log.json": ("inspect", 1, 0, {"bytes": 1}, 0),
    "lm_eval_samples_completions.jsonl": ("lm_eval", 3, 0, {"text": 1}, 2),
    "lm_eval_samples_chat.jsonl": ("lm_eval", 3, 0, {"text": 3}, 0),
    "lm_eval_samples_multiple_choice.jsonl": ("lm_eval", 0, 3, {}, 0),
    "openai_client.jsonl": ("openai", 2, 0, {"bytes": 1, "text": 1}, 0),
    "openrouter.jsonl": ("openrouter", 3, 0, {"text": 3}, 0),
}


@pytest.fixture(scope="module")
def ids() -> Ids:
    from transformers import AutoTokenizer

    return Ids(AutoTokenizer.from_pretrained(str(FILES / "tokenizer")), VOCAB)


def read(name: str) -> tuple[str, list[Record], list[Unreadable]]:
    requests = BATCH if "batch_output" in name else ""
    chosen, reader = choose(FILES / name, requests=requests)
    found = list(reader.read(FILES / name))
    return (
        chosen,
        [one for one in found if isinstance(one, Record)],
        [one for one in found if isinstance(one, Unreadable)],
    )


def test_each_answer_to_a_prompt_has_its_number_of_which_an_engine_makes_its_seed(ids: Ids) -> None:
    _, records, _ = read("vllm_chat_sampled_token_id.jsonl")
    assert [one.choice for one in records] == [0, 1] * 4
    stated = [transcript(one, ids, {}, {}).stated for one in records]
    assert [(one["seed"], one["noise_seed"]) for one in stated] == [("11", "11"), ("11", "12")] * 4


def test_llama_cpp_lists_no_part_of_a_character_and_has_defaults_of_its_own(ids: Ids) -> None:
    _, records, _ = read("llamacpp_answers.jsonl")
    by_name = {one.identity: one for one in records}
    answers = {name: ids.answer(one) for name, one in by_name.items()}
    assert {name: (len(one.ids), one.left_out) for name, one in answers.items()} == {
        "greedy#0": (6, 1),  # its seventh of eight is a part of a character, so the eighth is not known
        "plain#0": (8, 0),
        "part#0": (7, 1),
        "chat#0": (6, 0),
    }
    assert {one.sampling.logprobs_mode for one in records} == {"raw_logprobs"}
    # What a request does not state is not taken to be nothing, as it is of other servers.
    chat, plain = by_name["chat#0"], by_name["plain#0"]
    assert Decoding.of(chat.sampling, chat.defaults).asked == ("top_p", "top_k", "min_p")
    assert Decoding.of(chat.sampling, {}).asked == ()
    assert Decoding.of(plain.sampling, plain.defaults).asked == ()
    assert plain_greedy(Decoding.of(by_name["greedy#0"].sampling, chat.defaults).statement)
    # The same answer with one entry taken away, and no sign of a part of a character, hides a token.
    hidden = replace(plain, tokens=plain.tokens[:-1], output_ids=(plain.output_ids or ())[:-1])
    with pytest.raises(LeftOut, match="tokens are hidden"):
        ids.answer(hidden)


def test_every_committed_file_is_listed_here_and_in_the_table_of_who_wrote_it() -> None:
    names = {path.name for path in FILES.iterdir() if path.is_file()} - {"README.md", "batch_input.jsonl"}
    assert names == set(EXPECTED)
    table = (FILES / "README.md").read_text()
    assert not [name for name in names if f"`{name}`" not in table]


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_is_recognised_and_gives_the_answers_that_it_holds(name: str, ids: Ids) -> None:
    reader, answers, lost, how, left_out = EXPECTED[name]
    chosen, records, unreadable = read(name)
    assert (chosen, len(records), len(unreadable)) == (reader, answers, lost)
    found: Counter[str] = Counter()
    reasons = 0
    for record in records:
        assert ids.prompt(record).ids
        try:
            found[ids.answer(record).how] += 1
        except LeftOut:
            reasons += 1
    assert (dict(found), reasons) == (how, left_out)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_chat_template_makes_as_many_tokens_as_the_server_counted(name: str, ids: Ids) -> None:
    for record in read(name)[1]:
        if record.prompt_tokens is None:
            continue
        prompt = ids.prompt(record)
        differs = len(prompt.ids) != record.prompt_tokens
        assert differs == ("hidden_prompt" in name), (
            "only the request that was changed by hand is another one"
        )


def test_the_chat_template_makes_the_very_ids_that_vllm_made(ids: Ids) -> None:
    for record in read("vllm_chat_greedy.jsonl")[1]:
        assert record.messages is not None
        assert ids.prompt(replace(record, prompt_ids=None)).ids == record.prompt_ids


@pytest.mark.parametrize(
    "name", ["vllm_chat_greedy.jsonl", "vllm_chat_sampled_token_id.jsonl", "vllm_completions.jsonl"]
)
def test_tokens_found_by_their_bytes_are_those_that_the_server_emitted(name: str, ids: Ids) -> None:
    known = 0
    for record in read(name)[1]:
        assert record.output_ids is not None
        nameless = tuple(Token(t.text, t.octets, None, t.logprob) for t in record.tokens)
        found = [ids.known(token) for token in nameless]
        wrong = [(a, b) for a, b in zip(found, record.output_ids, strict=True) if a not in (-1, b)]
        assert not wrong
        known += sum(one >= 0 for one in found)
        answer = ids.answer(replace(record, output_ids=None, tokens=nameless)) if found[0] >= 0 else None
        if answer is not None:
            assert answer.ids == record.output_ids[: len(answer.ids)]
            assert answer.left_out == len(found) - len(answer.ids)
    assert known > 10


def test_stated_log_probabilities_are_of_the_ids_beside_them(ids: Ids) -> None:
    for record in read("vllm_chat_greedy.jsonl")[1]:
        for token in record.tokens:
            assert token.logprob == token.top[0].logprob == max(one.logprob for one in token.top), "greedy"
            assert len(token.top) == 5
    for record in read("vllm_chat_sampled_token_id.jsonl")[1]:
        for token in record.tokens:
            assert all(one.token_id is not None and one.octets is None for one in token.top)
    for record in read("vllm_completions.jsonl")[1]:
        assert record.prompt_logprobs is not None and record.prompt_ids is not None
        assert record.prompt_logprobs[0] == {}
        for own, listed in zip(record.prompt_ids[1:], record.prompt_logprobs[1:], strict=True):
            assert own in listed


def test_a_stream_in_pieces_is_the_answer_that_was_given_at_once() -> None:
    whole = read("vllm_chat_greedy.jsonl")[1][0]
    streamed = read("vllm_stream_ids.sse")[1][0]
    assert streamed.prompt_ids == whole.prompt_ids
    count = len(whole.output_ids or ())
    assert streamed.output_ids is not None and streamed.output_ids[:count] == whole.output_ids
    assert [t.logprob for t in streamed.tokens[:count]] == [t.logprob for t in whole.tokens]
    assert streamed.completion_tokens == len(streamed.output_ids)


def test_two_answers_that_are_streamed_at_once_are_told_apart(tmp_path: Path) -> None:
    text = (FILES / "vllm_stream_ids.sse").read_text()
    pieces = [line for line in text.splitlines() if line.startswith("data: {")]
    other = [line.replace("chatcmpl-", "chatcmpl-other-") for line in pieces]
    mixed = [line for pair in zip(pieces, other, strict=True) for line in pair]
    path = tmp_path / "mixed.sse"
    path.write_text("\n\n".join(mixed))
    records = [one for one in choose(path)[1].read(path) if isinstance(one, Record)]
    assert len(records) == 2 and records[0].output_ids == records[1].output_ids


def test_sampling_parameters_are_those_of_the_request() -> None:
    _, records, _ = read("vllm_batch_output.jsonl")
    assert [r.sampling.seed for r in records] == [100, 101, 102]
    assert all(r.sampling.temperature == 0.8 and r.sampling.top_p == 0.9 for r in records)
    assert read("k2_results.jsonl")[1][0].sampling.temperature == 0.6
    chat = read("lm_eval_samples_chat.jsonl")[1][0]
    assert (chat.sampling.temperature, chat.sampling.seed, chat.sampling.max_tokens) == (0.5, 4, 10)
    assert chat.sampling.stop == ("\n\n",)
    log = read("inspect_log.eval")[1][0]
    assert (log.sampling.temperature, log.sampling.seed, log.finish_reason) == (0.0, 5, "length")
    router = read("openrouter.jsonl")[1]
    assert {r.provider for r in router} == {"Together", "DeepInfra"}
    assert {r.weight_format for r in router} == {"fp8"}


def test_fields_that_no_reader_knows_are_kept(tmp_path: Path) -> None:
    line = json.loads((FILES / "vllm_chat_text.jsonl").read_text().splitlines()[0])
    line["response"]["choices"][0]["new_choice_field"] = {"a": [1]}
    line["response"]["new_field"], line["request"]["new_request_field"] = 7, "x"
    line["around"] = True
    path = tmp_path / "new.jsonl"
    path.write_text(json.dumps(line))
    (record,) = choose(path)[1].read(path)
    assert isinstance(record, Record)
    assert record.other["response.choices[0].new_choice_field"] == {"a": [1]}
    assert record.other["response.new_field"] == 7 and record.other["around"] is True
    assert record.other["request.new_request_field"] == "x"


def test_the_downloader_of_token_difr_made_its_ids_from_text_and_that_is_said() -> None:
    assert all(r.retokenized for r in read("difr_openrouter_api.json")[1])
    assert not any(r.retokenized for r in read("difr_readme.json")[1])


def test_the_originals_files_are_read_by_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "original.json"
    file = results()
    path.write_text(json.dumps(file))
    chosen, reader = choose(path)
    records = [one for one in reader.read(path) if isinstance(one, Record)]
    assert chosen == "legacy" and len(records) == sum(map(len, file["generations"].values()))
    assert records[0].output_ids == tuple(file["generations"]["awq"][0]["generated_ids"])
    assert records[0].sampling.temperature is None, "such a file does not state it"


def test_a_reader_can_be_forced_and_an_unknown_one_is_refused() -> None:
    assert choose(FILES / "vllm_chat_text.jsonl", "openai")[0] == "openai"
    with pytest.raises(QdxError, match=r"prompts.reader=vlm: one of .*did you mean 'vllm'"):
        choose(FILES / "vllm_chat_text.jsonl", "vlm")
    with pytest.raises(QdxError, match=r"prompts.requests=x: the reader k2 takes no requests"):
        choose(FILES / "k2_results.jsonl", "k2", "x")


def test_a_plug_in_reads_a_format_of_its_own_and_is_asked_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "pairs.py").write_text(
        "import qdx\n"
        "from qdx.records import Record\n\n\n"
        '@qdx.register("record_reader", "pairs")\n'
        "class Pairs:\n"
        "    def matches(self, head):\n"
        '        return head.startswith(b"PAIRS")\n\n'
        "    def read(self, path):\n"
        "        for number, line in enumerate(path.read_text().splitlines()[1:], 2):\n"
        '            prompt, _, answer = line.partition(" -> ")\n'
        '            yield Record(f"{path.name}:{number}", prompt=prompt, output=answer)\n'
    )
    path = tmp_path / "own.txt"
    path.write_text("PAIRS\nName a class -> attribute\n")
    monkeypatch.chdir(tmp_path)
    name, reader = choose(path)
    (record,) = reader.read(path)
    assert name == "pairs" and isinstance(record, Record) and record.output == "attribute"


def test_a_plug_in_cannot_take_a_shipped_readers_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "mine.py").write_text(
        "import qdx\n\n\n"
        '@qdx.register("record_reader", "vllm")\n'
        "class Mine:\n"
        "    def matches(self, head):\n        return True\n\n"
        "    def read(self, path):\n        return iter(())\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QdxError, match="two plug-ins are named record_reader=vllm"):
        choose(FILES / "k2_results.jsonl")


def test_every_shipped_reader_says_what_it_reads() -> None:
    for name, member in readers().items():
        assert member.__doc__ and member.qdx.name == name


# What is stated of decoding


def test_a_greedy_record_is_plain_and_what_it_leaves_out_is_assumed_by_name() -> None:
    greedy = Decoding.of(Sampling(temperature=0.0), {})
    assert plain_greedy(greedy.statement) is True
    assert set(greedy.assumed) == {
        "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "logit_bias",
    }  # fmt: skip
    assert plain_greedy(Decoding.of(Sampling(temperature=0.7), {}).statement) is False
    assert plain_greedy(Decoding.of(Sampling(), {}).statement) is None
    assert Decoding.of(Sampling(), {}).asked == ("temperature",)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0, repetition_penalty=1.1),
        Sampling(temperature=0.0, logit_bias={"5": 3.0}),
        Sampling(temperature=0.0, min_tokens=4),
        Sampling(temperature=0.0, restrictions={"response_format": {"type": "json_object"}}),
    ],
)
def test_a_greedy_record_with_anything_added_to_its_logits_is_not_plain(sampling: Sampling) -> None:
    assert plain_greedy(Decoding.of(sampling, {}).statement) is False


def test_a_setting_of_the_checkpoint_that_a_server_may_use_is_asked_for_and_not_assumed() -> None:
    decoding = Decoding.of(Sampling(temperature=0.0), {"repetition_penalty": 1.05})
    assert decoding.asked == ("repetition_penalty",) and plain_greedy(decoding.statement) is None
    stated = Decoding.of(Sampling(temperature=0.0, repetition_penalty=1.0), {"repetition_penalty": 1.05})
    assert not stated.asked and plain_greedy(stated.statement) is True


def test_one_sampled_answer_makes_a_provider_a_sampled_one() -> None:
    one, two = (Decoding.of(Sampling(temperature=t), {}) for t in (0.0, 0.7))
    assert plain_greedy(of_all([one, one]).statement) is True
    assert plain_greedy(of_all([one, two]).statement) is False
    penalty = Decoding.of(Sampling(temperature=0.0, presence_penalty=0.5), {})
    assert plain_greedy(of_all([one, penalty]).statement) is False
    assert plain_greedy(of_all([one, Decoding.of(Sampling(), {})]).statement) is None


# Text to ids


def test_a_text_that_a_stop_string_cut_loses_its_last_token(ids: Ids) -> None:
    base = Record("f:1", prompt="x", output=" the value of a class", finish_reason="stop")
    whole, cut = ids.answer(base), ids.answer(replace(base, sampling=Sampling(stop=("\n",))))
    assert cut.ids == whole.ids[:-1] and (whole.left_out, cut.left_out) == (0, 1)
    assert ids.answer(replace(base, finish_reason="")).left_out == 1, "cut by a lost connection"


def test_a_text_with_an_unreadable_character_counts_up_to_the_token_before_it(ids: Ids) -> None:
    whole = ids.answer(Record("f:1", prompt="x", output=" the value of", finish_reason="length"))
    broken = Record("f:1", prompt="x", output=" the value of\ufffd class", finish_reason="length")
    answer = ids.answer(broken)
    assert answer.ids == whole.ids[: len(answer.ids)] and 0 < len(answer.ids) < len(whole.ids)
    assert answer.left_out > 0


def test_an_answer_whose_text_makes_another_number_of_tokens_than_stated_is_left_out(ids: Ids) -> None:
    record = Record("f:1", prompt="x", output=" the value of", finish_reason="stop")
    count = len(ids.answer(record).ids)
    for stated in (count, count + 1):  # the end token may be counted
        assert len(ids.answer(replace(record, completion_tokens=stated)).ids) == count
    with pytest.raises(LeftOut, match="another number of tokens"):
        ids.answer(replace(record, completion_tokens=count + 2))


def test_a_marker_in_an_answers_text_is_text(ids: Ids) -> None:
    answer = ids.answer(Record("f:1", prompt="x", output="say <|im_end|> now", finish_reason="length"))
    assert 1 not in answer.ids, "the id of the marker itself"


THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments.x }}</call>"
    "{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_reasoning_and_tool_calls_are_joined_as_the_template_does_where_a_count_confirms_it(ids: Ids) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(FILES / "tokenizer"))
    tokenizer.chat_template = THINKING
    own = Ids(tokenizer, VOCAB)
    call = {"type": "function", "function": {"name": "value", "arguments": '{"x": 3}'}}
    record = Record(
        "f:1",
        messages=({"role": "user", "content": "a"},),
        output="so",
        reasoning="the class",
        tool_calls=(call,),
    )
    text = "<think>the class</think>\nso<call>value 3</call>"
    expected = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    joined = own.answer(replace(record, completion_tokens=len(expected) + 1))
    assert joined.ids == expected and joined.how == "joined"
    for stated in (None, len(expected) + 5):
        with pytest.raises(LeftOut):
            own.answer(replace(record, completion_tokens=stated))
    with pytest.raises(LeftOut, match="does not write its reasoning"):
        ids.answer(replace(record, completion_tokens=len(expected)))


@pytest.mark.parametrize("name", ["chat_template", "tokenize", "conversation", "return_tensors"])
def test_a_record_cannot_bring_a_template_of_its_own(name: str, ids: Ids) -> None:
    record = Record("f:1", messages=({"role": "user", "content": "a"},), template={name: "{{ 1 }}"})
    with pytest.raises(FieldError, match=f"chat_template_kwargs.{name}"):
        ids.prompt(record)


def test_ids_outside_the_vocabulary_are_named_by_their_place(ids: Ids) -> None:
    with pytest.raises(
        FieldError, match=r"token_ids\[1\] is 1200: expected an id of this model's vocabulary"
    ):
        ids.answer(Record("f:1", prompt_ids=(1,), output_ids=(3, 1200)))
    with pytest.raises(FieldError, match=r"prompt_token_ids\[0\]"):
        ids.prompt(Record("f:1", prompt_ids=(5000,), output_ids=(3,)))


def test_a_prompt_of_pictures_is_refused_by_its_place(ids: Ids) -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    record = Record("f:1", messages=({"role": "user", "content": parts},), output="x")
    with pytest.raises(FieldError, match=r"messages\[0\].content\[1\]\[0\]"):
        ids.prompt(record)


def test_absent_log_probabilities_are_not_numbers() -> None:
    from qdx.records.record import logprob

    assert math.isnan(logprob(-9999.0, "x")) and math.isnan(logprob(None, "x"))
    assert logprob(-0.5, "x") == -0.5 and logprob(1e-9, "x") == 0.0
    with pytest.raises(FieldError, match="a log-probability, at most 0"):
        logprob(0.5, "x")
