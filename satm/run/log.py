"""The log of one command: on the standard output and in a file."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from satm.errors import RunError, UsageError
from satm.run.stopping import Stop

LOG = logging.getLogger("satm")


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Log to the standard output and to a file, unless the output is that file already.

    The file is continued, so that no run erases the log of an earlier one. What ends the work is logged there too; the
    terminal hears of it from the command line.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if not (path.is_file() and os.path.samestat(os.fstat(1), path.stat())):
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        LOG.addHandler(handler)
    try:
        yield
    except (UsageError, RunError) as error:
        LOG.removeHandler(handlers[0])
        LOG.error("error: %s", error)
        raise
    except Stop as stop:
        LOG.removeHandler(handlers[0])
        LOG.warning("stopped by %s", stop)
        raise
    finally:
        for handler in handlers:
            LOG.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
