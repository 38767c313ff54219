"""Devices, threads and memory of the machine that a job runs on."""

import resource
import sys

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


def reset_peak(device: torch.device) -> None:
    """Start measuring the peak anew, on a GPU; the CPU's peak is the process's and cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return bytes: allocated by torch at most since `reset_peak` on a GPU, else resident at most in this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
