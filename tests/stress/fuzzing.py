"""What fuzzing of campaigns and of files share: commands with bounded time and memory, and what the cases came to."""

import contextlib
import functools
import io
import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar
from unittest import mock

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy

from satm.cli import main
from satm.config import Setting, load_presets, resolver
from satm.results import circumstances

Case = TypeVar("Case")

SECONDS, ASLEEP, BYTES = 60, 600, 4 * 2**30
"""What one case may take: seconds of a processor, several times what the slowest needs on a slow one; seconds at all,
on a machine that others use too; further memory."""


MET: Counter[str] = Counter()
"""The error messages of all cases, and how often each was met."""


class Wrong(Exception):
    """What a case must never do; the text says what it did."""


class Hang(BaseException):
    """A case took too long. No `Exception`, so that nothing takes it for an error of the file."""


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, most: int = BYTES) -> Iterator[None]:
    """Raise `Hang` in what takes longer, and let what takes more memory fail."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, ASLEEP)
    resource.setrlimit(resource.RLIMIT_AS, (held + most, hard))
    try:
        yield
    except Hang:
        raise Wrong(f"a hang: not done after {seconds:g} s of the processor, or {ASLEEP} s") from None
    except MemoryError:
        raise Wrong(f"more than {most / 2**30:g} GiB of memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def command(*arguments: str, run: Callable[[list[str]], int] = main) -> tuple[int, str]:
    """Run a command by `run`; return its exit code and what it wrote on the standard error.

    Raises:
        Wrong: a traceback, another exit code than 0, 1 and 2, or another error than one clear line.
    """
    out, told = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
            code = run(list(arguments))
    except Exception as error:
        raise Wrong(f"a traceback: {type(error).__name__}: {str(error)[:300]}") from error
    text = told.getvalue()
    if code not in (0, 1, 2):
        raise Wrong(f"exit code {code}")
    if "Traceback" in text + out.getvalue():
        raise Wrong(f"a traceback in the output: {text[-300:]}")
    first, *rest = text.splitlines() or [""]
    listed = text.endswith("\n") and all(line.startswith("  ") and len(line) < 3000 for line in rest)
    if code and not (first.startswith("satm: error: ") and len(first) < 3000 and listed):
        raise Wrong(f"exit code {code} and no clear line: {text[:500]!r}")
    if "out of memory" in text:
        raise Wrong("all of the memory")
    if code:
        MET[text] += 1
    return code, text


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make a folder the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@functools.cache
def _presets() -> tuple[Setting, ...]:
    return load_presets()


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Read the presets once, not in each case, and do not ask git for the commit."""
    commit = mock.patch.object(circumstances, "commit_of", lambda root: None)
    with mock.patch.object(resolver, "load_presets", _presets), commit:
        yield


@dataclass
class Tally:
    """What the cases came to."""

    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[object, str]] = field(default_factory=list)


def tally(
    strategy: SearchStrategy[Case],
    check: Callable[[Case], str],
    count: int,
    seed: int,
    failed: Callable[[Case, str], None] = lambda case, text: None,
) -> Tally:
    """Return what so many cases come to; none stops the others, and each is tried as it was drawn.

    Args:
        strategy: that draws them.
        check: tries one and says in a word what came of it.
        count: how many.
        seed: draws others.
        failed: told of each failure at once.
    """
    found = Tally()

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(case: Case) -> None:
        try:
            with bounded(), quick():
                kind = check(case)
        except Wrong as error:
            kind = "WRONG"
            found.failures.append((case, str(error)))
            failed(case, str(error))
        found.kinds[kind] += 1
        if (done := sum(found.kinds.values())) % 500 == 0:
            print(f"{done} of {count}", flush=True)

    each()
    return found
