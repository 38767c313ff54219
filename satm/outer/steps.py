"""Outer steps: plain descent, and sharpness-aware steps, which use the hypergradient at a perturbed set.

Shapes: n synthetic images of C x H x W, N inner steps.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from satm.outer.base import HypergradientFn, OuterGradient

Ascent = Callable[[Tensor], Tensor]
"""`[n, C, H, W]` hypergradient -> `[n, C, H, W]` perturbation of the set."""


def descent(oracle: HypergradientFn, images: Tensor, last: int | None = None) -> OuterGradient:
    """Return the hypergradient at the set's images, `[n, C, H, W]`, through the final `last` steps; None: all."""
    value = oracle(images, last=last)
    return OuterGradient(value.loss, value.images, value.labels, value.step_size)


def smoothing_noise(
    images: Tensor, generator: torch.Generator, gamma: float, kind: Literal["std", "variance"]
) -> Tensor:
    """Return Gaussian noise, `[n, C, H, W]`, with a magnitude proportional to each image's norm.

    Gamma times the norm is the noise's standard deviation (`std`) or its variance. The generator is on the CPU.

    Source: SATM section 3.2 and Algorithm 1, line 7.
    """
    noise = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    magnitude = gamma * images.flatten(1).norm(dim=1).view(-1, *[1] * (images.ndim - 1))
    scale: Tensor = magnitude if kind == "std" else magnitude.sqrt()
    return noise * scale


def sharpness_aware(
    oracle: HypergradientFn, images: Tensor, ascent: Ascent, *, last: int | None = None, reuse_from: int = 0
) -> tuple[OuterGradient, Tensor]:
    """Return the hypergradient at the perturbed set, and the first hypergradient, `[n, C, H, W]`.

    The first unroll, on the images, gives a hypergradient ``g`` and the perturbation ``eps = ascent(g)``; the second
    unroll is on the images plus ``eps``. The loss and the step size's gradient are those of the first unroll, the
    images' and labels' gradients those of the second; sharpness is the second loss minus the first.

    Args:
        oracle: hypergradient of this iteration.
        images: `[n, C, H, W]` synthetic set.
        ascent: maps a hypergradient to a perturbation.
        last: number of differentiated steps of each unroll; None: all.
        reuse_from: step from which the second unroll continues the first trajectory; 0: both have the same start.

    Source: SAM: Foret et al. 2021, Algorithm 1. Reuse: SATM Algorithm 1, Eq. 11; the step size from the first
        unroll: text after Eq. 12.
    """
    first = oracle(images, last=last, keep_points=(reuse_from,))
    second = oracle(images + ascent(first.images), last=last, start=first.points[reuse_from], first=reuse_from)
    sharpness = second.loss - first.loss
    return OuterGradient(first.loss, second.images, second.labels, first.step_size, sharpness), first.images


def steepest(rho: float) -> Ascent:
    """Return the ascent ``rho * g / |g|``, with the norm over the whole set; zero if ``g`` is zero.

    Source: SAM, Eq. 2.
    """

    def ascent(gradient: Tensor) -> Tensor:
        return _scaled(gradient, gradient.norm(), rho)

    return ascent


def adaptive(images: Tensor, rho: float, eta: float) -> Ascent:
    """Return the ascent ``rho * T^2 g / |T g|`` with ``T = |images| + eta``, elementwise; zero if ``T g`` is zero.

    For images with entries 1 and -1 only and eta 0 it equals `steepest`.

    Source: ASAM: Kwon et al. 2021, Eq. 8 with elementwise normalisation; eta as in its code.
    """
    size = images.abs() + eta

    def ascent(gradient: Tensor) -> Tensor:
        return _scaled(size.square() * gradient, (size * gradient).norm(), rho)

    return ascent


def without_surrogate_gap(perturbed: OuterGradient, first: Tensor, alpha: float) -> OuterGradient:
    """Return a step that also narrows the gap between the perturbed and the plain loss.

    It subtracts alpha times the component of `first`, the hypergradient at the set (`[n, C, H, W]`), that is orthogonal
    to the perturbed hypergradient. Alpha 0 is SAM.

    Source: GSAM: Zhuang et al. 2022, Algorithm 1.
    Differs: rho does not follow a learning rate schedule; the outer learning rates here are constant, so rho is too.
    """
    return replace(perturbed, images=perturbed.images - alpha * orthogonal(first, perturbed.images))


def orthogonal(one: Tensor, other: Tensor) -> Tensor:
    """Return the component of `one` orthogonal to `other`, both as flat vectors; `one` if `other` is zero."""
    length = other.square().sum()
    share = torch.where(length > 0, (one * other).sum() / length, torch.zeros_like(length))
    return one - share * other


def _scaled(direction: Tensor, norm: Tensor, rho: float) -> Tensor:
    return torch.where(norm > 0, rho * direction / norm, torch.zeros_like(direction))
