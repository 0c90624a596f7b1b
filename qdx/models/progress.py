"""A progress bar in a terminal, plain lines in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


class Steps:
    """Progress through a fixed number of steps, on standard error.

    Parameters
    ----------
    title : str
        What is going on; begins every line.
    total : int
        Number of steps.
    show : bool
        False prints nothing.
    """

    def __init__(self, title: str, total: int, *, show: bool = True) -> None:
        self.title, self.total, self.show = title, total, show
        self.done = -1  # the first step begins at 0
        self._bar: Any = None
        self._task: Any = None
        self._began = time.monotonic()

    def __enter__(self) -> Steps:
        if self.show and sys.stderr.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            from qdx.progress import console

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
            )
            self._bar = Progress(*columns, console=console())
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=float(self.total))
        return self

    def step(self, text: str) -> None:
        """Begin the next step."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=float(self.done), description=f"{self.title}: {text}")
        elif self.show:
            self._line(f"{self.done + 1}/{self.total} {text}")

    def within(self, fraction: float) -> None:
        """Say how far the current step is, 0…1; a log file is spared that."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done + fraction)

    def note(self, text: str) -> None:
        """Print a line that is no step."""
        if self._bar is not None:
            self._bar.console.print(f"{self.title}: {text}", highlight=False)
        elif self.show:
            self._line(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if kind is None:
                self._bar.update(self._task, completed=float(self.total), description=self.title)
            self._bar.stop()
        elif self.show and kind is None:
            self._line("done")

    def _line(self, text: str) -> None:
        print(f"{self.title}: {text} ({time.monotonic() - self._began:.0f} s)", file=sys.stderr, flush=True)
