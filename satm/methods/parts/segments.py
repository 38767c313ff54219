"""Segments: the parts of experts' trajectories that the students of an iteration are matched to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from satm.config.methods import MatchingOptions
from satm.methods.contra import concurrent
from satm.methods.datm import expanding


@dataclass(frozen=True)
class Segment:
    """The trajectory of an expert (an index into the trajectory store) from epoch `start` to epoch `end`."""

    expert: int
    start: int
    end: int

    def starting_at(self, epoch: int) -> "Segment":
        """Return the segment of the same expert and length that begins at another epoch."""
        return Segment(self.expert, epoch, epoch + self.end - self.start)


def uniform(options: MatchingOptions, iteration: int | None) -> int:
    """Return the exclusive upper bound of start epochs, the same in every iteration. Source: MTT's public code."""
    return options.max_start_epoch


RANGES: Mapping[str, Callable[[MatchingOptions, int | None], int]] = {"uniform": uniform, "expanding": expanding}
"""Exclusive upper bound of start epochs, by the option `segments`."""


def draw(
    options: MatchingOptions, generator: torch.Generator, experts: int, iteration: int | None
) -> list[tuple[float, Segment]]:
    """Return the segments of one iteration, each with the weight of its loss; the sampled one first.

    The sampled segment has a random expert and a start that is uniform in the range, or `start_epoch` if that is set.
    `iteration` counts the completed outer iterations; None: all are completed.
    """
    expert = int(torch.randint(experts, (1,), generator=generator))
    below = RANGES[options.segments](options, iteration)
    start = int(torch.randint(options.min_start_epoch, below, (1,), generator=generator))
    if options.start_epoch is not None:
        start = options.start_epoch
    sampled = Segment(expert, start, start + options.expert_epochs)
    return concurrent(sampled, options) if options.concurrent else [(1.0, sampled)]
