"""Boosting: the images of each class are learned in blocks, each on top of the earlier ones.

A prefix of the blocks is then a synthetic set for fewer images per class.

Shapes: n synthetic images, sorted by class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stage:
    """The part of a run in which one block is learned."""

    trained: Tensor
    """`[m]` int64, the images of this block and of the earlier ones."""
    share: Tensor
    """`[n]` factors on the outer step of each image: 1 in this block, `boost` before it, 0 after it."""
    begins: bool
    """Whether the previous iteration learned another block."""


def stage(iteration: int, iterations: int, count: int, ipc: int, blocks: int, boost: float) -> Stage:
    """Return the stage of an iteration.

    Args:
        iteration: number of completed outer iterations.
        iterations: their number in the whole run, shared equally by the blocks.
        count: number of synthetic images, n.
        ipc: images per class; image i is the (i modulo ipc)-th of its class.
        blocks: number of equal blocks of each class's images, in their order.
        boost: factor on the step of earlier blocks; 0: unchanged (strong boosting), below 1: slower (weak boosting).

    Source: RaT-BPTT figures 10 and 11 name strong and weak boosting (Boost-DD); the rest is our choice.
    """
    here = iteration * blocks // iterations
    block = torch.arange(count) % ipc // (ipc // blocks)
    share = (block == here).float() + boost * (block < here).float()
    begins = here > 0 and (iteration - 1) * blocks // iterations < here
    return Stage((block <= here).nonzero().squeeze(1), share, begins)
