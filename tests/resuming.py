"""What tests of resuming share: training that is stopped and goes on from its stored state, and what a state holds."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from satm.experts import Snapshot
from satm.stages.checkpoint import ExpertState, Generations

Train = Callable[[Snapshot | None], Iterator[Snapshot]]
"""Snapshots after a stored one; None: from the beginning."""


def check_resumes(train: Train, epochs: int, folder: Path) -> None:
    """Check that going on from any epoch ends at the bytes of not stopping."""
    whole = list(train(None))
    for stop in range(epochs + 1):
        state = ExpertState(folder / str(stop), {"name": "it"})
        for snapshot in islice(train(None), stop + 1):
            state.save(snapshot)
        after = ExpertState(folder / str(stop), {"name": "it"}).load()
        assert after is not None and after.epoch == stop
        for snapshot in train(after):
            state.save(snapshot)
        for one, other in zip(state.snapshots(), whole, strict=True):
            assert torch.equal(one.weights, other.weights)
            assert one.buffers.keys() == other.buffers.keys()
            assert all(torch.equal(buffer, other.buffers[name]) for name, buffer in one.buffers.items())


def kept_rows(folder: Path) -> list[Any]:
    """Return the rows that a stopped stage has left in its state."""
    found = Generations(folder, "rows", {}).load_any()
    assert found is not None
    rows: list[Any] = found[1]["rows"]
    return rows


Hook = Callable[[str, tuple[Any, ...]], None]
"""Called with each event that Python audits, and its arguments; what it raises is what the event comes to."""

_hooks: list[Hook] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for hook in _hooks:
        hook(event, arguments)


sys.addaudithook(_audit)


@contextmanager
def audited(hook: Hook) -> Iterator[None]:
    """Let a hook see what this process does, such as `os.link`, and forbid it."""
    _hooks.append(hook)
    try:
        yield
    finally:
        _hooks.remove(hook)


def no_links(event: str, _: tuple[Any, ...]) -> None:
    """Be a file system without hard links."""
    if event == "os.link":
        raise PermissionError(errno.EPERM, "Operation not permitted")


def no_network(event: str, _: tuple[Any, ...]) -> None:
    """Be a machine without a network."""
    if event in ("socket.getaddrinfo", "socket.connect"):
        raise OSError(errno.ENETUNREACH, "Network is unreachable")


def unwritable(number: int) -> Hook:
    """Return the hook of a disk on which no file can be completed, for the reason with this errno."""

    def refuse(event: str, _: tuple[Any, ...]) -> None:
        if event == "os.rename":
            raise OSError(number, os.strerror(number))

    return refuse


@contextmanager
def stopped_after(count: int, text: str) -> Iterator[None]:
    """Send this process SIGTERM once it has written so many files with a text in their path."""
    left = count

    def written(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("os.rename", "os.link") and text in str(arguments[1]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

    with audited(written):
        yield
