"""One answer of a program or provider, as its own record states it, before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

LEAST_SHOWN = -9999.0  # what vLLM prints where a log-probability is −∞ or absent: JSON has neither
MOST_RANKS = 20  # log-probabilities of a position that are kept; more are counted as unknown fields
LONGEST_SHOWN = 60  # characters of a value that a message quotes
MOST_UNKNOWN = 20  # unknown fields of a request that are named
LATEST = 2**33  # seconds since 1970 that a time may have, in the year 2242
# Fields of a request that change no token of the answer: what is sent back, who pays, how long one waits. Any
# field that is neither here nor read by name may change which tokens come, so it is asked about.
HARMLESS = frozenset({
    "model", "messages", "prompt", "stream", "stream_options", "n", "user", "logprobs", "top_logprobs",
    "prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids", "echo", "metadata", "store",
    "service_tier", "provider", "parallel_tool_calls", "skip_special_tokens", "spaces_between_special_tokens",
    "include_stop_str_in_output", "detokenize", "priority", "request_id", "cache_salt", "timeout",
    "extra_headers", "extra_query", "usage", "prompt_cache_key", "safety_identifier", "session_id",
    "include_reasoning", "cache_prompt", "id_slot", "return_tokens", "timings_per_token", "return_progress",
})  # fmt: skip


class FieldError(ValueError):
    """A field of a record that cannot be used: its path, what is there and what was expected."""

    def __init__(self, field: str, got: object, expected: str) -> None:
        self.field = field
        super().__init__(f"{field or 'the record'} is {shown(got)}: expected {expected}")


@dataclass(frozen=True)
class Unreadable:
    """A line, entry or answer of a file that gives no record; the others go on.

    Attributes
    ----------
    where : str
        File and line, or entry.
    what : str
        Which field, what it holds and what was expected.
    """

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Sampling:
    """State how the tokens of an answer were chosen. None is a parameter that the record does not state.

    Attributes
    ----------
    temperature, top_p, min_p : float or None
    top_k : int or None
        0 or −1: no limit.
    repetition_penalty, presence_penalty, frequency_penalty : float or None
    seed : int or None
    logit_bias : Mapping or None
        Token id as text → bias.
    min_tokens, max_tokens : int or None
    ignore_eos : bool or None
    stop : tuple of str
        Texts that end an answer; what is after them, and they themselves, may be cut off.
    logprobs_mode : str
        Of the stated log-probabilities, such as ``raw_logprobs``; "" where the record does not say.
    restrictions : Mapping
        What else may keep tokens from being chosen: a response format, bad words, a forced tool.
    stop_ids : tuple of int
        Tokens that end an answer beside the model's own; a text need not show them.
    unknown : tuple of str
        Fields of the request that no reader knows: they may change which tokens come.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[str, float] | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    ignore_eos: bool | None = None
    stop: tuple[str, ...] = ()
    logprobs_mode: str = ""
    restrictions: Mapping[str, Any] = field(default_factory=dict)
    stop_ids: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()

    def assuming(self, values: Mapping[str, Any]) -> Sampling:
        """Return it with these values where the record states none."""
        stated = {name: getattr(self, name) for name in values}
        return replace(self, **{n: v for n, v in values.items() if stated[n] is None or stated[n] == ""})


