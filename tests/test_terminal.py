"""Nothing that is printed acts on a terminal: whichever file, label, text, log or error it quotes."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import traceback
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qdx as package
from qdx import program
from qdx.program import Stream, harmless
from qdx.progress import Progress
from tests import warm
from tests.helpers import write_sweep
from tests.programs import all_of
from tests.slowly import slow_but
from tests.sweeping import SMALL, checkpoints, environment

# An account of its own of what a terminal acts on: `qdx.errors.printable` goes by categories.
TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
MARKS = "\u061c\u200e\u200f\u2028\u2029\ufeff\u2060\U000e0041"
ATOMS = [
    *("\x1b[2J", "\x1b]0;owned\x07", "\x1b[31m", "\x1b[8m", "\x1b[1A", "\x9b2J", "\x07", "\x00", "\x08\x08"),
    *("\u202e", "\u2066", "\u2069", "\x7f", "\x0b", "\x0c", "\x85", "\r", *MARKS),
]
EVIL = "a\x1b[2J\x1b]0;owned\x07\x9b31m\x08\u202eb\u2066\x7f"


def acting(text: str) -> set[str]:
    """The characters of a text that act on a terminal."""
    found = {c for c in text if unicodedata.bidirectional(c) in TURNS or c in MARKS}
    found |= {c for c in text if (ord(c) < 32 or 127 <= ord(c) < 160) and c not in "\t\n"}
    return found - ({"\r"} if "\r" not in text.replace("\r\n", "\n") else set())


hostile = st.lists(
    st.one_of(st.sampled_from(ATOMS), st.text(max_size=6)), min_size=1, max_size=8
).map("".join)  # fmt: skip


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Standard streams as a command has them; gives what was printed since the last call."""
    written = [io.BytesIO(), io.BytesIO()]
    files = [io.TextIOWrapper(w, encoding="utf-8", errors=program.PLAIN, newline="\n") for w in written]
    for name, file in zip(("stdout", "stderr"), files, strict=True):
        monkeypatch.setattr(sys, name, Stream(file, bars=name == "stderr"))

    def printed() -> str:
        for file in files:
            file.flush()
        shown = b"".join(w.getvalue() for w in written).decode()
        for w in written:
            w.seek(0)
            w.truncate()
        return shown

    yield printed


