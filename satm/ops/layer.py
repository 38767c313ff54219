"""A convolution with the block behind it, as one operation that keeps little for its second derivatives.

Shapes and names are those of `satm.ops.convolution` (`x`, its weights `v` and bias `k`) and of `satm.ops.block`: with
``u = conv(x, v) + k`` and ``y = block(u, w, b)``. Two operations would keep u and the cotangent of u, which are larger
than all else; here the cotangent, which the block's first derivatives give, is computed again.

From the cotangents a of dx, c of dv, ck of dk, cw of dw and cb of db, that of du is ``conv(a, v) + conv(x, c) + ck``.
With it the block's second derivatives follow, and ``x: T(du, c)`` and ``v: G(a, du)``; the rest of what x and v change
is the gradient with respect to u, an output of the operation that only this file sees.
"""

from typing import Any

import torch
from torch import Tensor

from satm.ops.block import Block, images_of, kernels_for, maps_of, scale_of, unscale
from satm.ops.convolution import Geometry, last
from satm.ops.wanted import wanted


def layer(x: Tensor, v: Tensor, k: Tensor | None, w: Tensor, b: Tensor, geometry: Geometry, block: Block) -> Tensor:
    """Return the block's result on the convolution of `x`, differentiable twice; the block has a norm."""
    y: Tensor = _Layer.apply(last(x), v, k, w, b, geometry, block)[0]
    return y


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, v: Tensor, k: Tensor | None, w: Tensor, b: Tensor, geometry: Geometry, block: Block
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        u = last(geometry.conv(x, v, k))
        maps = maps_of(u)
        ctx.how = geometry, block, kernels_for(block, maps)
        y, m, r = ctx.how[2].forward(block, maps, scale_of(w), scale_of(b))
        ctx.save_for_backward(x, v, u, w, b, m, r)
        return images_of(y).detach(), u  # autograd refuses in-place operations on a view that is made here

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, du: Tensor | None) -> tuple[Tensor | None, ...]:
        asked = tuple(wanted(ctx, place) for place in range(3))
        tensors = [*ctx.saved_tensors, dy, du]
        dx, dv, dk, dw, db = _LayerBackward.apply(*tensors, ctx.how, asked)
        return dx, dv, dk, dw, db, None, None


class _LayerBackward(torch.autograd.Function):
    """The first derivatives, differentiable once more."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        v: Tensor,
        u: Tensor,
        w: Tensor,
        b: Tensor,
        m: Tensor,
        r: Tensor,
        dy: Tensor | None,
        du: Tensor | None,
        how: tuple[Geometry, Block, Any],
        asked: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.set_materialize_grads(False)
        geometry, block, kernels = how
        if dy is None:  # of a result that was not used
            dy = u.new_zeros(block.pool(maps_of(u), maps_of(u)).shape).permute(0, 3, 1, 2)
        whole, dw, db, *means = kernels.first(block, maps_of(u), scale_of(w), scale_of(b), m, r, maps_of(dy))
        if du is not None:
            whole = whole.add_(maps_of(du))
        ctx.save_for_backward(x, v, u, w, b, m, r, dy, du, *means)
        ctx.how = how
        return *geometry.backward(images_of(whole), x, v, *asked), unscale(dw), unscale(db)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, a: Tensor | None, c: Tensor | None, ck: Tensor | None, cw: Tensor | None, cb: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, v, u, w, b, m, r, dy, du, *means = ctx.saved_tensors
        geometry, block, kernels = ctx.how
        here = (maps_of(u), scale_of(w), scale_of(b), m, r, maps_of(dy))
        a = None if a is None else last(a)
        cotangent = geometry.cotangent(x, v, a, c, ck, u)
        cw, cb = (torch.zeros_like(w) if each is None else each for each in (cw, cb))
        seconds = kernels.second(block, *here, *means, maps_of(cotangent), scale_of(cw), scale_of(cb))
        g_u, g_w, g_b, g_dy = seconds
        g_x = g_v = None
        to_x, to_v = c is not None and wanted(ctx, 0), a is not None and wanted(ctx, 1)
        if to_x or to_v:
            whole = kernels.first(block, *here)[0]
            if du is not None:
                whole = whole.add_(maps_of(du))
            whole = images_of(whole)
            g_x = geometry.backward(whole, x, c, True, False, False)[0] if to_x else None
            g_v = geometry.backward(whole, a, v, False, True, False)[1] if to_v else None
        g_du = None if du is None else cotangent
        return g_x, g_v, images_of(g_u), unscale(g_w), unscale(g_b), None, None, images_of(g_dy), g_du, None, None
