"""Devices, threads and memory of the machine that a job runs on."""

import os
import resource
import sys
import time

import torch

from satm.errors import UsageError
from satm.run.lock import process_start


def choose_device(name: str, threads: int | None = None) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a GPU if there is one.

    `threads` sets the number of CPU threads; None leaves it unchanged.

    Raises:
        UsageError: another name, a GPU that this machine or this build of torch lacks, or fewer than one thread.
    """
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads must be at least 1, got {threads}; leave it out or use a larger number")
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index == "" or index.isdigit()):
        raise UsageError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise UsageError(f"--device {name} needs a GPU, torch finds {count} on this machine; use --device cpu")
    return torch.device(kind, int(index or 0))


def describe_backend(device: torch.device) -> str:
    """Return the device's name and torch's version, which determine a run's rounding; stored with its state."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


_highest: dict[str, int] = {}
"""Peak memory on each GPU before the last `reset_peak`, in bytes."""


def device_name(device: torch.device) -> str:
    """Return the name of a device in results: the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def reset_peak(device: torch.device) -> None:
    """Reset the peak of a GPU; the CPU's is that of the process and cannot be reset."""
    if device.type == "cuda":
        _highest[str(device)] = highest_memory(device)
        torch.cuda.reset_peak_memory_stats(device)


def highest_memory(device: torch.device) -> int:
    """Return the peak memory that torch allocated on a GPU since the process began, in bytes; 0 for a CPU."""
    return (
        0 if device.type != "cuda" else max(_highest.get(str(device), 0), int(torch.cuda.max_memory_allocated(device)))
    )


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: on a GPU torch's since `reset_peak`, on a CPU the process's resident one."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def process_age() -> float:
    """Return seconds since this process began; 0 on systems other than Linux, which do not report it."""
    ticks = process_start(os.getpid()) or ""
    if not (hasattr(time, "CLOCK_BOOTTIME") and ticks.isdigit()):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK"))
