"""Waiting for space on a full disk, and why a file cannot be written."""

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from satm.errors import RunError
from satm.run.stopping import check_stop
from satm.storage.files import disk_is_full

LOG = logging.getLogger("satm")

SPACE_WAIT = 600.0
"""Seconds that a finished result waits for space on a full disk."""


def patiently(write: Callable[[], object], wait: float | None = None) -> None:
    """Write a finished result; while the disk is full, try again, so that the result is not lost.

    Raises:
        RunError: there is no space after `wait` seconds (None: `SPACE_WAIT`), or the write failed for another reason.
    """
    wait = SPACE_WAIT if wait is None else wait
    until, logged = time.monotonic() + wait, False
    while True:
        try:
            write()
            return
        except RunError as error:
            if not disk_is_full(error) or time.monotonic() > until:
                raise
            if not logged:
                LOG.warning("%s; trying again for %g s", error, wait)
                logged = True
            check_stop()
            time.sleep(min(1.0, wait / 10))


def why_unwritable(path: Path) -> str | None:
    """Return why a file cannot be written, in the system's words; None: it can."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            path.open("ab").close()
    except OSError as error:
        return error.strerror or str(error)
    return None
