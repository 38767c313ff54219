"""Mini-batches of an inner loop."""

import torch
from torch import Tensor


def mini_batches(
    count: int, size: int | None, steps: int, generator: torch.Generator, device: torch.device
) -> list[Tensor] | None:
    """Return the mini-batch of each inner step, `[size]` int64 indices of `count` images; None: all images in each.

    The generator is on the CPU, the indices are on the device. If each step uses all images, nothing is drawn.

    Source: MTT's public code: a permutation is consumed in chunks, and a new one is drawn when it is used up.
    Differs: the public code keeps a smaller last chunk; here it is dropped, so that all batches have the same size.
    """
    if size is None or size >= count:
        return None
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = torch.randperm(count, generator=generator)
        batches += [part for part in order.split(size) if len(part) == size]
    return list(torch.stack(batches[:steps]).to(device))  # one copy: each makes the CPU wait
