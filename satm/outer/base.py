"""What passes between a method and the way its synthetic set is moved.

Shapes: n synthetic images of C x H x W, P parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from satm.unroll import Point

Memory = Mapping[str, Tensor]
"""What a method carries from one iteration to the next, by name; it is stored with the run."""

NOTHING: Memory = MappingProxyType({})
"""The memory before the first iteration."""

Points = tuple[Point, ...]
"""The place of each student of an iteration on its trajectory; one student unless segments are matched concurrently."""


@dataclass(frozen=True)
class OuterGradient:
    """What one outer step follows.

    Args:
        loss: `[]` outer loss at the synthetic set.
        images: `[n, C, H, W]` gradient.
        labels: gradient of their shape, None where they are integers.
        step_size: `[]` gradient.
        sharpness: `[]` rise of the loss at the perturbed set; None where the method perturbs nothing.
        memory: for the next iteration.
        share: `[n]` factors on the step of each image and its label; None: all 1.
        restart: the outer optimiser forgets what it remembers before this step.
        norm: `[]` norm of the images' hypergradient where `images` was scaled; None where it was not.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    step_size: Tensor
    sharpness: Tensor | None = None
    memory: Memory = field(default_factory=lambda: NOTHING)
    share: Tensor | None = None
    restart: bool = False
    norm: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """A hypergradient at the images that an oracle was asked at.

    Args:
        loss: `[]`.
        images: `[n, C, H, W]` gradient.
        labels: gradient of their shape, None where they are integers.
        step_size: `[]` gradient.
        points: the students before the steps that were asked for, by the index of the step.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    step_size: Tensor
    points: Mapping[int, Points] = field(default_factory=dict)


class Oracle(Protocol):
    """The hypergradient at any images, with the segments, batches and augmentation of one iteration held fixed."""

    def __call__(
        self,
        images: Tensor,
        *,
        last: int | None = None,
        start: Points | None = None,
        first: int = 0,
        keep_points: Sequence[int] = (),
    ) -> Answer:
        """Return the hypergradient at `[n, C, H, W]` images; the rest as in `satm.hypergradient`, for each student."""
        ...
