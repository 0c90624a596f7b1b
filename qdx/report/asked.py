"""The report of a sweep that asked servers: what each gave, beside the others, and how to judge it."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

import qdx
from qdx import new_file
from qdx.dataset.folder import Sweep
from qdx.dataset.writing import disk_errors
from qdx.document import html, markdown
from qdx.document.blocks import Block, Cell, Table, Text
from qdx.document.format import plural
from qdx.document.text import WIDTH, render, wrap
from qdx.endpoints import ANSWERS, FACTS, Asked, asked_of
from qdx.endpoints.answers import lines_of
from qdx.errors import printable
from qdx.report.state import Facts, report_command, resume_command
from qdx.report.summary import dump
from qdx.schema_gguf import FILE_TYPES

HERE = Path(__file__).parent
NOT_OBSERVED = (
    "Remote: nothing was observed of weights, format, kernels or hardware. What a server says of itself is "
    "shown as it says it."
)
MOST_NAMES, LONGEST_NAME = 3, 40


def finished(state: Sweep) -> dict[str, Path]:
    """Return the folders in which there is an answer, by label; others hold only how asking ended."""
    return {
        label: state.directory / label
        for label in state.labels
        if (state.directory / label / FACTS).is_file() and (state.directory / label / ANSWERS).is_file()
    }


def providers(found: Sequence[Asked]) -> dict[str, str]:
    """Return what each config's server is called as a producer: its host, where no other has it."""
    hosts = {one.label: _host(str(one.facts.get("base_url", ""))) for one in found}
    often = Counter(hosts.values())
    return {label: host if host and often[host] == 1 else label for label, host in hosts.items()}


def _host(base_url: str) -> str:
    """Return host and port of an address, with characters that a command line takes as a key."""
    return re.sub(r"[^\w.-]", "_", urlsplit(base_url).netloc)


def gather(folders: Mapping[str, Path], names: Mapping[str, str], target: Path) -> int:
    """Write the answers of all configs into one file, which a verifier replays; return its bytes.

    Parameters
    ----------
    folders : Mapping
        Of the configs, by label.
    names : Mapping
        See `providers`.
    target : Path

    Raises
    ------
    QdxError
    """
    with disk_errors(target), new_file.rewritten(target) as stream:
        for label, folder in folders.items():
            for line in lines_of(folder / ANSWERS):
                # Every server is asked the same questions, and two answers of one name count as one.
                line |= {"provider": names[label], "custom_id": f"{names[label]}/{line['custom_id']}"}
                stream.write(json.dumps(line, ensure_ascii=True).encode() + b"\n")
    return target.stat().st_size


def blocks(found: Sequence[Asked]) -> list[Block]:
    """Return what the report says of the servers."""
    head = ["config", "answers", "failed", "tries", "tokens", "median s", "95 % s", "tokens / s"]
    rows: list[list[Cell]] = []
    for one in found:
        enough = one.seconds[np.isfinite(one.seconds)]
        total = float(enough.sum())
        rows.append(
            [
                one.label,
                one.answered,
                one.failed,
                one.attempts / one.answered if one.answered else np.nan,
                one.tokens,
                float(np.median(enough)) if len(enough) else np.nan,
                float(np.quantile(enough, 0.95)) if len(enough) else np.nan,
                one.tokens / total if total and one.tokens else np.nan,
            ]
        )
    table = Table(
        "What came: requests an answer took (tries), seconds from sending to the last byte, tokens a second "
        "within one answer",
        head,
        rows,
    )
    names = providers(found)
    who = Table(
        "Whom",
        ["config", "address", "model, as the answers state it", "as a producer"],
        [
            [one.label, str(one.facts.get("base_url", "")), _names(one.models), names[one.label]]
            for one in found
        ],
        4,
    )
    return [Text(NOT_OBSERVED), who, table, _stated(found), *_remarks(found)]


