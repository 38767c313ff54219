"""Norm, activation and pooling as one operation whose first and second derivatives are closed forms.

Shapes: `x` and the result are `[n, C, H, W]` and `[n, C, H', W']` in channels_last memory; inside they are maps
`[n, H, W, C]`. A norm's statistics are over a set of elements: for `instance` the H x W of one image and channel, for
`group` those of some channels of one image, for `layer` one image, for `batch` one channel of all images. <.> is the
mean over the set, and r is 1 / sqrt(variance + eps).

With ``xh = r (x - <x>)``, ``z = w xh + b`` and ``y = pool(f(z))``, the first derivatives are, from the cotangent dy of
y and with ``g = f'(z) unpool(dy)`` and ``p = w g``,

    dx = r (p - <p> - xh <p xh>)        dw = sum(g xh)        db = sum(g)

and the second ones, from the cotangents a of dx, cw of dw and cb of db, and with ``q = r (a - <a> - xh <a xh>)``,
``t = w q + cw xh + cb``, ``e = f''(z) unpool(dy) t`` and ``k = cw g + w e - r (a <p xh> + p <a xh>)``,

    dy: pool(f'(z) t)        w: sum(g q + e xh)        b: sum(e)
    x: r (k - <k> - xh <k xh>) - r^2 xh (<a p> - <a> <p> - <a xh> <p xh>)

where pool is here the adjoint of unpool: it takes the maximum from where the forward pass found it.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from satm.ops.compiled import Compiled, can_compile
from satm.ops.native import native

Norm = Literal["none", "instance", "group", "layer", "batch"]


@dataclass(frozen=True)
class Block:
    """What a block does.

    Args:
        norm: `layer` normalises over all channels and pixels of an image; `batch` uses the statistics of the batch.
        groups: number of groups of `group`.
        eps: added to the variance.
        activation: `leaky` has `slope` for negative values.
        pooling: over windows of 2 x 2 with stride 2; an odd last row or column is dropped.
    """

    norm: Norm = "none"
    groups: int = 1
    eps: float = 1e-5
    activation: Literal["none", "relu", "leaky", "sigmoid"] = "none"
    slope: float = 0.0
    pooling: Literal["none", "average", "max"] = "none"

    def __call__(self, x: Tensor, w: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """Return the result, differentiable twice; `w` and `b` are the norm's scale and shift, `[C]` or `[C, H, W]`."""
        if x.ndim != 4 or not x.is_floating_point() or not self.fits(x, x.shape[1], w, b):
            return self.plain(x, w, b)
        if self.norm == "none":
            plain: Tensor = _Pointwise.apply(x, self)
            return plain
        normed: Tensor = _Normed.apply(x, *self.affine(x, x.shape[1], w, b), self)
        return normed

    def affine(self, like: Tensor, channels: int, w: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return scale and shift, which are 1 and 0 if there are none."""
        w = like.new_ones(channels) if w is None else w
        return w, torch.zeros_like(w) if b is None else b

    def fits(self, x: Tensor, channels: int, w: Tensor | None, b: Tensor | None) -> bool:
        """Return whether images, scale and shift fit together; kernels do not look."""
        given = [each for each in (w, b) if each is not None]
        sized = self.norm == "layer" or all(each.shape == (channels,) for each in given)
        return sized and all(each.dtype == x.dtype for each in given) and channels % self.groups == 0

    def plain(self, x: Tensor, w: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        """Return the result by PyTorch's operations, for inputs of another rank, and to refuse what does not fit."""
        if self.norm in ("instance", "batch"):
            if x.ndim == 3:  # one image without the dimension of a batch
                return self(x[None], w, b)[0]
            norm = functional.instance_norm if self.norm == "instance" else functional.batch_norm
            x = norm(x, None, None, w, b, True, 0.1, self.eps)
        if self.norm == "group":
            x = functional.group_norm(x, self.groups, w, b, self.eps)
        elif self.norm == "layer":
            x = functional.layer_norm(x, x.shape[-3:], w, b, self.eps)
        x = self.active(x)
        if self.pooling == "average":
            return functional.avg_pool2d(x, 2)
        return x if self.pooling == "none" else functional.max_pool2d(x, 2)

    def over_set(self, means: Tensor) -> Tensor:
        """Return means over the norm's sets from the means of each image and channel, `[n, 1, 1, C]`; to broadcast."""
        if self.norm == "instance" or (self.norm == "group" and self.groups == means.shape[3]):
            return means
        if self.norm == "batch":
            return means.mean(0, keepdim=True)
        if self.norm == "layer":
            return means.mean(3, keepdim=True)
        count, _, _, channels = means.shape
        grouped = means.view(count, 1, 1, self.groups, channels // self.groups).mean(4, keepdim=True)
        return grouped.expand(-1, -1, -1, -1, channels // self.groups).reshape(count, 1, 1, channels)

    def mean(self, maps: Tensor) -> Tensor:
        """Return the means of maps over the norm's sets, to broadcast."""
        return self.over_set(maps.mean((1, 2), keepdim=True))

    def total(self, maps: Tensor) -> Tensor:
        """Return the sum of maps over everything that shares an element of the scale."""
        return maps.sum(0) if self.norm == "layer" else maps.sum((0, 1, 2))

    def active(self, z: Tensor) -> Tensor:
        """Return f(z)."""
        if self.activation == "relu":
            return torch.relu(z)
        if self.activation == "leaky":
            return functional.leaky_relu(z, self.slope)
        return torch.sigmoid(z) if self.activation == "sigmoid" else z

    def slope_at(self, z: Tensor) -> Tensor:
        """Return f'(z), the one-sided slopes at 0 as in PyTorch."""
        if self.activation == "sigmoid":
            s = torch.sigmoid(z)
            return s * (1 - s)
        if self.activation == "none":
            return torch.ones_like(z)
        on = torch.clamp(torch.sign(z), min=0)  # NaN stays NaN
        return on if self.activation == "relu" else self.slope + (1 - self.slope) * on

    def curvature_at(self, z: Tensor) -> Tensor | None:
        """Return f''(z); None if it is 0 almost everywhere."""
        if self.activation != "sigmoid":
            return None
        s = torch.sigmoid(z)
        return s * (1 - s) * (1 - 2 * s)

    def pool(self, maps: Tensor, z: Tensor) -> Tensor:
        """Return pooled maps; the place of a maximum is that of z."""
        if self.pooling == "none":
            return maps
        corners = _corners(maps)
        if self.pooling == "max":
            corners = [each * on for each, on in zip(corners, _largest(z), strict=True)]
        total = corners[0] + corners[1] + corners[2] + corners[3]
        return total if self.pooling == "max" else total * 0.25

    def unpool(self, dy: Tensor, z: Tensor) -> Tensor:
        """Return the cotangent of unpooled maps."""
        if self.pooling == "none":
            return dy
        count, height, width, channels = dy.shape
        if self.pooling == "max":
            parts = torch.stack([dy * on for on in _largest(z)], 3).view(count, height, width, 2, 2, channels)
            full = parts.permute(0, 1, 3, 2, 4, 5)
        else:
            full = (dy * 0.25)[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1)
        full = full.reshape(count, 2 * height, 2 * width, channels)
        return functional.pad(full, (0, 0, 0, z.shape[2] - 2 * width, 0, z.shape[1] - 2 * height))


def _corners(maps: Tensor) -> list[Tensor]:
    """Return the four elements of each window of 2 x 2, in the order of rows."""
    height, width = maps.shape[1] // 2 * 2, maps.shape[2] // 2 * 2
    return [maps[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1)]


def _largest(z: Tensor) -> list[Tensor]:
    """Return for each corner of a window 1 where it has the first of the largest elements, else 0."""
    corners, left = _corners(z), None
    highest = torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3]))
    chosen = []
    for each in corners:
        on = torch.clamp(1 + torch.sign(each - highest), min=0)  # the difference is 0 or less
        on = on if left is None else on * left
        left = 1 - on if left is None else left - on
        chosen.append(on)
    return chosen


