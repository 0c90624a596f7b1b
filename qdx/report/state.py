"""Collect what a report is made from, beside the analyses: jobs, files, and the commands to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdx.commands import checked, own_command


@dataclass(frozen=True)
class Facts:
    """State of a sweep folder at the time of the report.

    Attributes
    ----------
    directory : Path
    labels, missing : list of str
        Expected labels, and those that left nothing.
    failed : Mapping of str to str
        Label to error.
    broken : Mapping of str to str
        Analysis to the error that it raised.
    settings : Mapping
        ``sweep.json``, empty where there is none.
    unmeasured : Mapping of str to str
        Metric to the error that ended its measuring.
    unwritten : Mapping of str to str
        File to the error that its making raised.
    damaged : Mapping of str to str
        File to the rows in it that could not be measured because they are not what was written.
    unchecked : Mapping of str to str
        File, or several in words, to why nobody can tell whether its values are what was written.
    stated : bool
        The files may be a stranger's, so their texts and sources are shown as what he says.
    """

    directory: Path
    labels: list[str]
    missing: list[str]
    failed: Mapping[str, str]
    broken: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    unwritten: Mapping[str, str] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    unchecked: Mapping[str, str] = field(default_factory=dict)
    stated: bool = False

    def problems(self) -> list[tuple[str, str, str]]:
        """Return what went wrong in making the report: the kind in capitals, the name and the error."""
        return [
            (kind, name, error)
            for kind, found in (
                ("METRIC FAILED", self.unmeasured),
                ("ANALYSIS FAILED", self.broken),
                ("NOT WRITTEN", self.unwritten),
                ("NOT MEASURED", self.damaged),
                ("UNCHECKED", self.unchecked),
            )
            for name, error in found.items()
        ]


# Files with the bytes of data; None: a page, which cannot state its own size.
Files = Sequence[tuple[Path, int | None]]


def size(count: int | None) -> str:
    """A file's size; empty for a file of unstated size."""
    if count is None:
        return ""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def resume_command(facts: Facts) -> str:
    """The command that runs what failed or is missing; empty when the folder does not say."""
    return own_command(facts.settings.get("resume"), facts.directory)


def started_command(facts: Facts) -> str:
    """The command that started the sweep; empty when the folder does not say."""
    return own_command(facts.settings.get("command_line"), facts.directory)


def report_command(facts: Facts) -> str:
    """The command that redoes merge, analyses and report."""
    return shlex.join(["python", "-m", "qdx.report", str(facts.directory)])


VERIFIER, EXCHANGE = "Next command for the verifier machine", "Next command of the exchange"
# Of an exchange (`qdx.challenge`, `qdx.commit`, `qdx.open_rows`), in the prover's folder.
CHALLENGE, COMMITMENT, OPENED = "challenge.json", "commitment.json", "opened.nc"
ANSWERS = "verify.challenge=challenge.json"


def next_command(facts: Facts, configs: list[str]) -> tuple[str, str]:
    """Return what to type next, where, and why.

    Of a sweep that ran a verifier's challenge it is the next step of the exchange, by the files that are
    there; of others the replay on a verifier's machine. The configs are those of this sweep; prompts, tokens
    and batching come from the file.

    Returns
    -------
    (explanation, command)
        Empty for a verifier's sweep, which produced no transcripts.
    """
    stated = facts.settings.get("arguments")
    # What cannot be shown is not a reason to show nothing: quant and the path are known without it.
    arguments = checked([str(a) for a in stated]) or [] if isinstance(stated, list) else []
    if "prompts=transcripts" in arguments:
        return "", ""
    kept = [a for a in arguments if a != "-m" and not _from_file(a)]
    if not any(_key(a) == "quant" for a in kept):
        quants = dict.fromkeys(label.partition(",")[0] for label in configs)
        kept.insert(0, f"quant={','.join(quants)}")
    replay = ["python", "-m", "qdx", "-m", "prompts=transcripts"]
    if (facts.directory / CHALLENGE).is_file():  # it is there before the first job runs
        return _of_exchange(facts.directory, [*replay, f"prompts.path={OPENED}", ANSWERS, *kept])
    command = [*replay, "prompts.path=sweep.nc", *kept]
    why = "copy sweep.nc there, then replay its transcripts under every config"
    return f"{VERIFIER}: {why}:", shlex.join(command)


def _of_exchange(directory: Path, replay: list[str]) -> tuple[str, str]:
    """The next step of a prover who ran a challenge."""
    if not (directory / COMMITMENT).is_file():
        why = "bind what was run, and send or publish the root that it prints before anything else"
        return f"{EXCHANGE}: {why}:", shlex.join(["python", "-m", "qdx.commit", str(directory)])
    if not (directory / OPENED).is_file():
        why = f"send {COMMITMENT} to the verifier, who draws rows and sends drawn.json; then open these"
        command = ["python", "-m", "qdx.open_rows", "open", str(directory), "drawn.json"]
        return f"{EXCHANGE}: {why}:", shlex.join(command)
    return f"{VERIFIER}: copy {OPENED} there, then replay its transcripts:", shlex.join(replay)


# Repeats are the verifier's own choice: they have to be runs in processes of their own, and three or more.
FROM_FILE = ("prompts", "generate", "hydra", "verify", "label", "repeats", "repeat_scope")


def _key(argument: str) -> str:
    return argument.partition("=")[0].lstrip("+~")


def _from_file(argument: str) -> bool:
    """Return whether the file of transcripts decides it, or it is about this sweep only."""
    key, _, value = argument.partition("=")
    group = key.lstrip("+~").partition(".")[0]
    # A batch size that is swept is part of the labels, and of the claims.
    one_batch = group == "batch_size" and "," not in value
    return one_batch or group in FROM_FILE
