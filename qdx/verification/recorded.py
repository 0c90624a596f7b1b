"""Read what a file of other programs' records says of its transcripts, beside their tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from qdx.document.format import plural
from qdx.errors import printable
from qdx.records.decoding import samplers_of
from qdx.statistics import Bools, Floats, Ints
from qdx.verification.units import Span

MOST_NOTES, LONGEST_NOTE = 60, 400  # lines of such a file, and characters of each, that are shown


@dataclass(frozen=True)
class Recorded:
    """Hold what records of another program say of a producer, and what had to be taken for granted.

    Attributes
    ----------
    assumed, asked : str
        Sampling parameters that are not stated: those that were taken to do nothing, and those that nobody
        can assume.
    other_prompts : int
        Transcripts whose prompt is not the one that was asked or replayed: they are not judged.
    prompt_said : str
        How the first of them differs.
    other_R : array (reference,)
        Which ones.
    from_text : int
        Transcripts whose ids were made from text.
    unreadable, left_out, duplicates, tokens_left_out : int
        What is not judged, or cannot be told apart: lines that could not be read, answers that give no
        transcript, answers that have the name of another one, and tokens that cannot be known.
    left_out_why : str
        Why answers are left out, with where the first of them stand.
    stated : bool
        Whether the file says what was left out; one of an earlier version does not.
    alone : int
        Transcripts without a request beside them.
    answers_R : tuple of str
        Hash of each transcript's prompt and answer; "" where there is none.
    open_R : array (reference,)
        Transcripts after whose last token one more was chosen that is not among them, or may have been.
    samplers_RP : array (reference, 4)
        See `qdx.dataset.layout.Producer`; NaN where no token was drawn, or nobody knows how.
    fingerprint : str
        What the records call the server's build, such as ``vllm-0.32.0-523d7c03``.
    logprobs_mode : str
        Of the listed log-probabilities, such as ``raw_logprobs``; "" where no record says.
    noise : str
        How its engine makes noise of a seed, as the verifier says; see `qdx.capture.noise_names`.
    prompt_more : str
        Tokens that the provider counts in its prompts beside those that are replayed, least to most; "" where
        no record says.
    seconds_R : array (reference,)
        That each answer took, as ``backend=openai`` measured it; NaN where the file does not say.
    """

    assumed: str = ""
    asked: str = ""
    other_prompts: int = 0
    prompt_said: str = ""
    other_R: Bools = field(default_factory=lambda: np.zeros(0, bool))
    from_text: int = 0
    unreadable: int = 0
    left_out: int = 0
    duplicates: int = 0
    tokens_left_out: int = 0
    left_out_why: str = ""
    stated: bool = True
    alone: int = 0
    answers_R: tuple[str, ...] = ()
    open_R: Bools = field(default_factory=lambda: np.zeros(0, bool))
    samplers_RP: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    fingerprint: str = ""
    logprobs_mode: str = ""
    noise: str = ""
    prompt_more: str = ""
    seconds_R: Floats = field(default_factory=lambda: np.zeros(0))

    @property
    def lost_answers(self) -> int:
        """Answers of which nothing is judged, at most: a line that cannot be read may be anybody's."""
        return self.unreadable + self.left_out

    @property
    def order_matters(self) -> bool:
        """Return whether engines cut off other tokens by these parameters, and the records name no known one.

        vLLM divides by the temperature first, and takes min-p, top-k and then top-p of what is left. Others
        divide last (llama.cpp), or take top-p of all tokens.
        """
        if self.fingerprint.startswith("vllm-") or self.noise.startswith("vllm-"):
            return False
        temperature, top_k, top_p, min_p = self.samplers_RP.T
        cold, cut = temperature != 1, min_p > 0
        return bool((((top_p < 1) & (cold | cut | (top_k > 0))) | (cut & cold)).any())

    @property
    def lost(self) -> str:
        """Return what of the provider's answers was not judged, in words; "" where nothing was lost.

        Whoever writes the answers can make those unreadable that would speak against them.
        """
        if not self.stated:
            return "the file does not state what was left out of the records: give the records themselves"
        said = []
        if self.unreadable:
            said.append(f"{plural(self.unreadable, 'line')} could not be read")
        if self.left_out:
            why = f" ({self.left_out_why})" if self.left_out_why else ""
            said.append(f"{plural(self.left_out, 'answer')} left out{why}")
        if self.duplicates:
            said.append(f"{plural(self.duplicates, 'answer')} with the name of another one")
        if self.tokens_left_out:
            said.append(f"{plural(self.tokens_left_out, 'token')} that cannot be known")
        return ", ".join(said)


def shared_groups(tree: xr.DataTree, producers: list[str], references: list[str]) -> list[tuple[int, ...]]:
    """Groups of each producer's transcripts that share a seed or are one cached answer; −1: no transcript."""
    group = tree["stated"].to_dataset()["group"].sel(config=producers, reference=references)
    return [tuple(map(int, row)) for row in group.transpose("config", "reference").values]


def notes_of(tree: xr.DataTree) -> list[str]:
    """Return how the records were read, in lines that act on no terminal."""
    lines = [printable(line)[:LONGEST_NOTE] for line in str(tree.attrs.get("notes", "")).split("\n") if line]
    return lines[:MOST_NOTES]


