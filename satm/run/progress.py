"""Progress with the time left: a bar in a terminal, regular lines in a log."""

import logging
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LOG = logging.getLogger("satm")

NARROWEST = 100
"""Smallest width for tables, in letters: in less their columns vanish, while a terminal wraps longer lines."""

LINE_SECONDS = 20.0
"""Seconds between two lines in a log."""


class Progress:
    """A context that counts the steps of some work, of which an earlier run has done some; `unit` is what they are."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "") -> None:
        self._what, self._total, self._done = f"{what}, {unit}" if unit else what, total, done
        self._begun_at, self._started, self._logged = done, time.monotonic(), 0.0
        self._bar: Bar | None = None

    @staticmethod
    def console() -> Console:
        """Return the console for tables."""
        return Console(width=max(NARROWEST, Console().width) if sys.stdout.isatty() else 160)

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, completed=self._done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def skip(self, steps: int) -> None:
        """Count steps that were done by an earlier run."""
        self._begun_at += steps
        self._done += steps

    def step(self, text: str) -> None:
        """Count one step; the text describes its result."""
        self.at(self._done + 1, text)

    def at(self, done: int, text: str) -> None:
        """Set the number of steps so far; the text describes the last result."""
        self._done = done
        if self._bar:
            self._bar.update(self._task, completed=done, description=f"{self._what}: {text}")
        now = time.monotonic()
        if now - self._logged >= LINE_SECONDS or done >= self._total:
            self._logged = now
            left, new = "?", done - self._begun_at
            if new > 0:
                minutes, seconds = divmod(round((now - self._started) / new * (self._total - done)), 60)
                left = f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
            level = logging.DEBUG if self._bar else logging.INFO
            LOG.log(level, "%s %d/%d, %s left: %s", self._what, done, self._total, left, text)
