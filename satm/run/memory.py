"""Memory that this process may still take."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from satm.errors import UsageError, memory_errors

if TYPE_CHECKING:
    import torch

BUDGET = "SATM_MEMORY"
"""Environment variable: memory for what is kept to save time, such as 500M or 4G; 0 keeps nothing."""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

OWN, SHARED = 0.5, 0.25
"""Part of the free memory that is used: under a limit of this job alone, and on a machine with other work."""


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
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(OWN * (free + unused))
    free, limited = free_memory(), _free_below_limit()
    return int(SHARED * free) if limited is None else int(min(OWN * limited, free))


def ran_out(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; torch has an error of its own for that on GPUs alone."""
    return isinstance(error, memory_errors()) or "can't allocate memory" in str(error)


def free_memory() -> int:
    """Return the bytes that the machine could give without swapping; 0 if it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)


def _free_below_limit() -> int | None:
    """Return the bytes left below the limit of this process's control group; None without a limit."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            most, now = Path(limit).read_text("utf-8").strip(), int(Path(used).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if most.isdigit() and int(most) < 2**60:  # version 1 writes a large number for none
            return max(0, int(most) - now)
    return None
