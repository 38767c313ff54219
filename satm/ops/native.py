"""Compiled kernels of `block.py` for the CPU: `block.cpp`."""

import ctypes
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from satm.ops.build import NUMBERS, library

if TYPE_CHECKING:
    from satm.ops.block import Block

POOLS = {"none": 0, "average": 1, "max": 2}
SLOPES = {"none": 1.0, "relu": 0.0}


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
    return _native(NUMBERS[x.dtype], POOLS[block.pooling])


@functools.cache
def _native(number: str, pool: int) -> Native | None:
    built = library("block.cpp", NUMBER=number, POOL=pool)
    if built is None:
        return None
    for name, pointers in (("forward", 6), ("first", 9), ("second", 14)):
        getattr(built, name).argtypes = [ctypes.c_void_p] * (1 + pointers)
        getattr(built, name).restype = None
    return Native(built)
