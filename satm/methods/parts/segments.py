"""Segments: the parts of experts' trajectories that the students of an iteration are matched to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from satm.config.methods import MatchingOptions
from satm.errors import UsageError
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


def check(options: MatchingOptions, epochs: int) -> None:
    """Raise UsageError for options that exclude each other or go beyond the `epochs` of the experts."""
    least, below, length = options.min_start_epoch, options.max_start_epoch, options.expert_epochs
    first, count, distance = options.expand_from, options.concurrent, options.spacing
    last_fixed = least + (count - 1) * distance
    if least >= below:
        raise UsageError(
            f"segments start in [min_start_epoch, max_start_epoch), got [{least}, {below}); raise max_start_epoch"
        )
    if (options.segments == "expanding") != (first is not None):
        raise UsageError(
            f"segments {options.segments!r} does not go with expand_from {first}; expanding segments need the range "
            "they begin with, uniform ones have none"
        )
    if first is not None and not least < first <= below:
        raise UsageError(
            f"expand_from must lie above min_start_epoch {least} and not above max_start_epoch {below}, got {first}; "
            "correct it"
        )
    if options.start_epoch is not None and options.segments == "expanding":
        raise UsageError(
            f"segments 'expanding' says where segments start, and so does start_epoch {options.start_epoch}; leave one "
            "of them out"
        )
    if count and distance < 1:
        raise UsageError(
            f"concurrent {count} segments do not fit between min_start_epoch {least} and max_start_epoch {below}: "
            f"{below - least} epochs divided by {count} are less than one; lower concurrent or set distance"
        )
    if count and last_fixed > below:
        raise UsageError(
            f"concurrent {count} segments at a distance of {distance} from min_start_epoch {least} on reach epoch "
            f"{last_fixed}, max_start_epoch is {below}; lower concurrent or distance"
        )
    starts = {"max_start_epoch": below - 1, "start_epoch": options.start_epoch or 0, "monitor": options.monitor - 1}
    for option, start in {**starts, "concurrent, distance": last_fixed}.items():
        if start + length > epochs:
            raise UsageError(
                f"{option}: a segment from epoch {start} over {length} epochs ends at epoch {start + length}, the "
                f"experts have {epochs}; lower {option} or expert_epochs, or train longer experts"
            )
    if options.kept < 1:
        quotient = f"int({options.inner_steps} / {options.keep_divisor})"
        raise UsageError(f"{quotient} keeps no step; lower keep_divisor or raise inner_steps")
    if options.tesla_scale != "paper" and options.engine != "tesla":
        raise UsageError(
            f"tesla_scale {options.tesla_scale!r} belongs to the engine 'tesla', the engine is {options.engine!r}; "
            "leave one of them out"
        )
