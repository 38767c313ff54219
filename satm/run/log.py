"""The log of one command: on the standard output and in a file."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from satm.errors import RunError, UsageError
from satm.run.stopping import Stop
from satm.storage.files import explain_disk

LOG = logging.getLogger("satm")


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
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOG.addHandler(handler)
    try:
        yield
    except (UsageError, RunError, Stop) as error:
        LOG.removeHandler(handlers[0])
        level, text = (logging.WARNING, "stopped by %s") if isinstance(error, Stop) else (logging.ERROR, "error: %s")
        LOG.log(level, text, error)
        raise
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
