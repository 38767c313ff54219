"""Noise that smooths the outer loss.

Shapes: n synthetic images of C x H x W.
"""

from typing import Literal

import torch
from torch import Tensor


def smoothing_noise(
    images: Tensor, generator: torch.Generator, gamma: float, kind: Literal["std", "variance"]
) -> Tensor:
    """Return Gaussian noise, `[n, C, H, W]`, with a magnitude proportional to each image's norm.

    Args:
        images: `[n, C, H, W]` synthetic set.
        generator: on the CPU.
        gamma: strength relative to each image's norm.
        kind: whether gamma times the norm is the noise's standard deviation (`std`) or its variance.

    Source: SATM section 3.2 and Algorithm 1, line 7.
    """
    drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype).to(images.device)
    magnitude = gamma * images.flatten(1).norm(dim=1).view(-1, *[1] * (images.ndim - 1))
    scale: Tensor = magnitude if kind == "std" else magnitude.sqrt()
    return drawn * scale
