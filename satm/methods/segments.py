"""Which part of which expert's path the student is measured against in one iteration."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Segment:
    """A part of an expert's path.

    Args:
        expert: index in the trajectory store.
        start: epochs after which it begins.
        end: epochs after which it ends.
    """

    expert: int
    start: int
    end: int


def uniform(generator: torch.Generator, experts: int, start_from: int, start_below: int, length: int) -> Segment:
    """Return a segment of any expert, its start uniform in [start_from, start_below).

    Args:
        generator: on the CPU.
        experts: number of experts.
        start_from: first start epoch.
        start_below: one more than the last start epoch, as in MTT's public code.
        length: epochs.
    """
    expert = int(torch.randint(experts, (1,), generator=generator))
    start = int(torch.randint(start_from, start_below, (1,), generator=generator))
    return Segment(expert, start, start + length)
