"""Two-dimensional convolution whose second derivatives are ordinary convolutions, with channels as the last dimension.

Shapes: `x` `[n, C, H, W]`, `w` `[D, C / groups, h, w]`, `b` `[D]`, `y` and `dy` `[n, D, H', W']`.

The first derivatives are ``dx = T(dy, w)`` and ``dw = G(x, dy)``, with T and G the adjoints of ``conv(x, w)``, which is
linear in both. So from the cotangents `a` of dx, `c` of dw and `k` of db, the second ones are

    dy: conv(a, w) + conv(x, c) + k        x: T(dy, c)        w: G(a, dy)

PyTorch's own double backward of a convolution gives the same sums through more general and slower convolutions.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from satm.ops.thin import thin, thin_image_slope
from satm.ops.wanted import wanted
from satm.ops.winograd import convolve, image_slope, weight_slope, winograd

LAST = torch.channels_last


@dataclass(frozen=True)
class Geometry:
    """Stride, padding, dilation (each of height and width), and number of groups of a convolution."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def conv(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Return the convolution, `[n, D, H', W']`."""
        return convolve(x, w, b) if self == USUAL and winograd(x, w) else self.plain(x, w, b)

    def plain(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Return the convolution by PyTorch's operation, which refuses what does not fit."""
        return functional.conv2d(x, w, b, self.stride, self.padding, self.dilation, self.groups)

    def fits(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> bool:
        """Return whether a batch of images, weights and bias fit together; kernels do not look."""
        alike = x.dtype == w.dtype and (b is None or (b.dtype == x.dtype and b.shape == w.shape[:1]))
        return alike and x.ndim == w.ndim == 4 and x.shape[1] == w.shape[1] * self.groups

    def cotangent(
        self, x: Tensor, w: Tensor, a: Tensor | None, c: Tensor | None, k: Tensor | None, like: Tensor
    ) -> Tensor:
        """Return the cotangent of dy from those of dx, dw and db: conv(a, w) + conv(x, c) + k, `like` dy."""
        total = None if c is None else self.conv(x, c, k)
        if total is None and k is not None:
            total = k.view(1, -1, 1, 1).expand_as(like)
        if a is not None:
            more = self.conv(a, w)
            total = more if total is None else more.add_(total)
        return torch.zeros_like(like) if total is None else total

    def backward(
        self, dy: Tensor, x: Tensor, w: Tensor, image: bool, weight: bool, bias: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return T(dy, w), G(x, dy) and the sum of dy over all but its channels; None for what is not asked for."""
        if self == USUAL and (image or weight) and winograd(x, w):
            dx = image_slope(dy, w) if image else None
            dw = weight_slope(x, dy) if weight else None
            return dx, dw, dy.sum((0, 2, 3)) if bias else None
        if self == USUAL and image and thin(x, w):
            _, dw, db = self.backward(dy, x, w, False, weight, bias)
            return thin_image_slope(dy, w), dw, db
        if weight and w.shape[2:] == (1, 1) and max(self.stride) > 1 and not any(self.padding):
            # Of 1 x 1 with a stride, oneDNN writes beyond the weights' gradient with several threads, for few channels
            # that are last in memory (seen in PyTorch 2.14). The pixels that count give it without a stride.
            used = last(x[:, :, :: self.stride[0], :: self.stride[1]])
            _, dw, db = replace(self, stride=(1, 1)).backward(dy, used, w, False, True, bias)
            return self.backward(dy, x, w, True, False, False)[0] if image else None, dw, db
        if not (image or weight or bias):
            return None, None, None
        both = (list(self.stride), list(self.padding), list(self.dilation))
        sizes, mask = [w.shape[0]] if bias else None, [image, weight, bias]
        result: tuple[Tensor | None, Tensor | None, Tensor | None] = torch.ops.aten.convolution_backward(
            dy, x, w, sizes, *both, False, [0, 0], self.groups, mask
        )
        return result


USUAL = Geometry((1, 1), (1, 1), (1, 1), 1)


def conv2d(x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the convolution as channels_last, differentiable twice; one image without a batch is PyTorch's."""
    if not geometry.fits(x, w, b):
        return geometry.plain(x, w, b)
    y: Tensor = _Convolution.apply(last(x), w, b, geometry)
    return y


def last(tensor: Tensor) -> Tensor:
    """Return the tensor with channels last in memory, without a copy if they are."""
    return tensor.contiguous(memory_format=LAST)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor | None, geometry: Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return geometry.conv(x, w, b).detach()  # autograd refuses in-place operations on a view that is made here

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        asked = tuple(wanted(ctx, place) for place in range(3))
        return *_Backward.apply(x, w, last(dy), ctx.geometry, asked), None


class _Backward(torch.autograd.Function):
    """The first derivatives, differentiable once more."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, dy: Tensor, geometry: Geometry, asked: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, w, dy)
        ctx.geometry = geometry
        return geometry.backward(dy, x, w, *asked)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor | None, c: Tensor | None, k: Tensor | None) -> tuple[Tensor | None, ...]:
        x, w, dy = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        a = None if a is None else last(a)
        to_x, to_w, to_dy = (wanted(ctx, place) for place in range(3))
        g_dy = geometry.cotangent(x, w, a, c, k, dy) if to_dy else None
        g_x = geometry.backward(dy, x, c, True, False, False)[0] if to_x and c is not None else None
        g_w = geometry.backward(dy, a, w, False, True, False)[1] if to_w and a is not None else None
        return g_x, g_w, g_dy, None, None