def _stated(found: Sequence[Asked]) -> Table:
    head = ["config", "system_fingerprint", "token ids", "log-probabilities", "prompt tokens more than sent"]
    rows: list[list[Cell]] = []
    for one in found:
        more: Cell = "not known"
        if len(one.prompt_tokens):
            least, most = int(one.prompt_tokens.min()), int(one.prompt_tokens.max())
            more = str(least) if least == most else f"{least} to {most}"
        given = [f"{count} of {one.answered}" for count in (one.with_ids, one.with_logprobs)]
        rows.append([one.label, _names(one.fingerprints) or "none", *given, more])
    return Table("What the servers state and give beside the text", head, rows, 4)


def _remarks(found: Sequence[Asked]) -> list[Block]:
    """Return what a reader should not overlook, a line each."""
    lines = []
    for one in found:
        if len(one.models) > 1:
            lines.append(f"{one.label}: the answers name {len(one.models)} models: {_names(one.models)}.")
        if len(one.fingerprints) > 1:
            lines.append(
                f"{one.label}: the server changed between answers: {len(one.fingerprints)} fingerprints."
            )
        if len(one.prompt_tokens) and int(one.prompt_tokens.max()) > 0:
            lines.append(
                f"{one.label}: the server counts up to {int(one.prompt_tokens.max())} prompt tokens more "
                "than were sent: a hidden system prompt, another tokenizer, or a token that it puts in front."
            )
        lines += [f"{one.label}: {count} × {error}" for error, count in one.errors.most_common(3)]
    return [Text("\n".join(lines))] if lines else []


