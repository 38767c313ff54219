"""What passes between a method and the way its synthetic set is moved.

Shapes: n synthetic images of C x H x W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from satm.unroll import Hypergradient, Point


@dataclass(frozen=True)
class OuterGradient:
    """What one outer step follows.

    Args:
        loss: `[]` outer loss at the synthetic set.
        images: `[n, C, H, W]` gradient.
        labels: gradient of their shape, None where they are integers.
        step_size: `[]` gradient.
        sharpness: `[]` rise of the loss at the perturbed set; None where the method perturbs nothing.
    """

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    step_size: Tensor
    sharpness: Tensor | None = None


class Oracle(Protocol):
    """The hypergradient at any images, with the segment, batches and augmentation of one iteration held fixed."""

    def __call__(
        self,
        images: Tensor,
        *,
        last: int | None = None,
        start: Point | None = None,
        first: int = 0,
        keep_points: Sequence[int] = (),
    ) -> Hypergradient:
        """Return the hypergradient at `[n, C, H, W]` images; the rest as in `satm.hypergradient`."""
        ...
