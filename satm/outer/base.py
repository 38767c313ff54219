"""The interface between a method and its outer step.

Shapes: n synthetic images of C x H x W, P parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypedDict, Unpack

from torch import Tensor

from satm.unroll import Gradients, Point

MethodState = Mapping[str, Tensor]
"""State of a method between iterations, by name; it is stored with the run."""

NO_STATE: MethodState = MappingProxyType({})
"""State before the first iteration."""

Points = tuple[Point, ...]
"""A point of each student's trajectory in an iteration; there are several students if segments are concurrent."""


@dataclass(frozen=True)
class OuterGradient(Gradients):
    """The gradient that an outer step follows, with the loss at the synthetic set.

    Args:
        sharpness: `[]` increase of the loss at the perturbed set; None if the method perturbs nothing.
        state: the method's state for the next iteration.
        share: `[n]` factors on the step of each image and its label; None: all 1.
        restart: whether to reset the outer optimiser's state before this step.
        norm: `[]` norm of the images' hypergradient before scaling; None if `images` was not scaled.
    """

    sharpness: Tensor | None = None
    state: MethodState = field(default_factory=lambda: NO_STATE)
    share: Tensor | None = None
    restart: bool = False
    norm: Tensor | None = None


@dataclass(frozen=True)
class OuterValue(Gradients):
    """Outer loss and hypergradient at some images, summed over the students of an iteration.

    Args:
        points: the students' trajectory points before the requested steps, by the index of the step.
    """

    points: Mapping[int, Points] = field(default_factory=dict)

    def __add__(self, other: "OuterValue") -> "OuterValue":
        """Return the sum over the students of both values."""
        labels = None if self.labels is None or other.labels is None else self.labels + other.labels
        points = {index: students + other.points[index] for index, students in self.points.items()}
        loss, images, step_size = self.loss + other.loss, self.images + other.images, self.step_size + other.step_size
        return OuterValue(loss, images, labels, step_size, points)


class Span(TypedDict, total=False):
    """Arguments of `satm.hypergradient` that say which inner steps are run, differentiated and kept."""

    first: int
    last: int | None
    keep_points: Sequence[int]


class HypergradientFn(Protocol):
    """The hypergradient as a function of the images, with segments, batches and augmentation of an iteration fixed."""

    def __call__(self, images: Tensor, start: Points | None = None, **span: Unpack[Span]) -> OuterValue:
        """Return the hypergradient at images `[n, C, H, W]`; with `start`, the students continue from these points."""