@settings(max_examples=200, deadline=None)
@given(text=hostile)
def test_nothing_acts_whatever_prints_it(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        printed = next(streams.__wrapped__(patch))  # type: ignore[attr-defined]
        handler = logging.StreamHandler(sys.stderr)
        log = logging.getLogger("tests.terminal")
        log.addHandler(handler)
        ways: dict[str, Callable[[], object]] = {
            "print": lambda: print(f"label {text}"),
            "print to stderr": lambda: print(f"qdx: error: {text}", file=sys.stderr),
            "write": lambda: sys.stdout.write(text),
            "writelines": lambda: sys.stderr.writelines([f"x{text}y", "z"]),
            "a log": lambda: log.warning("loaded %s", text),
            "a warning": lambda: sys.stderr.write(
                warnings.formatwarning(f"odd {text}", UserWarning, "a.py", 1)
            ),
            "a traceback": lambda: traceback.print_exception(ValueError(f"bad {text}")),
            "a thread": lambda: threading.__excepthook__(
                threading.ExceptHookArgs((ValueError, ValueError(f"bad {text}"), None, None))
            ),
            "an uncaught error": lambda: sys.__excepthook__(ValueError, ValueError(f"bad {text}"), None),
            "progress": lambda: _progress(text),
        }
        try:
            for way, act in ways.items():
                act()
                shown = printed()
                assert shown or not text, way
                assert not acting(shown), (way, acting(shown), shown)
        finally:
            log.removeHandler(handler)


def _progress(text: str) -> None:
    with Progress(text, 2, every=0) as steps:
        steps.start(text, 2)
        steps.step(text)
        steps.note(text)
        steps.done(text)


@settings(max_examples=200, deadline=None)
@given(text=hostile)
def test_what_acts_on_nothing_stays_as_it_is(text: str) -> None:
    shown = harmless(text)
    assert len(shown) == len(text) and not acting(shown)
    assert all(a == b or b == "\ufffd" for a, b in zip(text, shown, strict=True))
    plain = "é 漢字 ∑ 👩\u200d🔬 line\nnext\tcolumn\r\n"
    assert harmless(plain) == plain


def test_bars_of_libraries_draw_themselves_and_a_quoted_return_does_not_hide_a_line() -> None:
    assert harmless("\r 10%|█ |", bars=True) == "\r 10%|█ |"
    assert harmless("\r     \r", bars=True) == "\r     \r"
    assert harmless("refuted\rconfirmed\n", bars=True) == "refuted\ufffdconfirmed\n"
    assert harmless("\r\rconfirmed") == "\ufffd\ufffdconfirmed"


def test_a_library_is_told_that_it_prints_to_no_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Stream(Terminal())
    assert not stream.isatty() and stream.unfiltered.isatty()
    assert not hasattr(stream, "buffer"), "bytes would pass unseen"


# All that prints on a real terminal at once. What the bar sends itself: cursor, lines, colours.
SCRIPT = """
import logging, sys, threading, warnings
older = logging.StreamHandler(sys.stderr); logging.getLogger("old").addHandler(older)
from qdx.program import run
from qdx.progress import Progress
evil = {evil!r}
def main():
    logging.getLogger("old").warning("old %s", evil); logging.getLogger("new").error("new %s", evil)
    warnings.warn("warned " + evil); print("printed", evil); print("original", evil, file=sys.__stderr__)
    with Progress("[red]bar " + evil, 2, every=0) as steps:
        steps.step("one " + evil); steps.note("[bold]noted " + evil); steps.within(0.5); steps.step("two")
    worker = threading.Thread(target=lambda: 1 / len(evil[:0]), name=evil); worker.start(); worker.join()
    raise RuntimeError("raised " + evil)
run(main)
"""
OWN = re.compile(r"\x1b\[(\?25[lh]|[0-9;]*m|2?K|\d*A)")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to be had on this platform")
def test_on_a_terminal_only_the_bar_moves_the_cursor() -> None:
    evil = EVIL.replace("\x1b[31m", "")  # what the bar may send cannot be told from the same in a text
    parent, child = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(evil=evil)],
        stdout=child,
        stderr=child,
        env={**environment(), "TERM": "xterm-256color", "COLUMNS": "200", "FORCE_COLOR": "1"},
    )
    os.close(child)
    shown = all_of(parent)
    assert process.wait(timeout=60) == 1
    text = shown.decode()
    for part in ("old ", "new ", "warned ", "printed ", "original ", "[bold]noted ", "[red]bar ", "raised "):
        assert f"{part}a\ufffd[2J\ufffd]0;owned" in OWN.sub("", text), (part, text)
    assert "\x1b[?25l" in text, "a bar was drawn"
    assert not acting(OWN.sub("", text).replace("\r", "")), text


