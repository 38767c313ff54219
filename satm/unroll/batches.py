"""Mini-batches of an inner loop."""

import torch
from torch import Tensor


def mini_batches(
    count: int, size: int | None, steps: int, generator: torch.Generator, device: torch.device
) -> list[Tensor] | None:
    """Return the indices `[size]` int64, among `count` images, of each inner step; None where each step takes all.

    The generator is on the CPU, the indices are on the device. Where each step takes all, nothing is drawn.

    Source: MTT's public code: a permutation is consumed in chunks and drawn again when it is used up.
    Differs: a rest smaller than a batch is a batch of its own there and is dropped here, so that all have one size.
    """
    if size is None or size >= count:
        return None
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = torch.randperm(count, generator=generator).to(device)
        batches += [part for part in order.split(size) if len(part) == size]
    return batches[:steps]
