"""Orderly stopping, on a signal or before a time limit, with the state saved.

A signal only sets a flag. Loops check it between complete steps (`check_stop`): before an inner step, a mini-batch or a
wait. The check raises `Stop`; the code that owns a state saves it and passes `Stop` on, and the command line ends with
the exit code `AGAIN`.
"""

import contextlib
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from satm.errors import UsageError
from satm.run import slurm

AGAIN = 75
"""Exit code of a run that was stopped and can be resumed: that of a temporary failure in sysexits.h."""

LIMIT = "SATM_TIME_LIMIT"
"""Environment variable: minutes after which a run stops with its state saved, for batch systems other than SLURM."""

MARGIN = 120.0
"""A run stops this many seconds before a limit, or a tenth of its time before it if that is less."""

SIGNALS = {signal.SIGTERM: "the signal SIGTERM", signal.SIGINT: "the signal SIGINT", signal.SIGALRM: "its time limit"}
"""Reason for a stop, by signal."""


@dataclass
class Request:
    """Pending stop request, and how this process handles it."""

    by: str = ""
    """Reason for the stop; empty without a request."""
    at_limit: bool = False
    saved: bool = False
    """Whether this process has saved a state from which a later one can resume."""
    depth: int = 0
    """Nested `uninterruptible` sections."""
    immediate: bool = False
    """Whether a signal raises `Stop` at once (`interruptible`)."""


class Stop(BaseException):
    """The run must stop; the text is the reason. Not an `Exception`, so that no handler takes it for a failure."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.by)
        self.request = request


_request = Request()


def _receive(signum: int, _frame: FrameType | None) -> None:
    """Record a signal; a second Ctrl-C ends the process as Python does by default."""
    if _request.by and signum == signal.SIGINT:
        raise KeyboardInterrupt
    _request.by = _request.by or SIGNALS[signal.Signals(signum)]
    _request.at_limit = _request.at_limit or signum == signal.SIGALRM
    if _request.immediate:
        check_stop()


@contextlib.contextmanager
def on_signals() -> Iterator[None]:
    """Turn the signals of `SIGNALS` into stop requests, in the main thread; elsewhere nothing changes."""
    global _request
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _request = _request, Request()
    handlers = {signum: signal.signal(signum, _receive) for signum in SIGNALS}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        _request = before


def stop_requested() -> bool:
    """Return whether this process was asked to stop."""
    return bool(_request.by)


def check_stop() -> None:
    """Raise `Stop` if this process was asked to stop, except in an uninterruptible section."""
    if _request.by and not _request.depth:
        raise Stop(_request)


@contextlib.contextmanager
def uninterruptible() -> Iterator[None]:
    """Suppress `check_stop` inside; the caller checks again after it has saved the result."""
    _request.depth += 1
    try:
        yield
    finally:
        _request.depth -= 1


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal raise `Stop` anywhere inside, for work that has no loops with checks and no state to save."""
    check_stop()
    _request.immediate = True
    try:
        yield
    finally:
        _request.immediate = False
        check_stop()  # interrupted code may have dropped the stop, or failed because of it


def saved() -> None:
    """Record that this process has saved a state from which a later one can resume."""
    _request.saved = True


def limit(minutes: float | None) -> float | None:
    """Stop before a time limit: some minutes from now, those of the environment, or the end of the SLURM job.

    Returns:
        Seconds from now to the nearest limit; None: there is none.

    Raises:
        UsageError: it is not a positive number.
    """
    if minutes is None and (text := os.environ.get(LIMIT, "").strip()):
        try:
            minutes = float(text)
        except ValueError:
            minutes = math.nan
    if minutes is not None and not 0 < minutes < math.inf:
        raise UsageError(f"a time limit is a number of minutes above 0, got {minutes:g}; see --time-limit and ${LIMIT}")
    limits = (None if minutes is None else 60 * minutes, slurm.seconds_left())
    seconds = min((each for each in limits if each is not None), default=None)
    if seconds is not None and threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds - min(MARGIN, seconds / 10)))
    return seconds