def there_only(keys: Sequence[str], spans: Sequence[Span], emitted_R: Ints) -> tuple[list[str], list[Span]]:
    """Keys and spans of a producer's transcripts; a reference without one is a unit of nobody."""
    nobody: Span = ("", 0, np.empty(0, np.int64))
    return (
        [key if n else f"no transcript {i}" for i, (key, n) in enumerate(zip(keys, emitted_R, strict=True))],
        [span if n else nobody for span, n in zip(spans, emitted_R, strict=True)],
    )


def record_of(tree: xr.DataTree, stored: xr.Dataset, label: str, references: list[str]) -> Recorded:
    """Return what the file says of a producer; `stored` is its ``/provenance``."""
    about = tree["stated"].to_dataset().sel(config=label, reference=references)
    own = tree["references"].to_dataset().sel(reference=references)
    length, here = own["length"].values, about["group"].values >= 0
    said = about["prompt_tokens"].values
    number = here & (said >= 0) & (said != length)
    differs = here & _flags(about, "prompt_differs")
    how = about["answer_how"].values.astype(str)
    counts = {name: stated_text(stored, name, label) for name in ("unreadable", "left_out", "duplicates")}
    known = all(text.isascii() and text.isdigit() for text in counts.values())
    cut = about["tokens_left_out"].values if "tokens_left_out" in about else np.zeros(len(here), int)
    emitted = tree["output"].to_dataset()["token_id"].sel(config=label, reference=references).isel(repeat=0)
    return Recorded(
        assumed=stated_text(stored, "assumed", label),
        asked=stated_text(stored, "asked", label),
        other_prompts=int((number | differs).sum()),
        prompt_said=_prompt_said(about, length, number, differs),
        other_R=number | differs,
        from_text=int((here & np.isin(how, ("text", "joined"))).sum()),
        **({name: int(text) for name, text in counts.items()} if known else {}),
        tokens_left_out=int(cut[here].clip(min=0).sum()),
        left_out_why=printable(stated_text(stored, "left_out_why", label)).replace("\n", " "),
        stated=known and "tokens_left_out" in about and "prompt_differs" in about,
        alone=int((here & _flags(about, "prompt_alone")).sum()),
        answers_R=_answers(own, emitted.transpose("reference", "output_token").values),
        open_R=here & (_flags(about, "end_open") if "end_open" in about else True),
        samplers_RP=samplers_of(about["decoding"].values if "decoding" in about else [""] * len(here)),
        fingerprint=stated_text(stored, "fingerprint", label),
        logprobs_mode=_mode(about, here),
        noise=stated_text(stored, "noise", label),
        prompt_more=_prompt_more((said - length)[here & (said >= 0)]),
        seconds_R=np.array([_seconds(text) for text in about["other"].values])
        if "other" in about
        else np.full(len(here), np.nan),
    )


def _prompt_more(more: Ints) -> str:
    if not len(more):
        return ""
    least, most = int(more.min()), int(more.max())
    return str(least) if least == most else f"{least} to {most}"


def _seconds(other: object) -> float:
    """Seconds of an answer, among what its record states beside what is read: a stranger's text, maybe."""
    try:
        value = json.loads(str(other))["qdx"]["seconds"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("nan")
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9
    return float(value) if known else float("nan")


def _mode(about: xr.Dataset, here_R: Bools) -> str:
    """The modes of all answers that list any log-probability; "" where one of them does not say."""
    if "logprobs_mode" not in about:
        return ""
    listing = here_R & (about["listed_count"].values > 0) if "listed_count" in about else here_R
    modes = set(about["logprobs_mode"].values[listing].astype(str))
    return "" if "" in modes else ", ".join(sorted(modes))


def _flags(about: xr.Dataset, name: str) -> Bools:
    count = about.sizes["reference"]
    return np.asarray(about[name].values != 0, bool) if name in about else np.zeros(count, bool)


def _prompt_said(about: xr.Dataset, length_R: Ints, number_R: Bools, differs_R: Bools) -> str:
    """Say how the first prompt differs that is not the one that was asked."""
    if number_R.any():
        r = int(np.argmax(number_R))
        stated = int(about["prompt_tokens"].values[r])
        return f"the provider's prompt has {stated} tokens, the one replayed here {int(length_R[r])}"
    if not differs_R.any():
        return ""
    r = int(np.argmax(differs_R))
    made = int(about["template_tokens"].values[r])
    if made < 0:
        return "nothing shows that the ids of the provider's prompt are those of the request"
    return (
        f"the ids of the provider's prompt ({int(length_R[r])} tokens) are not those that the request makes "
        f"({made})"
    )


def _answers(references: xr.Dataset, emitted_RT: Ints) -> tuple[str, ...]:
    prompts_RN = references["token_ids"].transpose("reference", "token").values
    return tuple(
        hashlib.sha256(np.concatenate([prompt, [-2], own]).astype("<i8").tobytes()).hexdigest()
        if (own >= 0).any()
        else ""
        for prompt, own in zip(prompts_RN, emitted_RT, strict=True)
    )


def own_units(unit_R: Ints, there_R: Bools) -> int:
    """Count the units of the transcripts that are there; nobody's references are units of nobody."""
    return len(set(unit_R[there_R].tolist()))


def stated_text(stored: xr.Dataset, name: str, label: str) -> str:
    """Return a fact of ``/provenance``; "" where the file does not state it."""
    return str(stored[name].sel(config=label).values) if name in stored else ""
