"""The learned tensors: the images themselves, or tensors that images are computed from.

Shapes: n synthetic images of C x H x W, m basis images.
"""

from collections.abc import Mapping

from torch import Tensor

Numbers = Mapping[str, Tensor]
"""Learned tensors by name."""


class Parameterisation:
    """A differentiable map from learned tensors to images: here the identity of `images`."""

    def split(self, images: Tensor) -> Numbers:
        """Return the tensors that give, exactly or approximately, `[n, C, H, W]` initial images."""
        return {"images": images}

    def join(self, numbers: Numbers) -> Tensor:
        """Return `[n, C, H, W]` images."""
        return numbers["images"]

    def pull(self, numbers: Numbers, gradient: Tensor) -> Numbers:
        """Return the gradient of each tensor, given that of the images, `[n, C, H, W]`."""
        return {"images": gradient}
