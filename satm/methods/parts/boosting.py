"""Boosting: the images of each class are learned in blocks, one after another, each on top of those before.

A prefix of the blocks is then a synthetic set of its own for fewer images per class.

Shapes: n synthetic images, sorted by class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from satm.errors import UsageError


@dataclass(frozen=True)
class Stage:
    """The part of a run in which one block is learned.

    Args:
        trained: `[m]` int64, the images that are trained on: those of this block and of the ones before.
        share: `[n]` factors on the outer step of each image: 1 in this block, `boost` before it, 0 after it.
        begins: this is the first iteration in which another block is learned than before.
    """

    trained: Tensor
    share: Tensor
    begins: bool


def stage(iteration: int, iterations: int, count: int, ipc: int, blocks: int, boost: float) -> Stage:
    """Return the stage of an iteration.

    Args:
        iteration: outer steps done before.
        iterations: of the whole run; each block gets an equal part, up to one.
        count: n.
        ipc: images per class; image i is the (i modulo ipc)-th of its class.
        blocks: into how many equal parts the images of each class are divided, in their order.
        boost: factor on the step of the blocks that were learned before; 0: they stay as they are (strong boosting),
            below 1: they follow slowly (weak boosting).

    Source: RaT-BPTT figures 10 and 11 name strong and weak boosting (Boost-DD); the rest is ours.
    """
    here = iteration * blocks // iterations
    block = torch.arange(count) % ipc // (ipc // blocks)
    share = (block == here).float() + boost * (block < here).float()
    begins = here > 0 and (iteration - 1) * blocks // iterations < here
    return Stage((block <= here).nonzero().squeeze(1), share, begins)


def check_blocks(blocks: int, ipc: int, iterations: int) -> None:
    """Refuse blocks that are unequal or get no iteration.

    Raises:
        UsageError: naming both options.
    """
    if ipc % blocks:
        raise UsageError(f"blocks {blocks} does not divide ipc {ipc}, the images per class; choose a divisor of ipc")
    if iterations < blocks:
        raise UsageError(f"{iterations} iterations are fewer than blocks {blocks}; raise iterations or lower blocks")
