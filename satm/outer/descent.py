"""Plain gradient descent."""

from torch import Tensor

from satm.outer.base import Oracle, OuterGradient


def descent(oracle: Oracle, images: Tensor) -> OuterGradient:
    """Return the hypergradient at the images as it is.

    Args:
        oracle: of this iteration.
        images: `[n, C, H, W]` the synthetic set.
    """
    found = oracle(images)
    return OuterGradient(found.loss, found.images, found.labels, found.step_size)
