"""Memory that this process may still take, and what a piece of work takes of it."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from satm.errors import UsageError

if TYPE_CHECKING:
    import torch

BUDGET = "SATM_MEMORY"
"""Environment variable: memory for what is kept to save time, such as 500M or 4G; 0 keeps nothing."""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

OWN, SHARED = 0.5, 0.25
"""Part of the free memory that is used: under a limit of this job alone, and on a machine with other work."""

GROUPS = Path("/sys/fs/cgroup")
"""Folder of the control groups, whose limits are those of containers and of jobs."""

OWN_GROUPS = Path("/proc/self/cgroup")

LIMITS = (
    ("", "memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)
"""For versions 2 and 1 of control groups: the subfolder, the files with the limit and with what is used, and the
entries of memory.stat for cached files, which count as used but give way."""


def memory_budget(device: "torch.device") -> int:
    """Return the bytes that may be kept on a device to save time.

    Raises:
        UsageError: the environment variable is not a size.
    """
    if (text := os.environ.get(BUDGET, "").strip()) != "":
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text, re.IGNORECASE)
        if found is None:
            raise UsageError(f"{BUDGET} must be a size such as 500M or 4G, got {text!r}")
        return int(float(found[1]) * UNITS[found[2].upper()])
    limited = device.type == "cuda" or _free_below_limit() is not None
    return int((OWN if limited else SHARED) * free_memory(device))


def free_memory(device: "torch.device") -> int:
    """Return the bytes that this process can still take on a device without swapping; 0 if the machine does not say."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free, limited = _free_of_machine(), _free_below_limit()
    return free if limited is None else min(limited, free)


def in_words(size: float) -> str:
    """Return a number of bytes as people read it."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _free_of_machine() -> int:
    """Return the bytes that the machine could give without swapping; 0 if it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)


def _free_below_limit() -> int | None:
    """Return the bytes left below the limits of this process's control groups; None without a limit."""
    left = []
    for folder, most, now, cached in _groups():
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / most).read_text("utf-8"))  # "max": none
            if limit >= 2**60:  # version 1 writes a large number for none
                continue
            entries = (line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines())
            files = sum(int(size) for name, size in entries if name in cached)
            left.append(max(0, limit - int((folder / now).read_text("utf-8")) + files))
    return min(left, default=None)


def _groups() -> Iterator[tuple[Path, str, str, tuple[str, ...]]]:
    """Yield the folder of each control group around this process, and the names of `LIMITS`.

    Inside a container the list of groups may name a path that is visible outside only; the root of the folder then is
    the container's own group.
    """
    try:
        lines = OWN_GROUPS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    for number, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        for kind, most, now, cached in LIMITS:
            if (number == "0" and not kind) or (kind and kind in controllers.split(",")):
                parts = [part for part in path.split("/") if part]
                for depth in range(len(parts) + 1):
                    yield Path(GROUPS, kind, *parts[:depth]), most, now, cached