def scale_of(w: Tensor) -> Tensor:
    """Return a scale or shift as maps: `[C]`, or `[H, W, C]` from `[C, H, W]`."""
    return (w if w.ndim == 1 else w.permute(1, 2, 0)).contiguous()


def unscale(w: Tensor) -> Tensor:
    """Return a scale or shift from what it is as maps."""
    return w if w.ndim == 1 else w.permute(2, 0, 1)


def forward(block: Block, x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, <x> and r."""
    m = block.mean(x)
    variance = block.mean((x - m).square())
    r = torch.rsqrt(variance + block.eps) + 0 * variance  # a variance beyond all numbers gives NaN, not 0
    z = (x - m) * r * w + b
    return block.pool(block.active(z), z), m, r


def first(
    block: Block, x: Tensor, w: Tensor, b: Tensor, m: Tensor, r: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return dx, dw, db, <p> and <p xh>."""
    xh = (x - m) * r
    z = xh * w + b
    g = block.slope_at(z) * block.unpool(dy, z)
    p = w * g
    mp, mpx = block.mean(p), block.mean(p * xh)
    return r * (p - mp - xh * mpx), block.total(g * xh), block.total(g), mp, mpx


def second(
    block: Block,
    x: Tensor,
    w: Tensor,
    b: Tensor,
    m: Tensor,
    r: Tensor,
    dy: Tensor,
    mp: Tensor,
    mpx: Tensor,
    a: Tensor,
    cw: Tensor,
    cb: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, w, b and dy."""
    xh = (x - m) * r
    z = xh * w + b
    slope, full = block.slope_at(z), block.unpool(dy, z)
    g = slope * full
    p = w * g
    ma, max_, map_ = block.mean(a), block.mean(a * xh), block.mean(a * p)
    q = r * (a - ma - xh * max_)
    t = w * q + cw * xh + cb
    k = cw * g - r * (a * mpx + p * max_)
    for_w, for_b = g * q, None
    if (curvature := block.curvature_at(z)) is not None:
        e = curvature * full * t
        k, for_w, for_b = k + w * e, for_w + e * xh, e
    mk, mkx = block.mean(k), block.mean(k * xh)
    g_x = r * (k - mk - xh * mkx) - r * r * xh * (map_ - ma * mp - max_ * mpx)
    g_b = torch.zeros_like(b) if for_b is None else block.total(for_b)
    return g_x, block.total(for_w), g_b, block.pool(slope * t, z)


def forward_plain(block: Block, x: Tensor) -> Tensor:
    """Return y of a block without a norm."""
    return block.pool(block.active(x), x)


def first_plain(block: Block, x: Tensor, dy: Tensor) -> Tensor:
    """Return dx of a block without a norm."""
    return block.slope_at(x) * block.unpool(dy, x)


def second_plain(block: Block, x: Tensor, dy: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to x and dy of a block without a norm."""
    curvature = block.curvature_at(x)
    g_x = torch.zeros_like(x) if curvature is None else curvature * block.unpool(dy, x) * a
    return g_x, block.pool(block.slope_at(x) * a, x)


def maps_of(x: Tensor) -> Tensor:
    """Return maps, channels last, without a copy if the memory is."""
    return x.permute(0, 2, 3, 1).contiguous()


def images_of(maps: Tensor) -> Tensor:
    """Return images, `[n, C, H, W]`, from maps."""
    return maps.permute(0, 3, 1, 2)


class _Closed:
    """The closed forms in PyTorch's operations."""

    forward, first, second = staticmethod(forward), staticmethod(first), staticmethod(second)


_compiled = Compiled(forward, first, second)


def kernels_for(block: Block, maps: Tensor) -> Any:
    """Return the functions `forward`, `first` and `second` for a block on such maps."""
    return native(block, maps) or (_compiled if can_compile(maps.device) else _Closed)


class _Normed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, b: Tensor, block: Block) -> Tensor:
        maps = maps_of(x)
        ctx.kernels, ctx.block = kernels_for(block, maps), block
        y, m, r = ctx.kernels.forward(block, maps, scale_of(w), scale_of(b))
        ctx.save_for_backward(x, w, b, m, r)
        return images_of(y).detach()  # autograd refuses in-place operations on a view that is made here

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormedBackward.apply(*ctx.saved_tensors, dy, ctx.block, ctx.kernels), None


class _NormedBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, b: Tensor, m: Tensor, r: Tensor, dy: Tensor, block: Block, kernels: Any
    ) -> tuple[Tensor, ...]:
        dx, dw, db, *means = kernels.first(block, maps_of(x), scale_of(w), scale_of(b), m, r, maps_of(dy))
        ctx.save_for_backward(x, w, b, m, r, dy, *means)
        ctx.kernels, ctx.block = kernels, block
        return images_of(dx), unscale(dw), unscale(db)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor, cw: Tensor, cb: Tensor) -> tuple[Tensor | None, ...]:
        x, w, b, m, r, dy, *means = ctx.saved_tensors
        values = (
            maps_of(x),
            scale_of(w),
            scale_of(b),
            m,
            r,
            maps_of(dy),
            *means,
            maps_of(a),
            scale_of(cw),
            scale_of(cb),
        )
        g_x, g_w, g_b, g_dy = ctx.kernels.second(ctx.block, *values)
        return images_of(g_x), unscale(g_w), unscale(g_b), None, None, images_of(g_dy), None, None


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Block) -> Tensor:
        ctx.save_for_backward(x)
        ctx.block = block
        return images_of(forward_plain(block, maps_of(x))).detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _PointwiseBackward.apply(*ctx.saved_tensors, dy, ctx.block), None


class _PointwiseBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dy: Tensor, block: Block) -> Tensor:
        ctx.save_for_backward(x, dy)
        ctx.block = block
        return images_of(first_plain(block, maps_of(x), maps_of(dy)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, a: Tensor) -> tuple[Tensor | None, ...]:
        x, dy = ctx.saved_tensors
        g_x, g_dy = second_plain(ctx.block, maps_of(x), maps_of(dy), maps_of(a))
        return images_of(g_x), images_of(g_dy), None
