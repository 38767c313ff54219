"""Compiled kernels of `block.py` for the CPU: `block.cpp`, built once for each machine, type of number and pooling.

The library lies in the user's cache folder, in a file whose name has a hash of the source, the compiler's flags and the
processor's features: another source, flag or processor has another file. Processes that build at the same time build
the same file, each under a name of its own, and rename it. Where nothing can be built or loaded, the closed forms of
`block.py` serve, which one line of the log says.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from satm.version import PACKAGE

if TYPE_CHECKING:
    from satm.ops.block import Block

LOG = logging.getLogger("satm")

SOURCE = PACKAGE / "ops" / "block.cpp"

FLAGS = ("-std=c++14", "-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
"""Flags of the compiler. None changes what is computed for numbers that are not finite."""

NUMBERS = {torch.float32: "float", torch.float64: "double"}
POOLS = {"none": 0, "average": 1, "max": 2}
SLOPES = {"none": 1.0, "relu": 0.0}

SEAL = hashlib.sha256().digest_size
"""Length of the hash behind a library."""

CACHE = "SATM_CACHE"
"""Environment variable: folder of compiled kernels; else `satm` in $XDG_CACHE_HOME or in `~/.cache`."""


class _Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("n", "h", "w", "c")),
        *((name, ctypes.c_double) for name in ("eps", "slope")),
    ]


@dataclass(frozen=True)
class Native:
    """The functions of a built library, with the arguments and results of those of `satm.ops.block`.

    Maps are contiguous and of the library's type of number. The means between `first` and `second` are those of g.
    """

    library: ctypes.CDLL

    def forward(self, block: "Block", x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, <x> and r."""
        count, height, width, channels = x.shape
        half = 1 if block.pooling == "none" else 2
        y = x.new_empty(count, height // half, width // half, channels)
        m, r = x.new_empty(count, 1, 1, channels), x.new_empty(count, 1, 1, channels)
        self._call("forward", block, x, w, b, y, m, r)
        return y, m, r

    def first(
        self, block: "Block", x: Tensor, w: Tensor, b: Tensor, m: Tensor, r: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return dx, dw, db, <g> and <g xh>."""
        dx, mg, mgx = torch.empty_like(x), torch.empty_like(m), torch.empty_like(m)
        self._call("first", block, x, w, b, m, r, dy, dx, mg, mgx)
        area = x.shape[1] * x.shape[2]
        return dx, area * mgx.sum((0, 1, 2)), area * mg.sum((0, 1, 2)), mg, mgx

    def second(
        self,
        block: "Block",
        x: Tensor,
        w: Tensor,
        b: Tensor,
        m: Tensor,
        r: Tensor,
        dy: Tensor,
        mg: Tensor,
        mgx: Tensor,
        a: Tensor,
        cw: Tensor,
        cb: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients with respect to x, w, b and dy."""
        g_x, g_dy, g_w = torch.empty_like(x), torch.empty_like(dy), torch.empty_like(m)
        self._call("second", block, x, w, b, m, r, dy, mg, mgx, a, cw, cb, g_x, g_dy, g_w)
        return g_x, g_w.sum((0, 1, 2)), torch.zeros_like(b), g_dy

    def _call(self, name: str, block: "Block", x: Tensor, *others: Tensor) -> None:
        shape = _Shape(*x.shape, block.eps, SLOPES.get(block.activation, block.slope))
        getattr(self.library, name)(ctypes.byref(shape), *(each.data_ptr() for each in (x, *others)))


def native(block: "Block", x: Tensor) -> Native | None:
    """Return the kernels for a block on maps `x`; None if there are none for such a block, or none can be built."""
    fits = block.norm == "instance" or (block.norm == "group" and block.groups == x.shape[3])
    if not fits or block.activation == "sigmoid" or x.device.type != "cpu" or x.dtype not in NUMBERS:
        return None
    return _library(NUMBERS[x.dtype], POOLS[block.pooling])


@functools.cache
def _library(number: str, pool: int) -> Native | None:
    """Load a library, built before or now; None, with a line in the log, if that fails."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(compiler[0]) is None:
        return _without(f"there is no C++ compiler {compiler[0]!r} on the path; install one, or set CXX")
    runtime, reasons = _thread_runtime(), list[str]()
    for threads in ([["-fopenmp"]] if runtime else []) + [[]]:
        flags = [*FLAGS, f"-DNUMBER={number}", f"-DPOOL={pool}", *threads]
        parts = [SOURCE.read_bytes(), *(each.encode() for each in (*compiler, *flags, str(runtime), _processor()))]
        name = f"block-{hashlib.sha256(b' '.join(parts)).hexdigest()[:24]}.so"
        for folder in _folders():
            try:
                return _open(folder / name, compiler, flags, runtime if threads else None)
            except (OSError, AttributeError, RuntimeError) as error:
                reasons.append(f"{folder}: {str(error).strip()}")
    return _without(reasons[0] if reasons else "no folder for them can be written; set SATM_CACHE to one")


@functools.cache
def _without(reason: str) -> None:
    """Say why there are no compiled kernels."""
    LOG.info("norms and poolings are computed by PyTorch's operations, which takes longer: %s", reason)


def _open(path: Path, compiler: list[str], flags: list[str], runtime: Path | None) -> Native:
    """Return the library in a file, which is built if it is not there, or cannot be loaded.

    Raises:
        OSError: the file cannot be written or loaded.
        AttributeError: it lacks a function.
        RuntimeError: the compiler failed, or the library computes other numbers than the closed forms.
    """
    if path.exists():
        with contextlib.suppress(OSError, AttributeError):  # such as a file that was cut short
            return _load(path, runtime)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        parts = [str(Path(folder, name)) for name in ("block.o", "block.so")]
        # Linked without the runtime of threads: torch has loaded one, and a second would compete with it.
        compiling = [*compiler, *flags, "-c", str(SOURCE), "-o", parts[0]]
        for step in (compiling, [*compiler, "-shared", parts[0], "-o", parts[1]]):
            done = subprocess.run(step, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
                raise RuntimeError(f"{step[0]}: {lines[0]}")
        built = Path(parts[1])
        built.write_bytes(_sealed(built.read_bytes()))
        built.replace(path)
    LOG.info("kernels for norms and poolings built in %.1f s: %s", time.monotonic() - started, path)
    return _load(path, runtime)


def _load(path: Path, runtime: Path | None) -> Native:
    """Load a library, its functions bound."""
    content = path.read_bytes()
    if content != _sealed(content[:-SEAL]):  # loading a library that was cut short ends the process
        raise OSError(f"{path} is damaged")
    if runtime is not None:
        ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)  # loaded already; now its names are seen
    library = ctypes.CDLL(str(path))
    for name, pointers in (("forward", 6), ("first", 9), ("second", 14)):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_void_p] * (pointers + 1), None
    return Native(library)


def _sealed(content: bytes) -> bytes:
    """Return the content of a library with its hash behind it, where the loader does not look."""
    return content + hashlib.sha256(content).digest()


def _thread_runtime() -> Path | None:
    """Return the OpenMP library that this process has loaded with torch; None if it cannot be found."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = (Path(line.split(maxsplit=5)[-1]) for line in lines if ".so" in line)
    return next((path for path in paths if re.match(r"lib(gomp|iomp5|omp)\b", path.name)), None)


def _folders() -> Iterator[Path]:
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


def _processor() -> str:
    """Return the processor's features, which decide what code it can run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    model = next((line for line in lines if line.startswith("model name")), platform.processor())
    return f"{platform.system()} {platform.machine()} {model} {features}"
