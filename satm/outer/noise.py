"""Noise that smooths the outer loss.

Shapes: n synthetic images of C x H x W.
"""

from typing import Literal

import torch
from torch import Tensor


def smoothing_noise(
    images: Tensor, generator: torch.Generator, gamma: float, kind: Literal["std", "variance"]
) -> Tensor:
    """Return `[n, C, H, W]` Gaussian noise, independent per image, its magnitude proportional to the image's norm.

    Args:
        images: `[n, C, H, W]` the synthetic set.
        generator: on the CPU.
        gamma: strength relative to each image's norm.
        kind: `std`: gamma times the norm is the noise's standard deviation; `variance`: its variance.

    Source: SATM section 3.2 and Algorithm 1, line 7.
    """
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    magnitude = gamma * images.flatten(1).norm(dim=1).view(-1, *[1] * (images.ndim - 1))
    scale: Tensor = magnitude if kind == "std" else magnitude.sqrt()
    return drawn * scale