def _names(of: Counter[str]) -> str:
    names = [name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…" for name in of if name]
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def next_command(directory: Path, found: Sequence[Asked]) -> str:
    """Return the command that replays all answers under the formats that can be tried."""
    model = {str(one.facts.get("model_name", "")) for one in found} - {""}
    name = next(iter(model)) if len(model) == 1 else "…"
    formats = {_format(one) for one in found}
    tried = ["quant=none,awq,gptq"]
    if formats and formats <= set(FILE_TYPES):  # the model was named by a GGUF file
        tried = ["backend=llamacpp", f"quant={','.join(sorted(formats))}"]
    return shlex.join(
        [
            "python",
            "-m",
            "qdx",
            "-m",
            "prompts=transcripts",
            f"prompts.path={directory}",
            f"model={name}",
            *tried,
        ]
    )


def _format(one: Asked) -> str:
    """The format of the checkpoint whose tokenizer made a config's prompts; "" where none is stated."""
    from omegaconf import OmegaConf

    return str(OmegaConf.select(OmegaConf.create(str(one.facts.get("config", ""))), "quant.format") or "")


def build(
    state: Sweep, facts: Facts, formats: Sequence[str], time: str
) -> tuple[str, dict[str, Any], dict[str, Path]]:
    """Write `ANSWERS` of the sweep, its report and ``summary.json``.

    Parameters
    ----------
    state : Sweep
    facts : Facts
    formats : sequence of "txt", "html", "md"
    time : str
        For the summary.

    Returns
    -------
    text, summary, paths
        What is printed, what ``summary.json`` holds, and every file by name.

    Raises
    ------
    QdxError
        When a file of answers is damaged, or a file cannot be written.
    """
    directory = state.directory
    folders = finished(state)
    found = [asked_of(folder) for folder in folders.values()]
    paths = {}
    any_answer = any(one.answered for one in found)
    if any_answer:
        gather(folders, providers(found), directory / ANSWERS)
        paths[ANSWERS] = directory / ANSWERS
    said = blocks(found) if found else []
    said += [] if any_answer else [Text("No server has answered yet.")]
    lead = _lead(found, facts)
    commands = [("Resume it (answers that are there are kept):", resume_command(facts))]
    commands = commands if facts.failed or facts.missing else []
    if found:
        commands.append(
            (
                "Next: replay the answers here, under the formats that it may be:",
                next_command(directory, found),
            )
        )
    commands.append(("Make this report again:", report_command(facts)))
    text = _text(facts, lead, said, commands)
    pages = {
        "txt": lambda: text,
        "md": lambda: _markdown(facts, lead, said, commands),
        "html": lambda: _html(facts, lead, said, commands),
    }
    for suffix in formats:
        path = directory / f"report.{suffix}"
        with disk_errors(path):
            new_file.write_text(path, pages[suffix]())
        paths[path.name] = path
    summary = _summary(facts, found, time, paths, next_command(directory, found) if any_answer else "")
    with disk_errors(directory / "summary.json"):
        new_file.write_text(directory / "summary.json", dump(summary))
    paths["summary.json"] = directory / "summary.json"
    return text, summary, paths


def _lead(found: Sequence[Asked], facts: Facts) -> list[str]:
    answers, wanted = sum(one.answered for one in found), sum(one.wanted for one in found)
    tokens = sum(one.tokens for one in found)
    lines = [
        f"{answers:,} of {wanted:,} answers of {plural(len(found), 'config')} asked, {tokens:,} tokens. This "
        "report judges nothing: whose weights and which format they fit is shown by a replay."
    ]
    lines += [f"failed: {label}: {error}" for label, error in facts.failed.items()]
    return lines + [f"missing: {label}" for label in facts.missing]


def _text(
    facts: Facts, lead: Sequence[str], said: Sequence[Block], commands: Sequence[tuple[str, str]]
) -> str:
    parts = [f"qdx report: {facts.directory}\n{'═' * WIDTH}\n" + "\n".join(wrap(line) for line in lead)]
    parts.append(render(said))
    parts += [f"{why}\n  {command}" for why, command in commands if command]
    return printable("\n\n".join(parts) + "\n")


def _markdown(
    facts: Facts, lead: Sequence[str], said: Sequence[Block], commands: Sequence[tuple[str, str]]
) -> str:
    parts = [f"# qdx report: {markdown.plain(facts.directory.name)}", f"**{markdown.plain(lead[0])}**"]
    parts += [f"- {markdown.plain(line)}" for line in lead[1:]]
    parts.append(markdown.render(said))
    parts += [f"{markdown.plain(why)}\n\n{markdown.fence(command)}" for why, command in commands if command]
    return "\n\n".join(parts) + "\n"


def _html(
    facts: Facts, lead: Sequence[str], said: Sequence[Block], commands: Sequence[tuple[str, str]]
) -> str:
    from qdx.document.plain import escape

    shown = "".join(f"<p>{escape(why)}</p>{html.command(one)}" for why, one in commands if one)
    return html.page(
        facts.directory.name,
        lead[0],
        lead[1:],
        [],
        [html.Part("servers", "Servers", html.render(said)), html.Part("next", "Commands", shown)],
        (HERE / "page.css").read_text(encoding="utf-8"),
        (HERE / "page.js").read_text(encoding="utf-8"),
    )


def _summary(
    facts: Facts, found: Sequence[Asked], time: str, paths: Mapping[str, Path], command: str
) -> dict[str, Any]:
    servers = {
        one.label: {
            "base_url": one.facts.get("base_url", ""),
            "answers": one.answered,
            "wanted": one.wanted,
            "failed": one.failed,
            "tokens": one.tokens,
            "requests": one.facts.get("requests"),
            "models": dict(one.models),
            "fingerprints": dict(one.fingerprints),
            "with_token_ids": one.with_ids,
            "with_logprobs": one.with_logprobs,
            "prompt_tokens_more": [int(one.prompt_tokens.min()), int(one.prompt_tokens.max())]
            if len(one.prompt_tokens)
            else None,
            "seconds_median": float(np.median(one.seconds)) if len(one.seconds) else None,
        }
        for one in found
    }
    return {
        "kind": "servers",
        "schema_version": 1,
        "qdx_version": qdx.__version__,
        "time_utc": time,
        "directory": str(facts.directory),
        "labels": {
            "expected": list(facts.labels),
            "failed": dict(facts.failed),
            "missing": list(facts.missing),
        },
        "servers": servers,
        "files": {name: str(path) for name, path in paths.items()},
        "commands": {"resume": resume_command(facts), "report": report_command(facts), "replay": command},
    }
