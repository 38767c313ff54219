"""Devices, threads and memory of the machine that a job runs on."""

import os
import resource
import sys
import time
from pathlib import Path

import torch

from satm.errors import UsageError


def choose_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a GPU if there is one.

    Raises:
        UsageError: another name, or a GPU that this machine or this build of torch lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index == "" or index.isdigit()):
        raise UsageError(f"unknown device {name!r}; known: auto, cpu, cuda, cuda:N")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= found:
        raise UsageError(f"device {name!r} was asked for, torch finds {found} GPUs on this machine; use --device cpu")
    return torch.device(kind, int(index or 0))


def describe_backend(device: torch.device) -> str:
    """Return what decides the rounding of a run: device, its name and torch's version.

    A run keeps it with its state, and goes on only on the same, because its bytes would differ.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


_highest: dict[str, int] = {}
"""Bytes at most on each GPU before `reset_peak` forgot them."""


def device_name(device: torch.device) -> str:
    """Return what results call a device: the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def reset_peak(device: torch.device) -> None:
    """Start measuring the peak anew, on a GPU; the CPU's peak is the process's and cannot be reset."""
    if device.type == "cuda":
        _highest[str(device)] = highest_memory(device)
        torch.cuda.reset_peak_memory_stats(device)


def highest_memory(device: torch.device) -> int:
    """Return bytes that torch allocated at most on a GPU since the process began; 0 where there is none."""
    if device.type != "cuda":
        return 0
    return max(_highest.get(str(device), 0), int(torch.cuda.max_memory_allocated(device)))


def peak_memory(device: torch.device) -> int:
    """Return bytes: allocated by torch at most since `reset_peak` on a GPU, else resident at most in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def process_age() -> float:
    """Return seconds since this process began; 0 where the system does not tell, as Linux alone does."""
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return 0.0
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
