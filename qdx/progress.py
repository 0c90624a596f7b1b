"""Progress of a long step: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 15.0


def console() -> Console:
    """Return standard error for a progress bar, and for plain lines where it is not a terminal.

    ``FORCE_COLOR`` would make rich draw a bar into a log file, with ``NO_COLOR`` too.
    """
    terminal = sys.stderr.isatty() and os.environ.get("TTY_COMPATIBLE") != "0"
    stream = getattr(sys.stderr, "unfiltered", sys.stderr) if terminal else sys.stderr
    return Console(file=stream, force_terminal=terminal, no_color=bool(os.environ.get("NO_COLOR")))


class Progress:
    """One job's progress on standard error.

    Parameters
    ----------
    title : str
        The job's label.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._console = console()
        self._bar: Bar | None = None
        if self._console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.fields[title]}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None, title=title)
        self._begun = time.monotonic()
        self._said = float("-inf")
        self._count = 0
        self._total: int | None = None

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
        """Begin a part of the job with `total` steps, or with an unknown number of them."""
        self._count, self._total = 0, total
        if self._bar:
            self._bar.update(self._task, description=what, total=total, completed=0)
        else:
            self._say(what)

    def step(self, what: str) -> None:
        """Say which step is being done now; the one before it counts as finished."""
        if self._bar:
            self._bar.update(self._task, description=what, completed=self._count)
        elif time.monotonic() - self._said >= LINE_EVERY_S:
            self._say(f"{self._count}/{self._total} done, {what}" if self._total else what)
        self._count += 1

    def done(self, what: str) -> None:
        """Say how the job ended."""
        if self._bar:
            self._bar.stop()
        self._say(what)

    def _say(self, what: str) -> None:
        self._said = time.monotonic()
        elapsed = self._said - self._begun
        self._console.print(f"{self._title}: {what} [{elapsed:.0f} s]", markup=False, highlight=False)
