"""Sharpness-aware steps: a first hypergradient points to a worse neighbour of the set, the step follows the second.

Shapes: n synthetic images of C x H x W, N inner steps.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from satm.outer.base import Oracle, OuterGradient

Ascent = Callable[[Tensor], Tensor]
"""`[n, C, H, W]` hypergradient -> `[n, C, H, W]` perturbation of the set."""


def sharpness_aware(
    oracle: Oracle,
    images: Tensor,
    ascent: Ascent,
    *,
    last: int | None = None,
    reuse_from: int = 0,
) -> tuple[OuterGradient, Tensor]:
    """Return the hypergradient at the perturbed set, and the first one, `[n, C, H, W]`, that points there.

    First unroll on the images, hypergradient ``g``; ``eps = ascent(g)``; second unroll on the images plus ``eps``. The
    loss and the step size's gradient are of the first unroll, the images' and labels' gradients of the second; the
    sharpness is the second loss minus the first.

    Args:
        oracle: of this iteration.
        images: `[n, C, H, W]` the synthetic set.
        ascent: from a hypergradient to a perturbation.
        last: differentiated steps of each unroll; None: all.
        reuse_from: index of the step from which the second unroll continues the first one's trajectory. 0: it starts
            where the first one did.

    Source: SAM: Foret et al. 2021, Algorithm 1. Reuse: SATM Algorithm 1, Eq. 11; the step size from the
        first unroll: text after Eq. 12.
    """
    first = oracle(images, last=last, keep_points=(reuse_from,))
    second = oracle(images + ascent(first.images), last=last, start=first.points[reuse_from], first=reuse_from)
    sharpness = second.loss - first.loss
    return OuterGradient(first.loss, second.images, second.labels, first.step_size, sharpness), first.images


def steepest(rho: float) -> Ascent:
    """Return the ascent ``rho * g / |g|``, the norm over the whole set; zero where ``g`` is zero.

    Source: SAM, Eq. 2.
    """

    def ascent(gradient: Tensor) -> Tensor:
        return _scaled(gradient, gradient.norm(), rho)

    return ascent


def adaptive(images: Tensor, rho: float, eta: float) -> Ascent:
    """Return the ascent ``rho * T^2 g / |T g|`` with ``T = |images| + eta``, elementwise; zero where ``T g`` is zero.

    On a set of entries 1 and -1 with eta 0 it is `steepest`.

    Source: ASAM: Kwon et al. 2021, Eq. 8 with elementwise normalisation; eta as in its code.
    """
    size = images.abs() + eta

    def ascent(gradient: Tensor) -> Tensor:
        return _scaled(size.square() * gradient, (size * gradient).norm(), rho)

    return ascent


def without_surrogate_gap(found: OuterGradient, first: Tensor, alpha: float) -> OuterGradient:
    """Return a step that leaves out part of what only widens the gap between the perturbed and the plain loss.

    The component of `first` (`[n, C, H, W]`, the hypergradient at the set) that is orthogonal to the perturbed one is
    taken off, times alpha. Alpha 0 is SAM.

    Source: GSAM: Zhuang et al. 2022, Algorithm 1.
    Differs: rho does not follow a schedule of the learning rate; the outer rates here are constant, so rho is too.
    """
    return replace(found, images=found.images - alpha * orthogonal(first, found.images))


def orthogonal(one: Tensor, other: Tensor) -> Tensor:
    """Return the component of `one` that is orthogonal to `other`, as vectors of all entries; `one` if that is zero."""
    length = other.square().sum()
    share = torch.where(length > 0, (one * other).sum() / length, torch.zeros_like(length))
    return one - share * other


def _scaled(direction: Tensor, norm: Tensor, rho: float) -> Tensor:
    return torch.where(norm > 0, rho * direction / norm, torch.zeros_like(direction))
