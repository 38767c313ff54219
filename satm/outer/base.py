"""The interface between a method and its outer step.

Shapes: n synthetic images of C x H x W, P parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from satm.unroll import Point

MethodState = Mapping[str, Tensor]
"""State of a method between iterations, by name; it is stored with the run."""

NO_STATE: MethodState = MappingProxyType({})
"""State before the first iteration."""

Points = tuple[Point, ...]
"""A point of each student's trajectory in an iteration; there are several students if segments are concurrent."""


@dataclass(frozen=True)
class OuterGradient:
    """The gradient that an outer step follows.

    Args:
        loss: `[]` outer loss at the synthetic set.
        images: `[n, C, H, W]` gradient.
        labels: gradient of their shape; None if they are integers.
        step_size: `[]` gradient.
        sharpness: `[]` increase of the loss at the perturbed set; None if the method perturbs nothing.
        state: of the method, for the next iteration.
        share: `[n]` factors on the step of each image and its label; None: all 1.
        restart: whether to reset the outer optimiser's state before this step.
        norm: `[]` norm of the images' hypergradient before scaling; None if `images` was not scaled.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    step_size: Tensor
    sharpness: Tensor | None = None
    state: MethodState = field(default_factory=lambda: NO_STATE)
    share: Tensor | None = None
    restart: bool = False
    norm: Tensor | None = None


@dataclass(frozen=True)
class OuterValue:
    """Outer loss and hypergradient at some images.

    Args:
        loss: `[]` outer loss.
        images: `[n, C, H, W]` gradient.
        labels: gradient of their shape; None if they are integers.
        step_size: `[]` gradient.
        points: the students before the requested steps, by the index of the step.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    step_size: Tensor
    points: Mapping[int, Points] = field(default_factory=dict)


class HypergradientFn(Protocol):
    """The hypergradient as a function of the images, with segments, batches and augmentation of an iteration fixed."""

    def __call__(
        self,
        images: Tensor,
        *,
        last: int | None = None,
        start: Points | None = None,
        first: int = 0,
        keep_points: Sequence[int] = (),
    ) -> OuterValue:
        """Return the hypergradient at images `[n, C, H, W]`; other arguments as in `satm.hypergradient`."""
        ...
