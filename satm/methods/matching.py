"""What all methods that match training trajectories share: one iteration's segment, batches, augmentation and loss.

Shapes: n synthetic images of C x H x W, P parameters, N inner steps.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from satm.errors import UsageError
from satm.methods.base import IterativeMethod, IterativeOptions, MethodOptions, Problem, Synthetic
from satm.methods.segments import Segment, uniform
from satm.outer import Oracle
from satm.training import soft_cross_entropy
from satm.unroll import Hypergradient, Point, hypergradient


class MatchingOptions(IterativeOptions):
    """Options of every trajectory-matching method."""

    experts: str = "sgd"
    """Name of the experts."""
    inner_steps: int = Field(50, ge=1)
    """Steps of the student on the synthetic set (N in MTT)."""
    expert_epochs: int = Field(2, ge=1)
    """Epochs of the expert that they should equal (M in MTT)."""
    min_start_epoch: int = Field(0, ge=0)
    """First epoch at which a segment may start."""
    max_start_epoch: int = Field(20, ge=1)
    """One more than the last epoch at which a segment may start."""
    batch_size: int | None = Field(None, ge=1)
    """Synthetic images of one inner step, drawn without repetition until all were seen; None: all of them."""
    augment: bool = True
    """Augment the synthetic images in each inner step as the dataset says."""
    step_size_gradient: Literal["exact", "first-order", "fixed"] = "exact"
    """How the inner step size is learned: its exact gradient, SATM's Eq. 12, or not at all."""
    engine: Literal["mixed", "reverse"] = "mixed"
    """How the hypergradient is computed: in little memory, or as an unrolled graph. Both are exact."""


def matching_loss(student: Tensor, start: Tensor, target: Tensor) -> Tensor:
    """Return `[]` the squared distance from student to target, relative to the distance that the expert moved.

    0 is a perfect match, 1 no better than not training; more is possible.

    Args:
        student: `[P]` after N inner steps.
        start: `[P]` the expert where the student began; constant.
        target: `[P]` the expert M epochs later; constant.

    Source: MTT; SATM Eq. 6; FTD section 3.1; ConTra Eq. 2.
    """
    return (student - target).square().sum() / (start - target).square().sum()


class TrajectoryMatching(IterativeMethod):
    """Match the end of a short training on the synthetic set to an expert's path."""

    options: ClassVar[type[MethodOptions]] = MatchingOptions
    needs_experts: ClassVar[bool] = True
    settings: MatchingOptions

    def __init__(self, options: MatchingOptions, problem: Problem) -> None:
        super().__init__(options, problem)
        if problem.experts is None:
            raise UsageError("a trajectory-matching method needs experts; make them with `python -m satm experts`")
        self.experts = problem.experts
        if options.min_start_epoch >= options.max_start_epoch:
            raise UsageError(
                f"segments start in [min_start_epoch, max_start_epoch), got [{options.min_start_epoch}, "
                f"{options.max_start_epoch}); raise max_start_epoch"
            )
        needed, there = options.max_start_epoch - 1 + options.expert_epochs, self.experts.epochs
        if needed > there:
            raise UsageError(
                f"a segment from epoch {options.max_start_epoch - 1} over {options.expert_epochs} epochs ends at epoch "
                f"{needed}, the experts have {there}; lower max_start_epoch or expert_epochs, or train longer experts"
            )

    def segment(self, generator: torch.Generator) -> Segment:
        """Return the part of an expert's path for one iteration."""
        options = self.settings
        return uniform(
            generator, len(self.experts), options.min_start_epoch, options.max_start_epoch, options.expert_epochs
        )

    def oracle(self, synthetic: Synthetic, generator: torch.Generator) -> Oracle:
        """Return the hypergradient of the matching loss as a function of the images, all draws of an iteration made.

        Raises:
            UsageError: the expert did not move between the segment's ends.
        """
        options, augmentation = self.settings, self.problem.augmentation
        segment = self.segment(generator)
        origin = self.experts.snapshot(segment.expert, segment.start).to(synthetic.images)
        target = self.experts.snapshot(segment.expert, segment.end).to(synthetic.images)
        if torch.equal(origin, target):
            raise UsageError(f"expert {segment.expert} did not move from epoch {segment.start} to {segment.end}")
        batches = self._batches(len(synthetic.images), generator)
        count = len(synthetic.images) if batches is None else len(batches[0])
        draws = [augmentation.draw(generator, count, synthetic.images.shape[-1]) for _ in range(options.inner_steps)]

        def augment(images: Tensor, step: int) -> Tensor:
            return augmentation.apply(images, draws[step])

        def at(
            images: Tensor,
            *,
            last: int | None = None,
            start: Point | None = None,
            first: int = 0,
            keep_points: Sequence[int] = (),
        ) -> Hypergradient:
            found = hypergradient(
                self.problem.module,
                images,
                synthetic.labels,
                synthetic.step_size,
                lambda weights: matching_loss(weights, origin, target),
                steps=options.inner_steps,
                last=last,
                start=origin if start is None else start,
                first=first,
                loss=soft_cross_entropy,
                batches=batches,
                augment=augment if options.augment else None,
                step_size_gradient="first-order" if options.step_size_gradient == "first-order" else "exact",
                engine=options.engine,
                keep_points=keep_points,
            )
            fixed = options.step_size_gradient == "fixed"
            return replace(found, step_size=torch.zeros_like(found.step_size)) if fixed else found

        return at

    def _batches(self, count: int, generator: torch.Generator) -> list[Tensor] | None:
        """Return the images of each inner step; None where each step takes all.

        Source: MTT's public code: a permutation is consumed in chunks and drawn again when it is used up.
        Differs: a rest smaller than a batch is a batch of its own there and is dropped here, so that all have one size.
        """
        size = self.settings.batch_size
        if size is None or size >= count:
            return None
        batches: list[Tensor] = []
        while len(batches) < self.settings.inner_steps:
            order = torch.randperm(count, generator=generator).to(self.problem.device)
            batches += [part for part in order.split(size) if len(part) == size]
        return batches[: self.settings.inner_steps]