def test_every_command_guards_its_streams_before_it_does_anything() -> None:
    """A module that can be run ends in ``run(main)``; the guarded reader prints JSON in ASCII to a pipe."""
    folder = Path(package.__file__).parent
    runnable = {}
    for file in folder.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.If) and "__name__ ==" in ast.unparse(node.test):
                runnable[file.relative_to(folder).as_posix()] = ast.unparse(node.body)  # type: ignore[arg-type]
    assert runnable.pop("dataset/structure_check.py") == "main()"
    indirect = {"__main__.py": "run(_sweep)", "sweep/job.py": "program.run(_serve"}
    for name, body in runnable.items():
        source = (folder / name).read_text(encoding="utf-8")
        assert body.startswith("run(main") or indirect.get(name, "never") in source, (name, body)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds a sweep and files, all of whose names act on a terminal."""
    at = tmp_path_factory.mktemp("odd")
    write_sweep(at / f"s{EVIL}", ["awq", "gptq"], repeats=1)
    (at / f"bad{EVIL}.nc").write_bytes(EVIL.encode() * 50)
    (at / f"bad{EVIL}.json").write_text(json.dumps({EVIL: [EVIL]}))
    (at / f"bad{EVIL}.jsonl").write_text(json.dumps({EVIL: [EVIL]}) + "\n" + EVIL)
    (at / f"bad{EVIL}.txt").write_text(EVIL * 400)
    (at / f"bad{EVIL}.pdf").write_bytes(b"%PDF-1.7\n" + EVIL.encode() * 50)
    return at


SHOWN = EVIL.replace("'", "")
COMMANDS: dict[str, list[str]] = {
    "report of a folder that is not there": ["qdx.report", EVIL],
    "report": ["qdx.report", f"s{EVIL}", "--print", "full"],
    "report with an unknown flag": ["qdx.report", "s", f"--{EVIL}"],
    "commit": ["qdx.commit", f"s{EVIL}", f"c{EVIL}.nc"],
    "commit of what is not there": ["qdx.commit", EVIL],
    "plan": ["qdx.plan", f"--{EVIL}", EVIL],
    "plan of a text": ["qdx.plan", "--alpha", EVIL],
    "legacy": ["qdx.legacy", f"bad{EVIL}.json", f"out{EVIL}.nc"],
    "challenge": ["qdx.challenge", EVIL, f"bad{EVIL}.json"],
    "open_rows": ["qdx.open_rows", f"bad{EVIL}.json", f"bad{EVIL}.nc", EVIL],
    "an option": ["qdx", f"model={EVIL}"],
    "a key": ["qdx", f"+k{EVIL}=1"],
    "a value": ["qdx", f"repeats='{SHOWN}'"],
    "a label": ["qdx", f"label='{SHOWN}'"],
    "a folder": ["qdx", "model=local", "quant=none", f"model.checkpoint.none='/no/{SHOWN}'"],
    "a hub id": ["qdx", "model=local", "quant=none", f"model.checkpoint.none='no/{SHOWN}'"],
    "a text file": ["qdx", "prompts=text", f"prompts.path='none{SHOWN}.txt'"],
    "a broken PDF": ["qdx", f"prompts.path='bad{SHOWN}.pdf'"],
    "transcripts": ["qdx", "prompts=transcripts", f"prompts.path='bad{SHOWN}.nc'"],
    "records": ["qdx", "prompts=transcripts", f"prompts.path='bad{SHOWN}.jsonl'"],
    "a challenge": ["qdx", "prompts=challenge", f"prompts.path='bad{SHOWN}.json'"],
    "a config folder": ["qdx", "--config-dir", EVIL],
    "a config name": ["qdx", "--config-name", EVIL],
    "a sweep's folder": ["qdx", "quant=none", f"hydra.sweep.dir='bad{SHOWN}.txt'"],
}


@pytest.mark.parametrize("case", slow_but(["a label", "report of a folder that is not there"], COMMANDS))
def test_no_command_prints_what_acts(case: str, odd: Path) -> None:
    module, *arguments = COMMANDS[case]
    variables = {**environment(), "HF_HUB_OFFLINE": "1"}
    done = warm.run(module, arguments, odd, variables, 600)
    said = done.stdout + done.stderr
    assert said.strip() and not acting(said), (acting(said), said)
    assert "owned" in said or case in ("commit", "plan"), said


@pytest.mark.slow
def test_a_sweep_of_hostile_texts_prints_nothing_that_acts(
    tmp_path: Path, tiny_models: dict[str, Path], odd: Path
) -> None:
    text = odd / f"read{EVIL}.txt"
    text.write_text((EVIL + " word ") * 200)
    arguments = [a for a in SMALL if not a.startswith("prompts")]
    quoted = str(text).replace("'", "\\'")
    done = warm.run(
        "qdx",
        [
            *("quant=awq", *arguments, *checkpoints(tiny_models), "prompts=text", f"prompts.path='{quoted}'"),
            *(
                "prompts.references=1",
                "prompts.snippet_tokens=16",
                "hydra.sweep.dir=out",
                "report.print=full",
            ),
        ],
        tmp_path,
        environment(),
        600,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr + (tmp_path / "out" / "report.txt").read_text()
    assert "owned" in said and not acting(said), (acting(said), said)
