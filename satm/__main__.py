"""`python -m satm`."""

import atexit
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

from satm.run.preload import run_in_fork, serve

PRELOADED = ("satm.stages.distill", "satm.stages.evaluate", "satm.stages.experts", "satm.stages.data", "satm.cli")
"""Modules that jobs of a workflow import once."""

SERVER = (sys.executable, "-c", "from satm.__main__ import preload; preload()")
"""Command of the process that imports them."""


def command() -> NoReturn:
    """Run the command of this process and end it."""
    from satm.run.log import close_log, open_log

    open_log()
    from satm.cli import main  # after the log is open, so that an error of this import is in it

    code = main()
    close_log()
    atexit._run_exitfuncs()
    os._exit(code)  # taking torch apart, object by object, would take 0.3 s


def preload() -> None:
    """Import what jobs need, and run in each fork the command of a job; the arguments are those of `serve`."""
    for name in PRELOADED:
        importlib.import_module(name)
    number, address, owner = sys.argv[1:]
    if serve(int(number), Path(address), int(owner)):
        command()


if __name__ == "__main__":
    if (code := run_in_fork(SERVER)) is not None:
        sys.exit(code)
    command()
