"""Which parts of which expert's path the students are measured against in one iteration."""

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


def expanded(first_below: int, start_below: int, over: int, iteration: int | None) -> int:
    """Return one more than the last start epoch of an iteration: it grows linearly, so that easy segments come first.

    Args:
        first_below: at the beginning.
        start_below: at the end.
        over: iterations until it is reached.
        iteration: outer steps done before; None: after all.

    Source: DATM's public code.
    """
    if iteration is None or iteration >= over:
        return start_below
    return first_below + (start_below - first_below) * iteration // over


def spaced(expert: int, start_from: int, distance: int, count: int, length: int) -> list[Segment]:
    """Return `count` segments of one expert, their starts `distance` epochs apart from `start_from` on.

    Source: ConTra Algorithm 1, lines 7 to 10.
    """
    starts = [start_from + index * distance for index in range(count)]
    return [Segment(expert, start, start + length) for start in starts]
