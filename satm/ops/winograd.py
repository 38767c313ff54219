"""Convolutions of 3 x 3 by Winograd's algorithm on the CPU: `winograd.cpp`.

Shapes as in `satm.ops.convolution`. All tensors are channels_last, the weights of any layout.
"""

import ctypes
import functools
import threading

import torch
from torch import Tensor

from satm.ops.build import NUMBERS, library
from satm.ops.precision import rounds

_kept = threading.local()

LEAST = 4
"""Least height and width: the algorithm computes tiles of 4 x 4."""


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("n", "h", "w", "c", "d")]


def winograd(x: Tensor, w: Tensor) -> bool:
    """Return whether there are kernels for a convolution of `x` with `w`, with stride 1 and padding 1."""
    if (
        x.ndim != 4
        or x.device.type != "cpu"
        or x.dtype not in NUMBERS
        or rounds(x.dtype)
        or w.shape[2:] != (3, 3)
        or min(x.shape[2:]) < LEAST
    ):
        return False
    panel = 2 * 64 // x.element_size()
    return not (w.shape[0] % panel or w.shape[1] % panel) and _kernels(NUMBERS[x.dtype]) is not None


def convolve(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    """Return the convolution, `[n, D, H, W]`."""
    return _convolve(x, w.permute(2, 3, 1, 0), b, mirrored=False)


def image_slope(dy: Tensor, w: Tensor) -> Tensor:
    """Return T(dy, w), `[n, C, H, W]`: the convolution with the mirrored weights."""
    return _convolve(dy, w.permute(2, 3, 0, 1), None, mirrored=True)


def weight_slope(x: Tensor, dy: Tensor) -> Tensor:
    """Return G(x, dy), `[D, C, 3, 3]`."""
    shape = _shape(x, dy.shape[1])
    dw = x.new_empty(3, 3, shape.c, shape.d)
    kernels = _kernels(NUMBERS[x.dtype])
    assert kernels is not None  # or `winograd` is false
    work = _work(kernels, shape, x)
    kernels.slope(ctypes.byref(shape), *(each.data_ptr() for each in (x, dy, work, dw)))
    return dw.permute(3, 2, 0, 1)


def _convolve(x: Tensor, w: Tensor, b: Tensor | None, mirrored: bool) -> Tensor:
    """Return the convolution with weights `[3, 3, channels before, channels after]`."""
    shape, w = _shape(x, w.shape[3]), w.contiguous()
    y = torch.empty((shape.n, shape.d, shape.h, shape.w), dtype=x.dtype, memory_format=torch.channels_last)
    kernels = _kernels(NUMBERS[x.dtype])
    assert kernels is not None  # or `winograd` is false
    shift = None if b is None else b.contiguous()
    work = _work(kernels, shape, x)
    pointers = (x.data_ptr(), w.data_ptr(), None if shift is None else shift.data_ptr())
    kernels.convolve(ctypes.byref(shape), *pointers, int(mirrored), work.data_ptr(), y.data_ptr())
    return y


def _shape(x: Tensor, channels: int) -> _Shape:
    count, before, height, width = x.shape
    return _Shape(count, height, width, before, channels)


def _work(kernels: ctypes.CDLL, shape: _Shape, like: Tensor) -> Tensor:
    """Return numbers for the work of one call, the same ones in all calls of a thread: new memory is slow at first."""
    size, kept = kernels.work_size(ctypes.byref(shape)), getattr(_kept, "numbers", None)
    if kept is None or len(kept) < size or kept.dtype != like.dtype:
        _kept.numbers = kept = like.new_empty(size)
    return kept


@functools.cache
def _kernels(number: str) -> ctypes.CDLL | None:
    built = library("winograd.cpp", NUMBER=number)
    if built is not None:
        pointer = ctypes.c_void_p
        built.work_size.argtypes, built.work_size.restype = [pointer], ctypes.c_long
        built.convolve.argtypes = [*[pointer] * 4, ctypes.c_long, pointer, pointer]
        built.slope.argtypes = [pointer] * 5
        built.convolve.restype = built.slope.restype = None
    return built
