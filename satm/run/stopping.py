"""Stopping in good order: on a signal or before a time limit, with the state saved.

A signal only sets a flag. Loops read it where nothing is half done (`check_stop`): before an inner step, a mini-batch
or a wait. The `Stop` that this raises passes through the code that holds a state, which saves it; the command line ends
with the exit code `AGAIN`.
"""

import contextlib
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from satm.errors import UsageError

AGAIN = 75
"""Exit code of a run that was stopped and can go on: that of a temporary failure in sysexits.h."""

LIMIT = "SATM_TIME_LIMIT"
"""Environment variable: minutes after which a run stops with its state saved, for batch systems other than SLURM."""

MARGIN = 120.0
"""Seconds before a limit at which a run stops, at most; a tenth of the time that it has, if that is less."""

SIGNALS = {signal.SIGTERM: "the signal SIGTERM", signal.SIGINT: "the signal SIGINT", signal.SIGALRM: "its time limit"}
"""What a run was stopped by."""


@dataclass
class Request:
    """Pending stop request, and what this process has done about it."""

    by: str = ""
    """What stops the run; empty while nothing does."""
    at_limit: bool = False
    saved: bool = False
    """Whether this process has saved anything that a later one goes on from."""
    whole: int = 0
    """Depth of nested `uninterruptible` sections."""
    at_once: bool = False
    """Whether a signal ends the work at once (`interruptible`)."""


class Stop(BaseException):
    """The run is to stop; the text says by what. Not an `Exception`, so that nothing takes it for a failure."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.by)
        self.request = request


_request = Request()


def _receive(signum: int, _frame: FrameType | None) -> None:
    """Note a signal; a second Ctrl-C ends the process as Python does by default."""
    if _request.by and signum == signal.SIGINT:
        raise KeyboardInterrupt
    _request.by = _request.by or SIGNALS[signal.Signals(signum)]
    _request.at_limit = _request.at_limit or signum == signal.SIGALRM
    if _request.at_once:
        check_stop()


@contextlib.contextmanager
def on_signals() -> Iterator[None]:
    """Let the signals of `SIGNALS` ask this process to stop, in the main thread; elsewhere nothing changes."""
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
    if _request.by and not _request.whole:
        raise Stop(_request)


@contextlib.contextmanager
def uninterruptible() -> Iterator[None]:
    """Keep `check_stop` quiet inside; the caller checks after it has saved what was done there."""
    _request.whole += 1
    try:
        yield
    finally:
        _request.whole -= 1


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal raise `Stop` anywhere inside: for work without loops that check, and without a state to lose."""
    check_stop()
    _request.at_once = True
    try:
        yield
    finally:
        _request.at_once = False
        check_stop()  # code that was cut off anywhere may have dropped the stop, or failed because of it


def saved() -> None:
    """Note that this process has saved something that a later one goes on from."""
    _request.saved = True


def limit(minutes: float | None) -> float | None:
    """Stop before a time limit: some minutes from now, those of the environment, or the end of the SLURM job.

    Returns:
        seconds from now to the nearest limit; None: there is none.

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
