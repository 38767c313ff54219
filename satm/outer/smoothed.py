"""Sharpness-aware descent on a smoothed landscape, with truncated unrolling and a reused trajectory.

Shapes: n synthetic images of C x H x W, N inner steps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from satm.outer.base import Oracle, OuterGradient


@dataclass(frozen=True)
class Smoothing:
    """The constants of a smoothed, sharpness-aware step.

    Args:
        rho: length of the step towards the sharpest neighbour, in the norm over the whole set.
        gamma: strength of the noise, relative to each image's norm.
        noise: `std`: gamma times the norm is the noise's standard deviation; `variance`: its variance.
        last: differentiated steps of each unroll (N - iota in the paper); None: all.
        restart: index of the step from which the second unroll goes on along the first (tau in the paper).
    """

    rho: float
    gamma: float
    noise: Literal["std", "variance"]
    last: int | None
    restart: int


def smoothed(oracle: Oracle, images: Tensor, generator: torch.Generator, constants: Smoothing) -> OuterGradient:
    """Return the hypergradient at the set's sharpest neighbour, which a first, noisy hypergradient points to.

    First unroll on the images plus noise, hypergradient ``g``; ``eps = rho * g / |g|``, zero where ``g`` is zero; the
    second unroll goes on from the first one's weights before step `restart`, on the images plus ``eps`` without noise.

    Args:
        oracle: of this iteration.
        images: `[n, C, H, W]` the synthetic set.
        generator: on the CPU, draws the noise.
        constants: see `Smoothing`.

    Returns:
        the loss and the step size's gradient of the first unroll, the images' and labels' gradients of the second, and
        as sharpness the second loss minus the first.

    Source: SATM Algorithm 1, Eq. 9 to 11; the step size from the first unroll: text after Eq. 12.
    Differs: Algorithm 1 counts the second loop from N - tau; here, as in Eq. 11, tau is the index where it starts.
    """
    first = oracle(
        images + _noise(images, generator, constants.gamma, constants.noise),
        last=constants.last,
        keep_points=(constants.restart,),
    )
    norm = first.images.norm()
    eps = torch.where(norm > 0, constants.rho * first.images / norm, torch.zeros_like(images))
    second = oracle(images + eps, last=constants.last, start=first.points[constants.restart], first=constants.restart)
    return OuterGradient(first.loss, second.images, second.labels, first.step_size, second.loss - first.loss)


def _noise(images: Tensor, generator: torch.Generator, gamma: float, kind: str) -> Tensor:
    """Return `[n, C, H, W]` Gaussian noise, independent per image, its magnitude proportional to the image's norm."""
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    magnitude = gamma * images.flatten(1).norm(dim=1).view(-1, *[1] * (images.ndim - 1))
    scale: Tensor = magnitude if kind == "std" else magnitude.sqrt()
    return drawn * scale
