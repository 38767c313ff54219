"""Devices, threads and memory of the machine that a job runs on.

Nothing here imports torch before a device is asked for.
"""

import contextlib
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from satm.errors import RunError, UsageError
from satm.run.lock import process_start

if TYPE_CHECKING:
    import torch

DEVICE = "SATM_DEVICE"
"""Environment variable: the device of `auto`, such as `cpu` for jobs that cannot use the GPU that they were given."""

ALLOCATED = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "SLURM_GPUS")
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Environment variables that say which GPUs, or how many, this process was given."""

NONE = ("", "-1", "none", "void", "nodevfiles")
"""Values of these variables for no GPU; where they are numbers of GPUs, also 0."""


def choose_device(name: str, threads: int | None = None, gpus: int = 0) -> "torch.device":
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes a GPU if there is one.

    `threads` sets the number of CPU threads; None leaves it unchanged. A process that was given GPUs, by the workflow
    (`gpus`, their number) or by the environment, and sees none does not compute on the CPU unless it is asked to.

    Raises:
        UsageError: another name, a GPU that this machine or this build of torch lacks, or fewer than one thread.
        RunError: the GPU is there and cannot be used.
    """
    import torch

    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads must be at least 1, got {threads}; leave it out or use a larger number")
        torch.set_num_threads(threads)
    source = ""
    if name == "auto" and (chosen := os.environ.get(DEVICE, "").strip()):
        name, source = chosen, f" (from ${DEVICE})"
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and not count:
        if how := f"--gpus {gpus}" if gpus > 0 else _allocation():
            raise UsageError(
                f"this job was given a GPU ({how}), and torch finds none: {_why_no_gpu()}; to compute on the CPU use "
                f"--device cpu, or {DEVICE}=cpu for all jobs"
            )
        return torch.device("cpu")
    kind, _, index = ("cuda" if name == "auto" else name).partition(":")
    if kind != "cuda" or not (index == "" or index.isdigit()):
        raise UsageError(f"unknown device {name!r}{source}; known: auto, cpu, cuda, cuda:N")
    if not count:
        raise UsageError(
            f"--device {name}{source} needs a GPU, torch finds 0 on this machine: {_why_no_gpu()}; or use --device cpu"
        )
    if int(index or 0) >= count:
        last = f" to cuda:{count - 1}" if count > 1 else ""
        raise UsageError(f"--device {name}{source} is not there, torch finds {count} on this machine; use cuda:0{last}")
    device = torch.device(kind, int(index or 0))
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError as error:
        what = f"{torch.cuda.get_device_name(device)} cannot be used by torch {torch.__version__}"
        raise RunError(f"{what}: {_sentence(error)}; see nvidia-smi for other processes, or use another GPU") from error
    return device


def _allocation() -> str:
    """Return the setting of the environment that gives this process a GPU; empty without one."""
    for name in (*ALLOCATED, *VISIBLE):
        value = os.environ.get(name, "").strip()
        if value.lower() not in NONE and not (value == "0" and name in ("SLURM_GPUS_ON_NODE", "SLURM_GPUS")):
            return f"{name}={value}"
    return ""


def _why_no_gpu() -> str:
    """Return why torch finds no GPU, and what to check."""
    import torch

    if not (torch.version.cuda or torch.version.hip):
        return f"torch {torch.__version__} is built without CUDA; install a build with it (pytorch.org)"
    for name in VISIBLE:
        if name in os.environ and (value := os.environ[name].strip()).lower() in NONE:
            return f"{name} is {value!r}, which hides them; unset it"
    reason = "no reason given"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = _sentence(error)
    return f"{reason}; check the driver (nvidia-smi) and, in a container, its flag for GPUs (--nv, --gpus all)"


def _sentence(error: Exception) -> str:
    """Return the first sentence of torch's words about a GPU."""
    return re.split(r"[.:]?\s*\n|\. ", str(error).strip())[0].rstrip(".")


def describe_backend(device: "torch.device") -> str:
    """Return the device's name and torch's version, which determine a run's rounding; stored with its state."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"


_highest: dict[str, int] = {}
"""Peak memory of each GPU, and of the process (`cpu`), before the last reset, in bytes."""

_inside: list[dict[str, int]] = []
"""The same for each `peak_inside` that has not ended, since it began."""


def device_name(device: "torch.device") -> str:
    """Return the name of a device in results: the GPU's name, or `cpu`."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def reset_peak(device: "torch.device") -> None:
    """Reset the peak of a GPU; the CPU's is that of the process, which `peak_inside` alone resets."""
    if device.type == "cuda":
        _reset(device)


def highest_memory(device: "torch.device") -> int:
    """Return the peak memory that torch allocated on a GPU since the process began, in bytes; 0 for a CPU."""
    return max(_highest.get(str(device), 0), _since_reset(device)) if device.type == "cuda" else 0


def peak_memory(device: "torch.device") -> int:
    """Return the peak memory in bytes: on a GPU torch's since `reset_peak`, on a CPU the process's resident one."""
    return _since_reset(device) if device.type == "cuda" else peak_of_process()


def peak_of_process() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    return max(_highest.get("cpu", 0), _process_since_reset())


@contextlib.contextmanager
def peak_inside(device: "torch.device") -> Iterator[Callable[[], int]]:
    """Yield a function that returns the peak memory since entering, in bytes; for a CPU that of the process.

    Where the system cannot measure that for a process, it is the peak since the process began. All other peaks remain
    right, also those of contexts around this one.
    """
    _reset(device)
    own: dict[str, int] = {}
    _inside.append(own)
    try:
        yield lambda: max(own.get(str(device), 0), _since_reset(device))
    finally:
        _inside[:] = [peaks for peaks in _inside if peaks is not own]


def _reset(device: "torch.device") -> None:
    """Reset a peak after it was noted."""
    for peaks in (_highest, *_inside):
        peaks[str(device)] = max(peaks.get(str(device), 0), _since_reset(device))
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # it is not Linux, or not allowed
            Path("/proc/self/clear_refs").write_text("5", "ascii")


def _since_reset(device: "torch.device") -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return _process_since_reset()


def _process_since_reset() -> int:
    """Return the peak of the process; on Linux without what `getrusage` counts of the process that started this one."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text("utf-8"), re.MULTILINE):
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def process_age() -> float:
    """Return seconds since this process began; 0 on systems other than Linux, which do not report it."""
    ticks = process_start(os.getpid()) or ""
    if not (hasattr(time, "CLOCK_BOOTTIME") and ticks.isdigit()):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK"))
