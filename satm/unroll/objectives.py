"""Outer losses as functions of the weights at the end of an unroll.

Shapes: P parameters, B real images of C x H x W.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from satm.params import call_flat
from satm.unroll.engines import Objective

CHUNK = 500
"""Real images whose activations are in memory at the same time: about 1 GiB in a ConvNet of width 128 at 32 x 32
pixels, a tenth of what a batch of 5,000 would need."""


def real_loss(module: nn.Module, images: Tensor, labels: Tensor, chunk: int = CHUNK) -> Objective:
    """Return the mean cross-entropy on real images as a function of the weights, with the memory of one chunk.

    A chunk's activations are dropped after its forward pass and recomputed in the backward pass. The images,
    `[B, C, H, W]`, are in the space of training and have the weights' dtype; the labels are `[B]` int64.
    """

    def summed(weights: Tensor, part: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(call_flat(module, weights, part), targets, reduction="sum")

    def loss(weights: Tensor) -> Tensor:
        if len(images) <= chunk:
            return summed(weights, images, labels) / len(images)
        total = torch.zeros((), dtype=weights.dtype, device=weights.device)
        for part, targets in zip(images.split(chunk), labels.split(chunk), strict=True):
            total = total + checkpoint(summed, weights, part, targets, use_reentrant=False, preserve_rng_state=False)
        return total / len(images)

    return loss