@dataclass(frozen=True)
class Token:
    """One position of an answer as an API prints it.

    Attributes
    ----------
    text : str
        May hold � where the token is a part of a character.
    octets : bytes or None
        The token's bytes, where the record states them.
    token_id : int or None
    logprob : float
        Log-probability of the token in nat; NaN where the record states none.
    top : tuple of Token
        The listed alternatives, without alternatives of their own.
    """

    text: str
    octets: bytes | None = None
    token_id: int | None = None
    logprob: float = math.nan
    top: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Shared:
    """Hold what a response counts of all its choices together.

    Attributes
    ----------
    choices, prompts : int
        Answers, and prompts that they answer.
    prompt_tokens, completion_tokens : int or None
        Sums over all prompts, and over all choices.
    """

    choices: int
    prompts: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Record:
    """One prompt and one answer.

    Attributes
    ----------
    where : str
        File and line, or entry, for messages.
    identity : str
        What whoever asked calls it, such as a ``custom_id``, with the number of the choice; "" where it has
        no such name, and its place in the file is its name. Never what the provider calls it.
    response_id : str
        What the provider calls it.
    choice : int
        Which of the answers to its prompt, from 0: an engine makes the seed of each from the request's.
    prompt_ids : tuple of int or None
        Of the prompt, as the answer states them.
    asked_ids : tuple of int or None
        Of the prompt, as the request has them.
    special : bool or None
        Whether the request has a text prompt begin with the tokenizer's special tokens; None: not stated.
    messages : tuple of Mapping or None
        A conversation, as the request has it.
    prompt : str or None
        The text that a completion continues.
    tools : tuple of Mapping
    template : Mapping
        Arguments of the chat template, such as ``enable_thinking``.
    output_ids : tuple of int or None
    retokenized : bool
        Whether `output_ids` were made from the answer's text, so that they need not be the ones it was
        generated as.
    output : str or None
        The answer's text; None where the record has none.
    echo : bool
        Whether `output` begins with the text of the prompt's ids.
    cut : bool
        Whether the answer was not received to its end.
    reasoning : str
    tool_calls : tuple of Mapping
    tokens : tuple of Token
        Every position of the answer with its log-probabilities; empty where the record states none.
    prompt_logprobs : tuple of Mapping or None
        Of every position of the prompt: token id → log-probability; the first has none.
    finish_reason, stop_reason : str
    sampling : Sampling
    model, provider, weight_format, fingerprint : str
        As the record states them. `weight_format` is what a marketplace calls quantization, such as ``fp8``.
    prompt_tokens, completion_tokens : int or None
        Numbers of tokens that the record states of this answer.
    reasoning_tokens : int or None
        Those of the completion that are reasoning.
    shared : Shared or None
        What is counted of several answers together; the two numbers above are None then.
    created : int or None
        When it was made, in seconds since 1970.
    cached : bool
        Whether the record says that the answer came from a cache of answers.
    other : Mapping
        Every field that is not read here.
    defaults : Mapping
        What its server does where a request does not state a parameter, as far as it differs from nothing.
    """

    where: str
    identity: str = ""
    response_id: str = ""
    choice: int = 0
    prompt_ids: tuple[int, ...] | None = None
    asked_ids: tuple[int, ...] | None = None
    special: bool | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    prompt: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict)
    output_ids: tuple[int, ...] | None = None
    retokenized: bool = False
    output: str | None = None
    echo: bool = False
    cut: bool = False
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tokens: tuple[Token, ...] = ()
    prompt_logprobs: tuple[Mapping[int, float], ...] | None = None
    finish_reason: str = ""
    stop_reason: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    model: str = ""
    provider: str = ""
    weight_format: str = ""
    fingerprint: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    shared: Shared | None = None
    created: int | None = None
    cached: bool = False
    other: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


def shown(value: object) -> str:
    """Return a value as a message quotes it: on one line and not long."""
    if isinstance(value, str):
        text = repr(value[: LONGEST_SHOWN + 1])
    elif isinstance(value, dict | list | tuple):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}"
    else:
        text = str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 1]}…"


