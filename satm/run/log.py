"""The log of one command: on the standard output and in a file.

A job of the workflow writes its whole output into its log (`open_log`). Nothing here imports torch.
"""

import contextlib
import io
import logging
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from satm.errors import RunError, UsageError
from satm.run.stopping import Stop
from satm.storage.files import explain_disk

LOG = logging.getLogger("satm")

FILE = "SATM_LOG"
"""Environment variable of the workflow: the file for the whole output of a job."""

_outside: tuple[TextIO, Path] | None = None
"""The standard error before `open_log`, and the log."""


def open_log() -> None:
    """Write the output of this process into the file that `$SATM_LOG` names, if there is one.

    An earlier log becomes `NAME.1`: a process that a killed workflow has left behind may still write into it. If the
    file cannot be written, the process ends with a line that says why.
    """
    global _outside
    if not (name := os.environ.pop(FILE, "")):
        return
    path = Path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = _new_log(path)
    except OSError as error:
        reason = error.strerror or error
        print(f"satm: error: cannot write the log {path}: {reason}; check the disk and start again", file=sys.stderr)
        sys.exit(1)
    _outside = os.fdopen(os.dup(2), "w"), path
    for output in (1, 2):
        os.dup2(log, output)
    os.close(log)


def _new_log(path: Path) -> int:
    """Open a log that no other process has; a device or a link, such as /dev/null, is opened as it is."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    while True:
        mode = stat.S_IFREG
        with contextlib.suppress(FileNotFoundError):
            mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            return os.open(path, flags, 0o666)
        with contextlib.suppress(FileNotFoundError):
            path.replace(f"{path}.1")
        with contextlib.suppress(FileExistsError):  # another process was faster
            return os.open(path, flags | os.O_EXCL, 0o666)


def close_log() -> None:
    """Write the rest of the output; a log that cannot be written does not make a complete run a failed one."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if _outside and stream is sys.stdout:
                told = f"satm: warning: the log {_outside[1]} is incomplete: {error.strerror}"
                print(told, file=_outside[0], flush=True)


def complain(line: str) -> None:
    """Print a line on the standard error; if that is a log that cannot be written, on the one before."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError as error:
        if _outside is None:
            raise
        print(f"{line} (its log {_outside[1]}: {error.strerror})", file=_outside[0], flush=True)


def mend_streams() -> None:
    """Make the standard streams usable, whatever the process was started with.

    A closed one is replaced by an empty one. Letters that the output's encoding lacks are written as escapes, as the
    standard error does.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest free number, this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class _Lines(logging.Formatter):
    """Writes lines of a log: time and message, with `warning:` before a warning."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(mark)s%(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.mark = "warning: " if record.levelno == logging.WARNING else ""
        return super().format(record)


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Log to the standard output and to a file, unless the output is that file already.

    New lines are appended, so that no run erases an earlier log. An error or a stop is logged in the file only; the
    command line prints it.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if not (path.is_file() and os.path.samestat(os.fstat(1), path.stat())):
        with explain_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(path, encoding="utf-8", errors="backslashreplace"))
    for handler in handlers:
        handler.setFormatter(_Lines())
        LOG.addHandler(handler)
    try:
        yield
    except (UsageError, RunError, Stop) as error:
        LOG.removeHandler(handlers[0])
        level, text = (logging.INFO, "stopped by %s") if isinstance(error, Stop) else (logging.ERROR, "error: %s")
        LOG.log(level, text, error.listed if isinstance(error, UsageError) else error)
        raise
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
