"""Stopping in good order: on a signal or before a time limit, with the state saved.

A signal raises `Stop` in the main thread, at once where nothing is lost by it, else after what may not be cut in two
(`whole`). Whoever holds a state catches it, saves and lets it go on; the command line ends with `AGAIN`.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from satm.errors import RunError, UsageError

AGAIN = 75
"""Exit code of a run that was stopped and can go on: that of a temporary failure in sysexits.h."""

LIMIT = "SATM_TIME_LIMIT"
"""Environment variable: minutes after which a run stops with its state saved, for batch systems other than SLURM."""

MARGIN = 120.0
"""Seconds before a limit at which a run stops, at most; a tenth of the time that it has, if that is less."""

SIGNALS = {signal.SIGTERM: "the signal SIGTERM", signal.SIGINT: "the signal SIGINT", signal.SIGALRM: "its time limit"}
"""What a run was stopped by."""


class Stop(BaseException):
    """The run is to stop; the text says by what. No `Exception`, so that nothing takes it for a failure.

    Args:
        text: what stops it.
        watch: what was asked and saved.
    """

    def __init__(self, text: str, watch: "_Watch") -> None:
        super().__init__(text)
        self._watch = watch

    @property
    def at_limit(self) -> bool:
        """Whether the time limit is what stops the run."""
        return self._watch.at_limit

    @property
    def saved(self) -> bool:
        """Whether this process has saved anything that a later one goes on from."""
        return self._watch.saved


class _Watch:
    """What was asked, and how deep in what may not be cut in two the main thread is."""

    def __init__(self) -> None:
        self.asked = ""
        self.at_limit = False
        self.depth = 0
        self.saved = False

    def ask(self, signum: int, _frame: FrameType | None) -> None:
        if _in(sys.exception()):
            return  # it is saving already
        self.asked = self.asked or SIGNALS[signal.Signals(signum)]
        self.at_limit = self.at_limit or signum == signal.SIGALRM
        self.now()

    def now(self) -> None:
        """Raise if asked and nothing forbids it; once more if the last one was lost, as in a `__del__`."""
        if self.asked and not self.depth and not _in(sys.exception()):
            raise Stop(self.asked, self)


_watch = _Watch()


def _in(error: BaseException | None) -> Stop | None:
    """Return the stop that an exception is, was raised from, or was raised while it was handled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Stop):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def unwrapped() -> Iterator[None]:
    """Raise a stop by itself where it has become a failure.

    Python makes a RuntimeError of one in a `__set_name__`; C++ that asks Python for something drops it and fails for
    not getting that. So whatever fails after a stop was asked for is taken for the stop, and what is a failure indeed
    will be one again. Not so a `RunError` while the state was being saved.
    """
    try:
        yield
    except Exception as error:
        stop = _in(error)
        if not _watch.asked or (stop is not None and isinstance(error, RunError)):
            raise
        raise stop or Stop(_watch.asked, _watch) from None


@contextlib.contextmanager
def on_signals() -> Iterator[None]:
    """Let the signals of `SIGNALS` raise `Stop`, in the main thread; elsewhere nothing changes."""
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _watch = _watch, _Watch()
    handlers = {signum: signal.signal(signum, _watch.ask) for signum in SIGNALS}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        _watch = before


@contextlib.contextmanager
def whole(save: Callable[[], object] | None = None) -> Iterator[None]:
    """Let what is inside end before a stop, and then save.

    Args:
        save: called before the stop is raised, if one was asked for; None: nothing is to be saved.
    """
    _watch.now()  # one that was lost may have spoilt what came before
    _watch.depth += 1
    try:
        yield
        if _watch.asked and save is not None and not _in(sys.exception()):
            save()
    finally:
        _watch.depth -= 1
    _watch.now()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Let a stop be raised inside although it is inside `whole`; at the end at the latest, should one be lost."""
    held, _watch.depth = _watch.depth, 0
    try:
        _watch.now()
        yield
        _watch.now()
    finally:
        _watch.depth = held


def heed() -> None:
    """Raise a stop that was asked for and lost: what was computed since may be spoilt, and is not to be written."""
    _watch.now()


def saved() -> None:
    """Say that this process has done and saved something that a later one goes on from."""
    _watch.saved = True


def limit(minutes: float | None) -> float | None:
    """Stop before a time limit: the one given, that of the environment, or that of the SLURM job.

    Args:
        minutes: from now; None: what the environment says.

    Returns:
        seconds from now to the limit, the nearest of all; None: there is none.

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
    given = [60 * minutes] if minutes is not None else []
    left = slurm_seconds_left()
    seconds = min([*given, *([] if left is None else [left])], default=None)
    if seconds is not None and threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, max(1.0, seconds - min(MARGIN, seconds / 10)))
    return seconds


def slurm_seconds_left() -> float | None:
    """Return how long the SLURM job around this process may still run; None outside of one, and without a limit."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    if (end := os.environ.get("SLURM_JOB_END_TIME", "")).isdigit():
        return float(end) - time.time()
    try:
        command = ["squeue", "--noheader", "--jobs", job, "--format", "%L"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return _seconds(done.stdout.strip())


def _seconds(text: str) -> float | None:
    """Return a duration as SLURM writes it, `[days-][[hours:]minutes:]seconds`; None where it writes a word."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(?:(\d+):)?(\d+):)?(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((24 * days + hours) * 60 + minutes) * 60 + seconds)


def requeue() -> bool:
    """Ask SLURM to put the job around this process back into its queue; say whether it will."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return False
    try:
        subprocess.run(["scontrol", "requeue", job], capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True