class Fields:
    """A JSON object whose fields are taken one by one, each with its path and a check of what it holds.

    Parameters
    ----------
    value : object
        What the JSON holds; anything but an object is refused.
    path : str
        Where it stands in the record, such as ``response.choices[0]``.
    """

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            raise FieldError(path, value, "an object")
        self._left, self.path = dict(value), path

    def at(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def __contains__(self, name: str) -> bool:
        return self._left.get(name) is not None

    def raw(self, name: str) -> Any:
        """Take a field as it is; None where it is absent or null."""
        return self._left.pop(name, None)

    def text(self, name: str, default: str = "") -> str:
        """Take a text."""
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise FieldError(self.at(name), value, "a text")
        return value

    def number(
        self, name: str, least: float = -math.inf, most: float = math.inf, *, above: bool = False
    ) -> float | None:
        """Take a finite number within bounds; `above` leaves the lower bound out."""
        value = self.raw(name)
        return None if value is None else number(value, self.at(name), least, most, above=above)

    def integer(self, name: str, least: int = 0, most: int = 2**63 - 1) -> int | None:
        """Take a whole number within bounds."""
        value = self.raw(name)
        return None if value is None else integer(value, self.at(name), least, most)

    def flag(self, name: str) -> bool | None:
        """Take a truth value."""
        value = self.raw(name)
        if value is not None and not isinstance(value, bool):
            raise FieldError(self.at(name), value, "true or false")
        return value

    def ids(self, name: str) -> tuple[int, ...] | None:
        """Take a list of token ids."""
        value = self.raw(name)
        return None if value is None else ids(value, self.at(name))

    def object(self, name: str) -> Fields | None:
        """Take an object."""
        value = self.raw(name)
        return None if value is None else Fields(value, self.at(name))

    def entries(self, name: str, most: int | None = None) -> list[Fields]:
        """Take a list of objects, at most so many; an absent one is empty."""
        value = self.raw(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise FieldError(self.at(name), value, "a list")
        if most is not None and len(value) > most:
            raise FieldError(self.at(name), value, f"a list of at most {most:,}")
        return [Fields(one, f"{self.at(name)}[{i}]") for i, one in enumerate(value)]

    def objects(self, name: str) -> tuple[Mapping[str, Any], ...]:
        """Take a list of objects that are passed on as they are."""
        value = self.raw(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise FieldError(self.at(name), value, "a list")
        for i, one in enumerate(value):
            if not isinstance(one, dict):
                raise FieldError(f"{self.at(name)}[{i}]", one, "an object")
        return tuple(value)

    def left(self) -> dict[str, Any]:
        """Return the fields that nobody took and that hold something."""
        return {name: value for name, value in self._left.items() if value not in (None, [], {})}


def number(
    value: object, path: str, least: float = -math.inf, most: float = math.inf, *, above: bool = False
) -> float:
    """Return a finite number within bounds."""
    bound = f"{'above' if above else 'of at least'} {least:g}" if math.isfinite(least) else ""
    limits = " and ".join(
        part for part in (bound, f"at most {most:g}" if math.isfinite(most) else "") if part
    )
    expected = f"a finite number{f' {limits}' if limits else ''}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(path, value, expected)
    if not abs(value) < 1e300 or not least <= value <= most or (above and value == least):
        raise FieldError(path, value, expected)
    return float(value)


def integer(value: object, path: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """Return a whole number within bounds; 3.0 is one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FieldError(path, value, f"a whole number from {least} to {most}")
    return value


def ids(value: object, path: str) -> tuple[int, ...]:
    """Return a list of token ids; whether the vocabulary has them is found where it is known."""
    if not isinstance(value, list):
        raise FieldError(path, value, "a list of token ids")
    for i, one in enumerate(value):
        if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < 2**31:
            raise FieldError(f"{path}[{i}]", one, "a token id, a whole number from 0")
    return tuple(value)


def logprob(value: object, path: str) -> float:
    """Return a log-probability in nat; NaN for none and for what stands for none (`LEAST_SHOWN`)."""
    if value is None:
        return math.nan
    found = number(value, path)
    if found <= LEAST_SHOWN:
        return math.nan
    if found > 1e-6:  # a float32 of a probability of 1 may come out a rounding above 0
        raise FieldError(path, value, "a log-probability, at most 0")
    return min(found, 0.0)


def stated_sampling(request: Fields, harmless: frozenset[str] = frozenset()) -> Sampling:
    """Take the sampling parameters of a request, and the names of its fields that nobody knows.

    Parameters
    ----------
    request : Fields
        From which everything was taken that is not about how tokens are chosen.
    harmless : frozenset of str
        Further fields, beside `HARMLESS`, that change no token.
    """
    bias = request.object("logit_bias")
    restrictions = {
        name: value
        for name in (
            "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice",
            "guided_grammar", "guided_decoding", "bad_words", "allowed_token_ids", "logits_processors",
        )
        if (value := request.raw(name)) not in (None, [], {}, {"type": "text"})
    }  # fmt: skip
    # Neither takes the greatest logit at each step.
    if request.flag("use_beam_search"):
        restrictions["use_beam_search"] = True
    if (best := request.integer("best_of")) is not None and best > 1:
        restrictions["best_of"] = best
    choice = request.raw("tool_choice")
    if choice not in (None, "auto", "none"):
        restrictions["tool_choice"] = choice
    stop = request.raw("stop")
    if not (stop is None or isinstance(stop, str | list)):
        raise FieldError(request.at("stop"), stop, "a text or a list of texts")
    longest = request.integer("max_completion_tokens")
    shortest = request.integer("max_tokens")
    found = Sampling(
        temperature=request.number("temperature", 0.0, 100.0),
        top_p=request.number("top_p", 0.0, 1.0),
        top_k=request.integer("top_k", -1, 2**31),
        min_p=request.number("min_p", 0.0, 1.0),
        repetition_penalty=request.number("repetition_penalty", 0.0, above=True),
        presence_penalty=request.number("presence_penalty"),
        frequency_penalty=request.number("frequency_penalty"),
        seed=request.integer("seed", -(2**63), 2**64),
        logit_bias=None if bias is None else {name: _bias(bias, name) for name in list(bias.left())},
        min_tokens=request.integer("min_tokens"),
        max_tokens=longest if longest is not None else shortest,
        ignore_eos=request.flag("ignore_eos"),
        stop=(stop,) if isinstance(stop, str) else tuple(str(one) for one in stop or ()),
        logprobs_mode=request.text("logprobs_mode"),
        restrictions=restrictions,
        stop_ids=request.ids("stop_token_ids") or (),
    )
    names = sorted(request.left().keys() - HARMLESS - harmless)
    return replace(found, unknown=tuple(names[:MOST_UNKNOWN]))


def moment(value: object) -> int | None:
    """Return a time in seconds since 1970; None for what is not such a time, which decides nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LATEST:
        return None
    return int(value)


def _bias(bias: Fields, name: str) -> float:
    return bias.number(name) or 0.0


def parameters() -> Iterator[str]:
    """Iterate over the names of the parameters of `Sampling` that are numbers or truth values."""
    skipped = ("stop", "logprobs_mode", "restrictions", "logit_bias", "stop_ids", "unknown")
    return (one.name for one in fields(Sampling) if one.name not in skipped)
