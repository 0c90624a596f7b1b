"""Progress of a long piece of work, on standard error: a live bar on a terminal, lines in a log file."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, cast

from qdx.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

LINE_EVERY_S = 15.0
FIRST_LINE_S = 1.0  # the first step is said soon, each next one after twice the time, up to that


class Progress:
    """The one progress display.

    Parameters
    ----------
    title : str
        What is going on, such as the job's label; begins every line.
    total : int, optional
        Number of steps of the whole; `start` gives each part its own.
    shown : bool
        False prints nothing.
    every : float, optional
        Seconds between two lines of steps in a log file; the first lines of a part of the work come sooner.
        0: one for every step; None: a terminal's bar only.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        shown: bool = True,
        every: float | None = LINE_EVERY_S,
    ) -> None:
        self._title, self._total = title, total
        self._lines = shown and every is not None
        self._every = every or 0.0
        self._wait = min(FIRST_LINE_S, self._every)
        self._begun = time.monotonic()
        self._said = float("-inf")
        self._count = -1  # the first step begins at 0
        self._bar: Bar | None = None
        if shown and _on_terminal():
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.fields[title]}", markup=False),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
                console=_console(),
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=total, title=_one_line(title))

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, what: str, total: int | None = None) -> None:
        """Begin a part of the work with `total` steps, or with an unknown number of them."""
        self._count, self._total = -1, total
        self._wait = min(FIRST_LINE_S, self._every)
        if self._bar:
            self._bar.update(self._task, description=_one_line(what), total=total, completed=0)
        else:
            self.note(what)

    def step(self, what: str) -> None:
        """Say which step is being done now; the one before it counts as finished."""
        self._count += 1
        if self._bar:
            self._bar.update(self._task, description=_one_line(what), completed=self._count)
        elif time.monotonic() - self._said >= self._wait:
            self._wait = min(2 * self._wait, self._every)
            self.note(f"{self._count}/{self._total} done, {what}" if self._total else what)

    def within(self, fraction: float) -> None:
        """Say how far the current step is, 0…1; a log file is spared that."""
        if self._bar:
            self._bar.update(self._task, completed=self._count + fraction)

    def reached(self, done: int, total: int) -> None:
        """Say how much of how much is done, where steps have no names; a log file is spared that."""
        if self._bar:
            self._bar.update(self._task, completed=done, total=total)

    def note(self, what: str) -> None:
        """Print a line that is not a step."""
        if self._bar:
            self._bar.console.print(self._line(what), markup=False, highlight=False)
        elif self._lines:
            print(self._line(what), file=sys.stderr, flush=True)

    def done(self, what: str = "done") -> None:
        """Say how the work ended."""
        if self._bar:
            self._bar.stop()
        self.note(what)

    def _line(self, what: str) -> str:
        self._said = time.monotonic()
        return _one_line(f"{self._title}: {what} [{self._said - self._begun:.0f} s]")


def _one_line(text: str) -> str:
    """A text that the bar quotes: its stream lets through what acts on a terminal."""
    return printable(" ".join(text.splitlines()))


def _on_terminal() -> bool:
    """Return whether a bar is drawn: on a terminal only. rich would draw one for ``FORCE_COLOR``, too."""
    return _stream().isatty() and os.environ.get("TTY_COMPATIBLE") != "0" and _console().is_terminal


def _console() -> Console:
    from rich.console import Console

    return Console(file=_stream())


def _stream() -> TextIO:
    # A bar moves the cursor, which `qdx.program` lets nothing else do.
    return cast(TextIO, getattr(sys.stderr, "unfiltered", sys.stderr))
