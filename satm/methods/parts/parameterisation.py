"""What numbers a synthetic set is made of: those of its images, or fewer or more that images are computed from.

Shapes: n synthetic images of C x H x W, m basis images.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

Numbers = Mapping[str, Tensor]
"""What is learned, by name."""


class Parameterisation(Protocol):
    """A differentiable map from numbers to images."""

    def split(self, images: Tensor) -> Numbers:
        """Return the numbers that a set starts with, given the images `[n, C, H, W]` it starts from."""
        ...

    def join(self, numbers: Numbers) -> Tensor:
        """Return `[n, C, H, W]` images."""
        ...

    def pull(self, numbers: Numbers, gradient: Tensor) -> Numbers:
        """Return the gradient of each number, given that of the images, `[n, C, H, W]`."""
        ...


class Direct:
    """The images themselves, under the name `images`."""

    def split(self, images: Tensor) -> Numbers:
        """Return the images."""
        return {"images": images}

    def join(self, numbers: Numbers) -> Tensor:
        """Return the images."""
        return numbers["images"]

    def pull(self, numbers: Numbers, gradient: Tensor) -> Numbers:
        """Return the gradient of the images."""
        return {"images": gradient}


DIRECT = Direct()
