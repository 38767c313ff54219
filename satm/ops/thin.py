"""The gradient of images of few channels through a convolution of 3 x 3 on the CPU: `thin.cpp`."""

import ctypes
import functools

import torch
from torch import Tensor
from torch.nn import functional

from satm.ops.build import NUMBERS, library
from satm.ops.precision import rounds

MOST = 4
"""Most channels of the images."""


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("n", "h", "w", "c", "d")]


def thin(x: Tensor, w: Tensor) -> bool:
    """Return whether there are kernels for a convolution of `x` with `w`, with stride 1 and padding 1."""
    fits = x.device.type == "cpu" and x.dtype in NUMBERS and w.shape[2:] == (3, 3) and w.shape[1] <= MOST
    return fits and not rounds(x.dtype) and _kernels(NUMBERS[x.dtype]) is not None


def thin_image_slope(dy: Tensor, w: Tensor) -> Tensor:
    """Return T(dy, w), `[n, C, H, W]`, from channels_last dy."""
    kernels = _kernels(NUMBERS[dy.dtype])
    assert kernels is not None  # or `thin` is false
    count, after, height, width = dy.shape
    before = w.shape[1]
    shape = ctypes.byref(_Shape(count, height, width, before, after))
    columns, panel = kernels.columns(shape), 2 * 64 // dy.element_size()
    padded = functional.pad(w.permute(0, 2, 3, 1).reshape(after, 9 * before), (0, columns - 9 * before))
    panels = padded.view(after, columns // panel, panel).transpose(0, 1).contiguous()
    work = dy.new_empty(count * height * width, columns)
    dx = torch.empty((count, before, height, width), dtype=dy.dtype, memory_format=torch.channels_last)
    kernels.image_slope(shape, *(each.data_ptr() for each in (dy, panels, work, dx)))
    return dx


@functools.cache
def _kernels(number: str) -> ctypes.CDLL | None:
    built = library("thin.cpp", NUMBER=number)
    if built is not None:
        built.columns.argtypes, built.columns.restype = [ctypes.c_void_p], ctypes.c_long
        built.image_slope.argtypes, built.image_slope.restype = [ctypes.c_void_p] * 5, None
    return built
