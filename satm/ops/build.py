"""Compiled kernels for the CPU: C++ files of this folder, each built once for a machine and a type of number.

A library lies in the user's cache folder, in a file whose name has a hash of the source, the compiler's flags and the
processor's features: another source, flag or processor has another file. Processes that build at the same time build
the same file, each under a name of its own, and rename it. Where nothing can be built or loaded, PyTorch's operations
serve, which one line of the log says.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from satm.version import PACKAGE

LOG = logging.getLogger("satm")

FOLDER = PACKAGE / "ops"
"""Folder of the sources."""

FLAGS = ("-std=c++14", "-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
"""Flags of the compiler. None changes what is computed for numbers that are not finite."""

NUMBERS = {torch.float32: "float", torch.float64: "double"}
"""Types of numbers that there are kernels for."""

SEAL = hashlib.sha256().digest_size
"""Length of the hash behind a library."""

CACHE = "SATM_CACHE"
"""Environment variable: folder of compiled kernels; else `satm` in $XDG_CACHE_HOME or in `~/.cache`."""


@functools.cache
def library(source: str, **defines: object) -> ctypes.CDLL | None:
    """Load the library of a source file, built before or now; None, with a line in the log, if that fails."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    runtime, reasons = _thread_runtime(), list[str]()
    for threads in ([["-fopenmp"]] if runtime else []) + [[]]:
        flags = [*FLAGS, *(f"-D{name}={value}" for name, value in defines.items()), *threads]
        sources = (path.read_bytes() for path in (FOLDER / source, *sorted(FOLDER.glob("*.h"))))
        parts = [*sources, *(each.encode() for each in (*compiler, *flags, str(runtime), processor()))]
        name = f"{Path(source).stem}-{hashlib.sha256(b' '.join(parts)).hexdigest()[:24]}.so"
        for folder in cache_folders():
            try:
                return _open(
                    folder / name, compiler, [*flags, "-c", str(FOLDER / source)], runtime if threads else None
                )
            except (OSError, RuntimeError) as error:
                reasons.append(f"{folder}: {str(error).strip()}")
    return _without(reasons[0] if reasons else "no folder for them can be written; set SATM_CACHE to one")


@functools.cache
def _without(reason: str) -> None:
    """Say why there are no compiled kernels."""
    LOG.info("no compiled kernels, so PyTorch's operations serve, which takes longer: %s", reason)


def _open(path: Path, compiler: list[str], flags: list[str], runtime: Path | None) -> ctypes.CDLL:
    """Return the library in a file, which is built if it is not there, or cannot be loaded.

    Raises:
        OSError: the file cannot be written or loaded.
        RuntimeError: there is no compiler, or it failed.
    """
    if path.exists():
        with contextlib.suppress(OSError):  # such as a file that was cut short
            return _load(path, runtime)
    if shutil.which(compiler[0]) is None:
        raise RuntimeError(f"there is no C++ compiler {compiler[0]!r} on the path; install one, or set CXX")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        parts = [str(Path(folder, name)) for name in ("kernel.o", "kernel.so")]
        # Linked without the runtime of threads: torch has loaded one, and a second would compete with it.
        for step in ([*flags, "-o", parts[0]], ["-shared", parts[0], "-o", parts[1]]):
            done = subprocess.run([*compiler, *step], capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise RuntimeError(f"{compiler[0]}: {lines[0]}")
        built = Path(parts[1])
        built.write_bytes(_sealed(built.read_bytes()))
        built.replace(path)
    LOG.info("compiled kernels built in %.1f s: %s", time.monotonic() - started, path)
    return _load(path, runtime)


def _load(path: Path, runtime: Path | None) -> ctypes.CDLL:
    """Load a library."""
    content = path.read_bytes()
    if content != _sealed(content[:-SEAL]):  # loading a library that was cut short ends the process
        raise OSError(f"{path} is damaged")
    if runtime is not None:
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)  # loaded already; now its names are seen
    return ctypes.CDLL(str(path))


def _sealed(content: bytes) -> bytes:
    """Return the content of a library with its hash behind it, where the loader does not look."""
    return content + hashlib.sha256(content).digest()


def _thread_runtime() -> Path | None:
    """Return the OpenMP library that this process has loaded with torch; None if it cannot be found."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    paths = (Path(line.split(maxsplit=5)[-1]) for line in lines if ".so" in line)
    return next((path for path in paths if re.match(r"lib(gomp|iomp5|omp)\b", path.name)), None)


def cache_folders() -> Iterator[Path]:
    """Yield the folders for libraries that can be written, the best first."""
    chosen = os.environ.get(CACHE) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    first = Path(chosen).expanduser() / ("kernels" if os.environ.get(CACHE) else "satm/kernels")
    for folder in (first, Path(tempfile.gettempdir(), f"satm-kernels-{os.getuid()}")):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            about = folder.stat()
        except (OSError, RuntimeError):
            continue
        # What is loaded from here is run: it must be this user's own.
        if about.st_uid == os.getuid() and not about.st_mode & 0o022 and os.access(folder, os.W_OK):
            yield folder


def processor() -> str:
    """Return the processor's features, which decide what code it can run."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    model = next((line for line in lines if line.startswith("model name")), platform.processor())
    return f"{platform.system()} {platform.machine()} {model} {features}"
